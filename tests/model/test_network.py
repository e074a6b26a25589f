"""The network: padding never matters, chunks continue each other, kernels and reference agree."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from iefvad.checkpoints.hub import IEFVAD
from iefvad.model.config import ModelConfig, saved_values
from iefvad.model.losses import LossWeights, total_loss
from iefvad.model.network import Network

SMALL = ModelConfig(dim=24, heads=4, refine_steps=3)
VARIANTS = {
    "ief": SMALL,
    "paper": dataclasses.replace(SMALL, process_noise=0.0),
    "robust": dataclasses.replace(SMALL, temporal="robust-kalman"),
    "no scan": dataclasses.replace(SMALL, temporal="none"),
    "gaussian": dataclasses.replace(SMALL, noise="gaussian"),
    "learned nu": dataclasses.replace(SMALL, nu="learned"),
    "low rank": dataclasses.replace(SMALL, covariance_rank=2),
    "image": dataclasses.replace(SMALL, modality="image"),
    "event": dataclasses.replace(SMALL, modality="event"),
    "no refinement": dataclasses.replace(SMALL, refine_steps=0),
}


def build(config: ModelConfig, backend: str = "auto", seed: int = 0) -> IEFVAD:
    torch.manual_seed(seed)
    return IEFVAD(config, backend=backend)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_influences_neither_outputs_nor_loss_nor_gradients(name):
    config = VARIANTS[name]
    image, event = torch.randn(2, 3, 9, 24)
    lengths, labels = torch.tensor([9, 4, 1]), torch.tensor([1.0, 0.0, 1.0])
    found = []
    for filler in (0.0, torch.nan):
        model = build(config).eval()
        inputs = [features.clone() for features in (image, event)]
        for features in inputs:
            for row, length in zip(features, lengths, strict=True):
                row[length:] = filler
        out = model(*inputs, lengths)
        loss = total_loss(out, labels, lengths, LossWeights()).total
        loss.backward()
        valid = torch.arange(9) < lengths[:, None]
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append((out.scores[valid], loss, grads))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert all(torch.isfinite(grad).all() for grad in found[1][2].values())
    assert found[1][2], "nothing received a gradient"


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_neighbours_do_not_matter(name):
    model = build(VARIANTS[name]).eval()
    image, event = torch.randn(2, 2, 11, 24)
    lengths = torch.tensor([11, 6])
    together = model(image, event, lengths).scores
    alone = model(image[1:, :6], event[1:, :6], torch.tensor([6])).scores
    # float32 sums of the attention run over another number of (masked) terms.
    torch.testing.assert_close(together[1:, :6], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_fused_and_reference_backends_agree(name):
    image, event = torch.randn(2, 3, 17, 24)
    lengths, labels = torch.tensor([17, 16, 2]), torch.tensor([1.0, 0.0, 1.0])
    results = []
    for backend in ("auto", "reference"):
        model = build(VARIANTS[name], backend).eval()
        out = model(image, event, lengths)
        total_loss(out, labels, lengths, LossWeights()).total.backward()
        valid = torch.arange(17) < lengths[:, None]
        grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((out.logits[valid], grads))
    # Same formulas, another order of float32 operations over a few layers.
    torch.testing.assert_close(results[0], results[1], rtol=2e-4, atol=2e-5)


def test_state_carries_the_recursion_across_chunks():
    config = dataclasses.replace(SMALL, layers=0, dropout=0.0)  # without attention a chunk sees what the whole sees
    model = build(config).eval()
    image, event = torch.randn(2, 2, 13, 24)
    whole = model(image, event, torch.tensor([13, 13]))
    first = model(image[:, :5], event[:, :5], torch.tensor([5, 5]))
    second = model(image[:, 5:], event[:, 5:], torch.tensor([8, 8]), state=first.state)
    chunks = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(chunks, whole.logits, rtol=1e-5, atol=1e-5)
    fresh = model(image[:, 5:], event[:, 5:], torch.tensor([8, 8]))
    assert not torch.allclose(fresh.logits, second.logits, atol=1e-4), "the state was ignored"


LOCAL = {
    "ief": dataclasses.replace(SMALL, window=1),
    "windows": dataclasses.replace(SMALL, window=4),
    "robust": dataclasses.replace(SMALL, window=1, temporal="robust-kalman"),
    "image": dataclasses.replace(SMALL, window=1, modality="image"),
    "released": dataclasses.replace(SMALL, window=1, temporal="none", released=True),
}


@pytest.mark.parametrize("name", LOCAL)
def test_context_is_a_slice_where_attention_is_local(name):
    """Attention within windows sees no context, so what comes behind it is scored as if it were not there."""
    model = build(LOCAL[name]).eval()
    image, event = torch.randn(2, 3, 12, 24)
    lengths = torch.tensor([12, 9, 4])
    out = model(image, event, lengths, context=4)
    alone = model(image[:, 4:], event[:, 4:], (lengths - 4).clamp(min=0))
    for field in dataclasses.fields(out):
        found, expected = getattr(out, field.name), getattr(alone, field.name)
        if isinstance(found, torch.Tensor) and field.name != "terms":
            assert found.shape[:2] == (3, 8)
            # The third video is all context: behind it there is nothing valid to compare.
            torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found[1, :5], expected[1, :5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ief", "paper", "robust", "gaussian", "image", "event"])
def test_context_lets_the_attention_see_what_the_state_has_seen(name):
    """Pieces with their whole past as context equal a causal computation: each piece's last window of attention."""
    model = build(VARIANTS[name]).eval()
    image, event = torch.randn(2, 2, 13, 24)
    first = model(image[:, :5], event[:, :5])
    second = model(image, event, state=first.state, context=5)
    assert second.scores.shape == (2, 8)
    # The features behind the context are those of attention over all 13, and the recursion starts from `first`.
    whole = model(image, event)
    for part in ("mu", "logvar"):
        for stream in ("image", "event"):
            found, expected = getattr(second, f"{stream}_{part}"), getattr(whole, f"{stream}_{part}")
            if found is not None:
                torch.testing.assert_close(found, expected[:, 5:], rtol=1e-5, atol=1e-6)
    without = model(image[:, 5:], event[:, 5:], state=first.state)
    assert not torch.allclose(second.logits, without.logits, atol=1e-4), "the context was ignored"
    fresh = model(image, event, context=5)
    assert not torch.allclose(second.logits, fresh.logits, atol=1e-4), "the state was ignored"


