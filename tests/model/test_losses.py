"""Multiple-instance loss against a plain loop, at the extremes, and with padding."""

from __future__ import annotations

import itertools

import pytest
import torch

from iefvad.model.losses import mil_loss, video_log_probs


def plain_probability(logits: torch.Tensor, length: int, mil: str) -> torch.Tensor:
    """The rule of docs/specification.md#training for one video, written as a loop over segments."""
    p = torch.sigmoid(logits[:length])
    if mil == "topk":
        return p.sort(descending=True).values[: length // 16 + 1].mean()
    runs = max(1, length // 16)
    ends = [length * number // runs for number in range(runs + 1)]
    return torch.stack([p[start:end].mean() for start, end in itertools.pairwise(ends)]).max()


@pytest.mark.parametrize("segments", [17, 31, 33, 47])
def test_a_run_of_segments_is_never_short(segments):
    """One high segment counts the same wherever it is, also at the end: its run has 16 to 31 segments."""
    found = []
    for position in (0, segments // 2, segments - 2, segments - 1):
        logits = torch.full((1, segments), -3.0)
        logits[0, position] = 3.0
        log_p, _ = video_log_probs(logits, torch.tensor([segments]), "segment")
        found.append(log_p.exp().item())
    assert max(found) < 0.11 and max(found) / min(found) < 1.1


@pytest.mark.parametrize("mil", ["topk", "segment"])
@pytest.mark.parametrize("segments", [1, 15, 16, 17, 33, 70])
def test_equals_plain_loop_and_ignores_padding(mil, segments):
    torch.manual_seed(segments)
    lengths = torch.tensor([segments, max(1, segments // 2), 1])
    logits = torch.randn(3, segments, dtype=torch.float64)
    labels = torch.tensor([1.0, 0.0, 1.0])
    p = torch.stack([plain_probability(row, int(n), mil) for row, n in zip(logits, lengths, strict=True)])
    expected = torch.nn.functional.binary_cross_entropy(p, labels.double())
    padded = logits.clone()
    for row, n in zip(padded, lengths, strict=True):
        row[n:] = torch.nan
    padded.requires_grad_()
    loss = mil_loss(padded, labels, lengths, mil)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    for row, n in zip(padded.grad, lengths, strict=True):
        assert torch.isfinite(row).all()
        assert (row[n:] == 0).all()


@pytest.mark.parametrize("mil", ["topk", "segment"])
def test_stays_finite_where_probabilities_round_to_zero_and_one(mil):
    logits = torch.tensor([[200.0] * 20, [-200.0] * 20], requires_grad=True)
    lengths = torch.tensor([20, 20])
    loss = mil_loss(logits, torch.tensor([0.0, 1.0]), lengths, mil)
    assert loss.item() == pytest.approx(200.0, rel=1e-6)
    loss.backward()
    # Fully wrong predictions keep their full gradient: 1 a video, halved by the mean over two videos.
    assert logits.grad[0].sum().item() == pytest.approx(0.5, rel=1e-5)
    assert logits.grad[1].sum().item() == pytest.approx(-0.5, rel=1e-5)


@pytest.mark.parametrize("mil", ["topk", "segment"])
def test_gradcheck(mil):
    torch.manual_seed(0)
    logits = torch.randn(2, 35, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([35, 20])
    labels = torch.tensor([1.0, 0.0])
    assert torch.autograd.gradcheck(lambda x: mil_loss(x, labels, lengths, mil), (logits,))


def test_video_without_segments_is_undecided():
    logits = torch.randn(2, 5, requires_grad=True)
    log_p, log_q = video_log_probs(logits, torch.tensor([0, 5]))
    assert log_p[0].exp().item() == pytest.approx(0.5)
    (log_p + log_q).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[0] == 0).all()
