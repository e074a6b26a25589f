"""What goes beyond the paper: surprise, learned weights of the loss, beliefs on damaged features."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from iefvad.checkpoints.files import read_model, save_model
from iefvad.model.config import ModelConfig, saved_values
from iefvad.model.exchange import CrossAttention, Gates
from iefvad.model.losses import LossWeights, Share, damage_loss, total_loss
from iefvad.model.network import Network, Output
from iefvad.model.repair import Repair
from iefvad.model.surprise import Surprise

TINY = ModelConfig(dim=4, heads=2, layers=1, refine_steps=1, standardize=True, dropout=0.0)
VARIANTS = {
    "repair": dataclasses.replace(TINY, repair=True),
    "guided": dataclasses.replace(TINY, refinement="guided", refine_steps=3),
    "guided without filter": dataclasses.replace(TINY, refinement="guided", temporal="none"),
    "shared": dataclasses.replace(TINY, refinement="shared", refine_steps=3),
    "gated": dataclasses.replace(TINY, fusion="gated"),
    "cross-attention": dataclasses.replace(TINY, fusion="cross-attention"),
    "cross-attention in windows": dataclasses.replace(TINY, fusion="cross-attention", window=2),
    "surprise": dataclasses.replace(TINY, surprise=True),
    "learned weights": dataclasses.replace(TINY, loss_weights="learned"),
    "image": dataclasses.replace(TINY, surprise=True, loss_weights="learned", modality="image"),
    "members": dataclasses.replace(
        TINY, surprise=True, repair=True, fusion="gated", refinement="guided", loss_weights="learned", members=2
    ),
}
LENGTHS, LABELS = torch.tensor([5, 2, 1]), torch.tensor([1.0, 0.0, 1.0])


def build(config: ModelConfig, dtype: torch.dtype = torch.float32, backend: str = "reference") -> Network:
    """A network that knows features and has no parameter at a corner."""
    torch.manual_seed(0)
    network = Network(config, backend=backend)
    for name in network.statistics:
        network.set_statistics(name, torch.randn(50, config.dim) @ torch.randn(config.dim, config.dim))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network.to(dtype).eval()


def features(network: Network, dtype: torch.dtype = torch.float32) -> Tensor:
    """Image and event features, (2, B, T, D), of which one dimension in each segment is masked."""
    values = 3 * torch.randn(2, 3, 5, 4, dtype=dtype)
    for stream, name in enumerate(("image", "event")):
        if name in network.statistics:
            values[stream, :, :, stream] = network.statistics[name].centre[stream]
    return values


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_its_gradients_do_not_matter(name):
    image, event = features(build(VARIANTS[name]))
    found = []
    for filler in (0.0, torch.nan):
        network = build(VARIANTS[name])
        inputs = [values.clone() for values in (image, event)]
        for values in inputs:
            for row, length in zip(values, LENGTHS, strict=True):
                row[length:] = filler
        out = network(*inputs, LENGTHS)
        loss = total_loss(out, LABELS, LENGTHS, LossWeights()).total
        loss.backward()
        valid = torch.arange(5) < LENGTHS[:, None]
        found.append((out.scores[valid], loss, {key: p.grad for key, p in network.named_parameters()}))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    unused = [key for key, grad in found[0][2].items() if grad is None or not torch.isfinite(grad).all()]
    assert not unused
    new = ("raw_surprise", "raw_doubt", "log_weights", "gates", "cross")
    assert all((grad != 0).any() for key, grad in found[0][2].items() if any(part in key for part in new))


@pytest.mark.parametrize("name", VARIANTS)
def test_gradcheck(name):
    network = build(VARIANTS[name], torch.float64)
    image, event = features(network, torch.float64)
    parts = ("raw_", "log_weights", "logvar", "gates", "cross", "refinement")
    names = [key for key, _ in network.named_parameters() if any(part in key for part in parts)]
    chosen = [parameter for key, parameter in network.named_parameters() if key in names]

    def loss(image: Tensor, *values: Tensor) -> Tensor:
        out = torch.func.functional_call(network, dict(zip(names, values, strict=True)), (image, event, LENGTHS))
        for one in (out, *out.members):
            one.logits = one.fused.sum(-1)  # those of the network are float32
        return total_loss(out, LABELS, LENGTHS, LossWeights()).total

    assert torch.autograd.gradcheck(loss, (image.requires_grad_(), *chosen), fast_mode=True)


@pytest.mark.parametrize("name", ["cross-attention", "members"])
def test_compiles(name):
    network = build(VARIANTS[name], backend="auto")
    image, event = features(network)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    # The same operations in another order of float32 sums.
    torch.testing.assert_close(compiled(image, event).scores, network(image, event).scores, rtol=1e-5, atol=1e-6)


def test_surprise_is_the_residual_of_a_regression_on_the_other_dimensions(monkeypatch):
    monkeypatch.setattr("iefvad.model.surprise.RIDGE", 1e-9)
    torch.manual_seed(0)
    known = torch.randn(4000, 3) @ torch.randn(3, 5) + 0.3 * torch.randn(4000, 5)
    known = known - known.mean(0)
    surprise = Surprise(5)
    surprise.fit(known)
    residuals = []
    for index in range(5):
        others = [other for other in range(5) if other != index]
        solution = torch.linalg.lstsq(known[:, others].double(), known[:, index].double()).solution
        residual = known[:, index] - known[:, others].double() @ solution
        residuals.append(residual / residual.std())
    sizes = torch.stack(residuals).square().mean(0).log()
    expected = (sizes - sizes.quantile(0.9)).clamp(min=0) * math.log1p(math.exp(-2.0))
    found = surprise(known).detach()
    assert ((found[:, 0] > 0).double().mean() - 0.1).abs() < 0.01
    # float32 sums of 5 terms, whose logarithm is taken: some 10⁻⁶.
    torch.testing.assert_close(found[:, 0].double(), expected, rtol=1e-4, atol=1e-5)
    # Broken correlations are seen, though each dimension alone looks usual.
    shuffled = torch.stack([column[torch.randperm(len(column))] for column in known.unbind(1)], 1)
    assert (surprise(shuffled)[:, 0] > 0).float().mean() > 0.5


def test_surprise_lowers_the_weight_of_a_masked_stream_and_is_shared_by_members():
    config = dataclasses.replace(VARIANTS["members"], dim=32, heads=2)
    torch.manual_seed(0)
    network = Network(config).eval()
    known = torch.randn(400, 8) @ torch.randn(8, 32)
    for name in ("image", "event"):
        network.set_statistics(name, known)
    image, event = known[:40].view(2, 20, 32), known[40:80].view(2, 20, 32)
    weights = network(image, event).w_img.mean(dim=(0, 1))
    image = image.index_fill(2, torch.arange(0, 32, 2), 0.0)
    assert (network(image, event).w_img.mean(dim=(0, 1)) < weights).all()  # those of both members


def test_learned_weights_give_the_loss_of_the_formula():
    network = build(VARIANTS["learned weights"])
    network.start_weights(kl=0.3, cos=0.05, norm=0.2)
    assert network.learned() | {"weight_cls": 1.0} == pytest.approx(
        network.learned() | {"weight_kl": 0.3, "weight_cos": 0.05, "weight_norm": 0.2}
    )
    out = network(*features(network), LENGTHS)
    s = network.log_weights.tolist()
    found = total_loss(out, LABELS, LENGTHS, LossWeights(), share=Share(0.5, 0.25))
    terms = out.terms
    expected = found.cls + 0.3 * found.kl + 0.25 * (0.05 * terms.cosine + 0.2 * terms.norm) + sum(s) / 2
    torch.testing.assert_close(found.total, expected)
    # At its minimum exp(s) is the term itself, for the classification twice the term.
    optimizer = torch.optim.LBFGS([network.log_weights], max_iter=100, line_search_fn="strong_wolfe")
    cls, kl, terms = found.cls.detach(), found.kl.detach(), [value.detach() for value in out.terms]

    def closure() -> Tensor:
        optimizer.zero_grad()
        fixed = dataclasses.replace(out, log_weights=network.log_weights, logits=out.logits.detach())
        fixed.terms = type(out.terms)(*terms)
        loss = total_loss(fixed, LABELS, LENGTHS, LossWeights()).total
        loss.backward()
        return loss

    optimizer.step(closure)
    ends = torch.stack([2 * cls / 0.5, kl / 0.25, terms[2], terms[3]])
    # Float32 gradients end the search some 10⁻⁴ before the minimum.
    torch.testing.assert_close(network.log_weights.detach().exp(), ends, rtol=2e-3, atol=0)


def test_one_modality_learns_two_weights():
    network = build(VARIANTS["image"])
    network.start_weights(kl=0.3, cos=0.05, norm=0.2)
    learned = network.learned()
    assert learned["weight_kl"] == pytest.approx(0.3) and "weight_cos" not in learned
    assert {"weight_cls", "weight_kl"} <= learned.keys()


def belief(mu: float, logvar: float, members: int = 0) -> Output:
    full = torch.full((2, 3, 4), mu), torch.full((2, 3, 4), logvar)
    both = {"image_mu": full[0], "image_logvar": full[1], "event_mu": torch.zeros(2, 3, 4), "event_logvar": full[1] * 0}
    rest = dict.fromkeys([field.name for field in dataclasses.fields(Output)])
    rest |= {"logits": torch.zeros(2, 3), "members": tuple(belief(mu, logvar) for _ in range(members))} | both
    return Output(**rest)


@pytest.mark.parametrize("members", [0, 2])
def test_damage_loss_is_the_divergence_of_normal_distributions(members):
    clean, damaged = belief(1.0, 0.4, members), belief(-0.5, 1.1, members)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(1.0, math.exp(0.2)), normal(-0.5, math.exp(0.55)))
    torch.testing.assert_close(damage_loss(clean, damaged, torch.tensor([3, 1])), expected)
    assert damage_loss(clean, clean, torch.tensor([3, 1])).item() == pytest.approx(0, abs=1e-7)


def test_damage_loss_is_least_where_the_variance_grew_by_the_squared_error():
    logvar = torch.zeros((), requires_grad=True)
    clean, damaged = belief(1.0, 0.4), belief(-0.5, 0.0)
    damaged.image_logvar = logvar.expand(2, 3, 4)
    logvar.data.fill_(math.log(math.exp(0.4) + 1.5**2))
    damage_loss(clean, damaged, torch.tensor([3, 1])).backward()
    assert logvar.grad.item() == pytest.approx(0, abs=1e-6)


def test_damage_loss_ignores_padding_and_stays_finite():
    clean, damaged = belief(1e3, -300.0), belief(0.0, 300.0)
    assert torch.isfinite(damage_loss(clean, damaged, torch.tensor([3, 1])))
    expected = damage_loss(belief(1.0, 0.0), belief(0.0, 0.0), torch.tensor([3, 1]))
    spoiled = belief(0.0, 0.0)
    spoiled.image_mu[1, 1:] = torch.nan
    spoiled.image_mu.requires_grad_()
    found = damage_loss(belief(1.0, 0.0), spoiled, torch.tensor([3, 1]))
    found.backward()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"surprise": True, "standardize": False}, "standardize"),
        ({"repair": True, "standardize": False}, "standardize"),
        ({"surprise": True, "released": True}, "released"),
        ({"refinement": "guided", "released": True}, "released"),
        ({"fusion": "gated", "modality": "image"}, "both modalities"),
        ({"loss_weights": "learned", "released": True}, "released"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **choices)


def test_masked_dimensions_become_the_conditional_mean_and_tell_their_variance():
    torch.manual_seed(0)
    mixing, noise = torch.randn(2, 6).double(), torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]).double()
    repair = Repair(6).double()
    repair.loadings[:] = 0
    repair.loadings[:, :2] = mixing.T
    repair.noise.copy_(noise)
    z = torch.randn(6).double() + 0.5
    z[[1, 4]] = 0.0
    found, doubt = repair(z)
    # The textbook formula of a normal distribution, with the dimensions 0, 2, 3 and 5 known.
    covariance = mixing.T @ mixing + noise.diag()
    known, masked = [0, 2, 3, 5], [1, 4]
    gain = covariance[masked][:, known] @ covariance[known][:, known].inverse()
    rest = covariance[masked][:, masked] - gain @ covariance[known][:, masked]
    torch.testing.assert_close(found[masked], gain @ z[known])
    assert torch.equal(found[known], z[known])
    torch.testing.assert_close(doubt, (rest.trace() / covariance.trace()).reshape(1))


def test_factors_are_those_of_the_training_features():
    torch.manual_seed(0)
    mixing = torch.randn(3, 12)
    known = torch.randn(5000, 3) @ mixing + 0.2 * torch.randn(5000, 12)
    repair = Repair(12)
    repair.fit(known)
    covariance = repair.loadings @ repair.loadings.T + repair.noise.diag()
    # The rest is met up to what the later directions hold, noise of variance 0.04; the diagonal up to the least noise.
    torch.testing.assert_close(covariance, known.T @ known / 5000, rtol=0.01, atol=0.04)
    half = known.clone()
    half[:, ::2] = 0.0
    found, doubt = repair(half)
    errors = (found - known).square().mean(0).sum() / known.square().mean(0).sum()
    assert errors < 0.05 and doubt.mean() == pytest.approx(errors.item(), rel=0.5)
    assert repair(known)[1].mean() < 0.2 * doubt.mean()
    nothing, whole = repair(torch.zeros(1, 12))
    assert (nothing == 0).all() and whole.item() == pytest.approx(1.0)


def test_repair_lowers_the_weight_of_a_masked_stream_by_the_variance_of_the_prediction():
    config = dataclasses.replace(TINY, repair=True)
    network = build(config)
    image, event = 5 + torch.rand(2, 2, 3, 4)
    clean = network(image, event)
    assert (network.statistics["image"].with_doubt(image)[1] == 0).all()
    masked = image.clone()
    masked[..., 2] = network.statistics["image"].centre[2]
    _, doubt = network.statistics["image"].with_doubt(masked)
    out = network(masked, event)
    encoder = network.encoders["image"]
    without = dataclasses.replace(config, repair=False)
    plain = Network(without, backend="reference").eval()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "repair" not in k and "doubt" not in k})
    repaired = network.statistics["image"](masked) * plain.statistics["image"].scale + plain.statistics["image"].centre
    variances = plain(repaired, event).image_logvar.exp() + torch.nn.functional.softplus(encoder.raw_doubt) * doubt
    torch.testing.assert_close(out.image_logvar.exp(), variances, rtol=1e-4, atol=1e-6)  # float32 exponentials
    torch.testing.assert_close(clean.image_logvar, plain(image, event).image_logvar)


def test_members_share_what_is_taken_from_the_features():
    network = build(VARIANTS["members"])
    for name in ("image", "event"):
        mine, other = network.statistics[name].repair, network.others[0].statistics[name].repair
        assert torch.equal(mine.loadings, other.loadings) and (mine.loadings != 0).any()


@pytest.mark.parametrize("kind", ["shared", "guided"])
def test_refinement_follows_the_formula(kind):
    network = build(VARIANTS[kind])
    out = network(*features(network))
    blocks = network.refinement
    assert len(blocks.w1) == (1 if kind == "shared" else 3)
    arguments = (out.image_mu, out.image_logvar, out.event_mu, out.event_logvar)
    scan = network.scan(*network.fusion(*arguments)[:2])
    z, guide = scan.mean, 2 * scan.var / (1 + scan.var) if kind == "guided" else 1.0
    for step in range(3):
        k = 0 if kind == "shared" else step
        z = z - 0.5 * guide * ((z @ blocks.w1[k].T + blocks.b1[k]).relu() @ blocks.w2[k].T + blocks.b2[k])
    # The same sums in another order, in float32.
    torch.testing.assert_close(out.fused, z, rtol=1e-4, atol=1e-5)


def test_gates_add_to_the_log_precision():
    gates = Gates(1)
    mu_img, mu_evt = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    logvar_img, logvar_evt = torch.tensor([[0.5]]), torch.tensor([[-0.5]])
    arguments = (mu_img, logvar_img, mu_evt, logvar_evt)
    assert gates(*arguments) == (logvar_img, logvar_evt)  # at the start they do nothing
    with torch.no_grad():
        gates.image.weight.copy_(torch.tensor([[0.1, 0.2, 0.3]]))
        gates.event.bias.fill_(100.0)
    disagreement = math.log1p(9.0 / (math.exp(0.5) + math.exp(-0.5)))
    gate = 3 * math.tanh((0.1 * 2.0 + 0.2 * 0.5 + 0.3 * disagreement) / 3)
    found = gates(*arguments)
    assert found[0].item() == pytest.approx(0.5 - gate) and found[1].item() == pytest.approx(-0.5 - 3.0)


def test_cross_attention_weighs_keys_by_their_precision():
    torch.manual_seed(0)
    attention = CrossAttention(4, heads=2, window=None)
    mu, other, logvar = torch.randn(3, 1, 3, 4)
    valid = torch.tensor([[True, True, False]])
    assert torch.equal(attention(mu, other, logvar, valid), mu)  # at the start
    torch.nn.init.normal_(attention.out.weight)
    query, (key, value) = attention.query(mu)[0], attention.key_value(other)[0].chunk(2, -1)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        rows = []
        for t in range(3):
            seen = [0, 1] if t < 2 else [0, 1, 2]
            logits = torch.stack([query[t, head] @ key[s, head] / 2**0.5 - logvar[0, s, head].mean() for s in seen])
            rows.append(logits.softmax(0) @ value[seen][:, head])
        heads.append(torch.stack(rows))
    expected = mu[0] + attention.out(torch.cat(heads, -1))
    torch.testing.assert_close(attention(mu, other, logvar, valid)[0], expected)
    near = CrossAttention(4, heads=2, window=2)
    near.load_state_dict(attention.state_dict())
    torch.testing.assert_close(
        near(mu, other, logvar, None)[0, 2], near(mu[:, 2:], other[:, 2:], logvar[:, 2:], None)[0, 0]
    )


@pytest.mark.parametrize("name", ["gated", "cross-attention", "guided", "repair"])
def test_context_serves_the_attention_alone(name):
    network = build(VARIANTS[name])
    image, event = features(network)
    first = network(image[:, :2], event[:, :2])
    second = network(image, event, state=first.state, context=2)
    assert second.scores.shape == (3, 3)
    whole = network(image, event)
    torch.testing.assert_close(second.image_mu, whole.image_mu[:, 2:])
    torch.testing.assert_close(second.image_logvar, whole.image_logvar[:, 2:])


def test_a_network_without_them_is_saved_as_before():
    later = {"surprise", "repair", "fusion", "refinement", "loss_weights"}
    assert not later & saved_values(TINY).keys()  # fingerprints of earlier calibrations still fit
    assert later <= saved_values(VARIANTS["members"]).keys()


def test_a_saved_network_is_the_same(tmp_path):
    network = build(VARIANTS["members"])
    save_model(tmp_path / "model.safetensors", network)
    again = read_model(tmp_path / "model.safetensors").build(Network)
    image, event = features(network)
    assert again.config == network.config and torch.equal(again(image, event).scores, network(image, event).scores)