@pytest.mark.parametrize("name", ["ief", "robust", "windows"])
def test_pieces_with_context_continue_each_other(name):
    """With local attention the pieces, context and state carried, give what the whole video gives."""
    config = LOCAL[name]
    model = build(config).eval()
    image, event = torch.randn(2, 2, 24, 24)
    whole = model(image, event)
    state, logits = None, []
    for start in range(0, 24, 4):
        before = min(start, 8)  # a multiple of the window, so that windows lie where they lie in the whole
        piece = slice(start - before, start + 4)
        out = model(image[:, piece], event[:, piece], torch.tensor([before + 4] * 2), state=state, context=before)
        state = out.state
        logits.append(out.logits)
    # The chunks' recursion adds in another order.
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temporal", ["kalman", "robust-kalman"])
def test_the_state_of_a_sequence_that_ends_within_the_context_stays(temporal):
    model = build(dataclasses.replace(SMALL, temporal=temporal)).eval()
    image, event = torch.randn(2, 3, 10, 24)
    first = model(image[:, :6], event[:, :6])
    out = model(image, event, torch.tensor([10, 6, 3]), state=first.state, context=6)
    for found, before in zip(out.state, first.state, strict=True):
        torch.testing.assert_close(found[1:], before[1:], rtol=0, atol=0)
        assert not torch.equal(found[0], before[0])


