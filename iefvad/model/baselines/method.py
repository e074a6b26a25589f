"""What every baseline is: features to logits, and its own loss. Helpers for videos of unequal length."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Found(NamedTuple):
    """What a method finds in B videos of T segments.

    Attributes:
        logits: (B, T).
        features: (B, T, H), what the classifier sees.
        parts: Further tensors that the loss needs, by name.
    """

    logits: Tensor
    features: Tensor
    parts: dict[str, Tensor]


Mil = Literal["topk", "segment"]


class Parts(NamedTuple):
    """A loss in the parts that the log shows, each with its weight: classification, KL and all else. Scalars."""

    cls: Tensor
    kl: Tensor
    reg: Tensor


class Method(nn.Module):
    """Base of the methods."""

    def forward(self, x: Tensor, valid: Tensor) -> Found:
        """Score segments.

        Args:
            x: (B, T, W) features, zeros in the padding. Methods for two streams split W in image and event.
            valid: (B, T) bool, True for segments. Padding changes no result at a valid segment.
        """
        raise NotImplementedError

    def loss(self, found: Found, labels: Tensor, valid: Tensor, mil: Mil = "topk") -> Parts:
        """Return the loss of a batch.

        Args:
            found: What `forward` returned.
            labels: (B,) float, 1 for abnormal.
            valid: (B, T) bool.
            mil: As in `iefvad.model.losses.video_log_probs`, for methods whose paper does not state it.
        """
        raise NotImplementedError


class TemporalConv(nn.Conv1d):
    """Convolution over time, (B, T, in) → (B, T, out). Zeros in the padding count as behind the end of a video."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve features that are zero in the padding."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def attention_mask(valid: Tensor, window: int | None = None) -> Tensor:
    """Return who may attend to whom, (B, T, T) bool. Padding attends to itself: a softmax over nothing is NaN."""
    position = torch.arange(valid.shape[1], device=valid.device)
    mask = valid.unsqueeze(1) | (position == position.unsqueeze(1))
    if window is not None:
        mask = mask & (position // window == (position // window).unsqueeze(1))
    return mask


def masked_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension of the elements where the mask is True; the others get 0."""
    return values.masked_fill(~mask, -torch.inf).softmax(-1)


def highest(values: Tensor, valid: Tensor, count: int | Tensor) -> Tensor:
    """Choose the `count` highest valid segments of each video, or all where there are fewer.

    Args:
        values: (B, T).
        valid: (B, T) bool.
        count: One number, or one per video, (B,).

    Returns:
        (B, T) bool. It has no gradient.
    """
    order = values.detach().masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    position = torch.arange(values.shape[1], device=values.device)
    wanted = count.unsqueeze(1) if isinstance(count, Tensor) else count
    chosen = torch.zeros_like(valid).scatter(1, order, (position < wanted).expand_as(valid))
    return chosen & valid


def over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen segments per video, (B, T) → (B,), or (B, T, H) → (B, H); 0 where none is chosen."""
    weight = chosen.to(values.dtype)
    count = weight.sum(1).clamp(min=1)
    if values.dim() == 3:
        weight, count = weight.unsqueeze(-1), count.unsqueeze(-1)
    return (values * weight).sum(1) / count


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen elements of a tensor; 0 where none is chosen."""
    weight = chosen.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def entropies(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy per element; NaN where the probability is NaN, which torch's function refuses."""
    unknown = probabilities.isnan()
    found = F.binary_cross_entropy(torch.where(unknown, 0.5, probabilities), targets, reduction="none")
    return torch.where(unknown, torch.nan, found)


def ranking(high: Tensor, low: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin − high_i + low_j) over the pairs of an abnormal video i and a normal video j.

    Args:
        high: (B,), the value of each video if it is abnormal.
        low: (B,), the value of each video if it is normal.
        labels: (B,), 1 for abnormal.
        margin: Margin.
    """
    abnormal = labels > 0.5
    return mean_of(F.relu(margin - high.unsqueeze(1) + low), abnormal.unsqueeze(1) & ~abnormal)


def smoothness(scores: Tensor, valid: Tensor) -> Tensor:
    """Sum of squared differences of neighbouring scores per video, (B, T) → (B,)."""
    steps = (scores[:, 1:] - scores[:, :-1]).square()
    return (steps * (valid[:, 1:] & valid[:, :-1])).sum(1)


def sparsity(scores: Tensor, valid: Tensor) -> Tensor:
    """Sum of the scores per video, (B, T) → (B,)."""
    return (scores * valid).sum(1)


def topk_count(valid: Tensor) -> Tensor:
    """Return min(⌊length/16⌋ + 1, length) per video, (B,): the field's number of highest segments."""
    lengths = valid.sum(1)
    return torch.minimum(lengths // 16 + 1, lengths)
