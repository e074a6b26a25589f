"""From a deviation to a score: how rarely normal footage deviates as much.

Source: `docs/specification.md#normal-only`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

MOST_POINTS = 256
"""Maximum number of points of a new curve. More of them do not change its form."""

HEAVIEST = 0.5
"""Largest shape of the tail. Few exceedances may suggest more, and then no deviation would ever be rare."""


class Curve(NamedTuple):
    """What held-out normal deviations say, in float64.

    Attributes:
        points: (K,), ascending deviations without repetition; the last one is where the tail begins.
        surprisals: (K,), −log of the probability that a normal segment deviates at least as much.
        spread: Standard deviation of the deviations.
        scale: Scale β of the generalised Pareto tail.
        shape: Shape ξ of the tail, at least 0, so that no deviation has probability 0.
    """

    points: Tensor
    surprisals: Tensor
    spread: Tensor
    scale: Tensor
    shape: Tensor


def curve_of(deviations: Tensor) -> Curve:
    """Describe held-out deviations (N,) of normal segments: their order statistics, and a tail for the highest tenth.

    The tail is fitted by probability-weighted moments (Hosking and Wallis, 1987, Parameter and quantile estimation for
    the generalized Pareto distribution, section 3), with ξ between 0 and `HEAVIEST`.
    """
    values = deviations.double().sort().values
    count = len(values)
    beyond = min(max(count // 10, min(10, count // 2)), count - 1)
    kept = count - beyond
    # The i-th of N values is exceeded with probability (N − i + 1)/(N + 1). Of equal values the first counts: at least
    # as much is reached most often.
    rank = torch.linspace(0, kept - 1, min(kept, MOST_POINTS), dtype=torch.float64).round().long()
    points = values[rank].unique()
    first = torch.searchsorted(values, points)
    surprisals = -torch.log((count - first.double()) / (count + 1))
    spread = values.std(correction=0).clamp(min=1e-6)
    excess = values[kept:] - points[-1]
    mean, shape = excess.mean() if beyond else spread, torch.zeros((), dtype=torch.float64)
    if beyond >= 2:
        weights = torch.arange(beyond - 1, -1, -1, dtype=torch.float64) / (beyond - 1)
        moment = (weights * excess).mean()
        if mean > 2 * moment:
            shape = (2 - mean / (mean - 2 * moment)).clamp(0.0, HEAVIEST)
    # A tail that ends at once would make every step beyond the footage an alarm.
    scale = torch.maximum(mean * (1 - shape), 0.05 * spread)
    return Curve(points, surprisals, spread, scale, shape)


class Tail(nn.Module):
    """Deviation u → surprisal L(u) = −log P(a normal segment deviates at least as much) → score.

    The score is L/(L + log H), where H is the number of segments per hour. So normal footage reaches the score s
    H^(1 − s/(1 − s)) times per hour: 0.5 once per hour, 0.4 about H^(1/3) times.

    Args:
        knots: K, number of points of the curve.
    """

    points: Tensor
    surprisals: Tensor
    spread: Tensor
    scale: Tensor
    shape: Tensor
    per_hour: Tensor

    def __init__(self, knots: int) -> None:
        super().__init__()
        self.register_buffer("points", torch.arange(knots).float())
        self.register_buffer("surprisals", torch.ones(knots))
        for name in ("spread", "scale", "shape", "per_hour"):
            self.register_buffer(name, torch.ones(()))

    def fit(self, curve: Curve, per_hour: float) -> None:
        """Take the curve, and the number of segments per hour of video."""
        for name, value in curve._asdict().items():
            getattr(self, name).copy_(value)
        self.per_hour.fill_(max(per_hour, 2.0))

    def surprisal(self, deviation: Tensor) -> Tensor:
        """Return L(u), float64, positive and increasing. Deviations have any shape."""
        u = deviation.double().contiguous()
        points, levels = self.points.double(), self.surprisals.double()
        last = len(points) - 1
        right = torch.searchsorted(points, u).clamp(min(1, last), last)
        left = (right - 1).clamp(min=0)
        width = (points[right] - points[left]).clamp(min=1e-300)
        inside = levels[left] + (levels[right] - levels[left]) * ((u - points[left]) / width).clamp(0, 1)
        below = levels[0] * ((u - points[0]) / self.spread.double()).clamp(max=0).exp()
        steps = (u - points[-1]).clamp(min=0) / self.scale.double()
        shape = self.shape.double()
        beyond = steps if shape == 0 else torch.log1p(shape * steps) / shape
        return torch.where(u < points[0], below, torch.where(u > points[-1], levels[-1] + beyond, inside))

    def forward(self, deviation: Tensor) -> Tensor:
        """Return logits of the scores, log(L(u)/log H), float64."""
        return self.surprisal(deviation).clamp(min=1e-300).log() - self.per_hour.double().log().log()