def test_context_has_gradients_and_terms_of_what_is_scored_alone():
    model = build(dataclasses.replace(SMALL, window=2)).eval()
    image, event = torch.randn(2, 1, 8, 24)
    out, alone = model(image, event, context=2), model(image[:, 2:], event[:, 2:])
    # The terms are means over segments: sums over one length or the other differ in order only.
    torch.testing.assert_close(out.terms, alone.terms, rtol=1e-5, atol=1e-6)
    out.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.classifier.parameters())


def test_learned_process_noise_starts_at_the_gain_of_the_specification():
    """docs/specification.md#methods: q starts so that the steady gain on equal variances is about 0.6."""
    model = build(ModelConfig(dim=8, heads=2))
    for encoder in model.encoders.values():
        torch.nn.init.zeros_(encoder.logvar.weight)
        torch.nn.init.zeros_(encoder.logvar.bias)
    out = model.eval()(*torch.randn(2, 1, 60, 8))
    assert out.gain is not None
    assert out.gain[0, -1].mean().item() == pytest.approx(0.6, abs=0.01)


def test_fusion_weights_sum_to_one():
    out = build(SMALL).eval()(*torch.randn(2, 2, 5, 24))
    assert out.w_img is not None and out.w_evt is not None
    torch.testing.assert_close(out.w_img + out.w_evt, torch.ones_like(out.w_img))


def test_wrong_shapes_are_refused():
    model = build(SMALL)
    with pytest.raises(ValueError, match=r"image features must be \(B, T, 24\)"):
        model(torch.randn(2, 5, 23), torch.randn(2, 5, 24))
    with pytest.raises(ValueError, match="differ in shape"):
        model(torch.randn(2, 5, 24), torch.randn(2, 6, 24))
    with pytest.raises(ValueError, match=r"lengths must be \(2,\)"):
        model(*torch.randn(2, 2, 5, 24), torch.tensor([1, 2, 3]))
    for context in (-1, 6):
        with pytest.raises(ValueError, match="context must be between 0 and the 5 segments"):
            model(*torch.randn(2, 2, 5, 24), context=context)
    assert model(*torch.randn(2, 2, 5, 24), context=5).scores.shape == (2, 0)
    with pytest.raises(ValueError, match="does not divide"):
        ModelConfig(dim=10, heads=4)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("logvar", [-100.0, 100.0])
@pytest.mark.parametrize("modality", ["fusion", "image", "event"])
def test_extreme_log_variances_stay_finite(modality, logvar, backend):
    """A single stream saturates as the fusion does (docs/specification.md#precision-fusion)."""
    model = build(dataclasses.replace(SMALL, modality=modality), backend)
    for encoder in model.encoders.values():
        torch.nn.init.constant_(encoder.logvar.bias, logvar)
    image, event = torch.randn(2, 3, 9, 24)
    lengths = torch.tensor([9, 4, 1])
    out = model(image, event, lengths)
    loss = total_loss(out, torch.tensor([1.0, 0.0, 1.0]), lengths, LossWeights())
    loss.total.backward()
    assert torch.isfinite(out.scores).all() and torch.isfinite(loss.total)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_members_average_their_logits_and_carry_their_own_states():
    config = ModelConfig(dim=12, heads=2, members=3, refine_steps=1, standardize=True, projection=8)
    network = Network(config, backend="reference").eval()
    image, event = torch.randn(2, 3, 6, 12)
    for name, features in (("image", image), ("event", event)):
        network.set_statistics(name, features.flatten(0, 1))
    whole = network(image, event)
    assert whole.logits.shape == (3, 6) and whole.w_img.shape == (3, 6, 24) and len(whole.members) == 3
    torch.testing.assert_close(whole.logits, torch.stack([member.logits for member in whole.members]).mean(0))
    first = network(image[:, :4], event[:, :4])
    alone = Network(dataclasses.replace(config, members=1), backend="reference").eval()
    alone.load_state_dict(network.others[1].state_dict())
    torch.testing.assert_close(alone(image, event).logits, whole.members[2].logits)
    assert first.state.mean.shape == (3, 24)
    torch.testing.assert_close(alone(image[:, :4], event[:, :4]).state.mean, first.state.mean[:, 16:])


