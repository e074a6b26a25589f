"""What goes beyond the paper: surprise, learned weights of the loss, beliefs on damaged features."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, Share, damage_loss, total_loss
from iefvad.model.network import Network, Output
from iefvad.model.surprise import Surprise

TINY = ModelConfig(dim=4, heads=2, layers=1, refine_steps=1, standardize=True, dropout=0.0)
VARIANTS = {
    "surprise": dataclasses.replace(TINY, surprise=True),
    "learned weights": dataclasses.replace(TINY, loss_weights="learned"),
    "image": dataclasses.replace(TINY, surprise=True, loss_weights="learned", modality="image"),
    "members": dataclasses.replace(TINY, surprise=True, loss_weights="learned", members=2),
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


def features(dtype: torch.dtype = torch.float32) -> Tensor:
    return 3 * torch.randn(2, 3, 5, 4, dtype=dtype)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_its_gradients_do_not_matter(name):
    image, event = features()
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
    used = [key for key in found[0][2] if "surprise" in key or "log_weights" in key]
    assert used and all((found[0][2][key] != 0).any() for key in used)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradcheck(name):
    network = build(VARIANTS[name], torch.float64)
    image, event = features(torch.float64)
    names = [key for key, _ in network.named_parameters() if "raw_" in key or "log_weights" in key or "logvar" in key]
    chosen = [parameter for key, parameter in network.named_parameters() if key in names]

    def loss(image: Tensor, *values: Tensor) -> Tensor:
        out = torch.func.functional_call(network, dict(zip(names, values, strict=True)), (image, event, LENGTHS))
        for one in (out, *out.members):
            one.logits = one.fused.sum(-1)  # those of the network are float32
        return total_loss(out, LABELS, LENGTHS, LossWeights()).total

    assert torch.autograd.gradcheck(loss, (image.requires_grad_(), *chosen), fast_mode=True)


@pytest.mark.parametrize("name", ["surprise", "learned weights", "members"])
def test_compiles(name):
    network = build(VARIANTS[name], backend="auto")
    image, event = features()
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
    out = network(*features(), LENGTHS)
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
        ({"surprise": True, "released": True}, "released"),
        ({"loss_weights": "learned", "released": True}, "released"),
    ],
    ids=str,
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **choices)