def test_the_projection_keeps_the_directions_of_largest_variance():
    network = Network(ModelConfig(dim=6, heads=1, standardize=True, projection=2), backend="reference")
    hidden = torch.randn(200, 2)
    network.set_statistics("event", hidden @ torch.randn(2, 6) + 3)
    projected = network.statistics["event"](hidden @ torch.randn(2, 6) + 3)
    assert projected.shape == (200, 2) and network.config.width == 2
    network.set_statistics("image", torch.randn(2, 6))  # one direction only
    assert network.statistics["image"].basis[:, 1].abs().max() == 0
    with pytest.raises(ValueError, match="projection needs standardize"):
        ModelConfig(dim=6, heads=1, projection=2)


def test_a_divided_start_gives_each_stream_its_dimensions():
    network = Network(ModelConfig(dim=8, heads=2, refine_steps=1), backend="reference").eval()
    network.start_divided(0.25)
    network.start_at_zero()
    weights = network(*torch.randn(2, 1, 3, 8) * 0.01)
    assert (weights.scores == 0.5).all()
    for encoder in network.encoders.values():
        torch.nn.init.zeros_(encoder.logvar.weight)
    weights = network(*torch.randn(2, 1, 3, 8)).w_img
    assert weights[..., :2].min() > 0.95 and weights[..., 2:].max() < 0.05


def test_low_rank_covariances_start_as_diagonal_ones_and_change_the_loss_and_the_scores():
    plain, correlated = build(SMALL).eval(), build(VARIANTS["low rank"]).eval()
    names = {f"fusion.raw_factor_{name}" for name in ("img", "evt")}
    assert correlated.state_dict().keys() - plain.state_dict().keys() == names
    for name, value in plain.state_dict().items():
        assert torch.equal(value, correlated.state_dict()[name]), f"{name} starts differently"
    image, event = torch.randn(2, 2, 9, 24)
    lengths, labels = torch.tensor([9, 4]), torch.tensor([1.0, 0.0])

    def both() -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = [model(image, event, lengths) for model in (plain, correlated)]
        return [(out.logits, total_loss(out, labels, lengths, LossWeights()).kl) for out in found]

    torch.testing.assert_close(*both(), rtol=0.03, atol=0.03)  # the factors' columns have a norm of 0.1
    with torch.no_grad():
        for name in names:
            correlated.get_parameter(name).mul_(20)
    (logits, kl), (other, larger) = both()
    assert not torch.allclose(logits, other, rtol=0.03, atol=0.03) and larger > kl + 0.03


def test_a_rank_is_saved_and_a_network_without_one_is_saved_as_before(tmp_path):
    for name in ("ief", "low rank"):
        build(VARIANTS[name]).save_pretrained(tmp_path / name)
    plain, correlated = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ief", "low rank"))
    assert correlated.keys() - plain.keys() == {"covariance_rank"} and correlated["covariance_rank"] == 2
    # What version 0.1 saved, so that files are the same and fingerprints of earlier calibrations still fit.
    assert " ".join(saved_values(SMALL)) == (
        "dim hidden layers heads dropout window standardize projection members modality noise nu temporal process_noise"
        " refine_steps attenuation eps released"
    )
    again = IEFVAD.from_pretrained(str(tmp_path / "low rank"))
    assert again.config == VARIANTS["low rank"]
    for name, value in build(VARIANTS["low rank"]).state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert IEFVAD.from_pretrained(str(tmp_path / "ief")).config == SMALL


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"modality": "event"}, "one modality"),
        ({"released": True}, "released"),
        ({"covariance_rank": -1}, "must be at least 0"),
    ],
)
def test_a_rank_needs_the_fusion(changes, reason):
    with pytest.raises(ValueError, match=reason):
        dataclasses.replace(SMALL, **{"covariance_rank": 2} | changes)
