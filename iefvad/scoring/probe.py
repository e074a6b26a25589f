"""The linear probe: a logistic regression on the averaged features of a video, to compare networks with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iefvad.features.videos import Video
from iefvad.scoring.scorer import as_scores, choose_crops
from iefvad.scoring.video_scores import VideoScores

MOST = 2000
"""Training videos up to which there is a probe: it solves equations with one unknown per video."""

_STRENGTH = 1.0
_STEPS = 20


def probe_scores(train: Sequence[Video], test: Sequence[Video], crops: str) -> list[VideoScores] | None:
    """Fit a ridge logistic regression on the mean features of the training videos, and score segments with it.

    Features of both streams are standardised over the training videos' segments. Both classes weigh the same.

    Args:
        train: Training videos with labels.
        test: Videos to score.
        crops: The crops that are read, as in `choose_crops`.

    Returns:
        Scores of the test videos; None where there are more than `MOST` training videos, or only one class.
    """
    labels = torch.tensor([float(bool(video.classes)) for video in train], dtype=torch.float64)
    if len(train) > MOST or not 0 < float(labels.sum()) < len(labels):
        return None
    moments = [_moments(_features(video, crops)) for video in train]
    count = sum(number for number, _, _ in moments)
    centre = torch.stack([number * mean for number, mean, _ in moments]).sum(0) / count
    square = torch.stack([number * square for number, _, square in moments]).sum(0) / count
    scale = ((square - centre.square()).clamp(min=0).sqrt() + 0.05) * len(centre) ** 0.5
    rows = torch.stack([(mean - centre) / scale for _, mean, _ in moments])
    weight, bias = fit_logistic(rows, labels)
    result = []
    for video in test:
        scores = torch.sigmoid((_features(video, crops) - centre) / scale @ weight + bias)
        rest = np.full((len(scores), 3), np.nan, np.float32)
        result.append(as_scores(video, np.column_stack([scores.numpy().astype(np.float32), rest])))
    return result


def _features(video: Video, crops: str) -> Tensor:
    """Return the features of both streams side by side, mean over the crops, (T, 2 D) float64."""
    chosen = choose_crops(video.crops, crops)
    return torch.stack([torch.cat(video.features(crop), -1).double() for crop in chosen]).mean(0)


def _moments(features: Tensor) -> tuple[int, Tensor, Tensor]:
    return len(features), features.mean(0), features.square().mean(0)


def fit_logistic(rows: Tensor, labels: Tensor, strength: float = _STRENGTH) -> tuple[Tensor, Tensor]:
    """Fit a logistic regression with a ridge penalty by Newton's method, in the span of the rows.

    Args:
        rows: (N, D) float64.
        labels: (N,) float64, 0 or 1, both present.
        strength: Weight of half the squared norm of the weights, against a sum of N losses.

    Returns:
        Weights (D,) and bias, a scalar.
    """
    number, positive = len(labels), labels.sum()
    balance = number / 2 * torch.where(labels > 0, 1 / positive, 1 / (number - positive))
    gram = rows @ rows.T
    dual, bias = torch.zeros_like(labels), labels.new_zeros(())
    system = labels.new_zeros(number + 1, number + 1)
    system[:number, number] = system[number, :number] = 1
    for _ in range(_STEPS):
        logits = gram @ dual + bias
        p = torch.sigmoid(logits)
        curvature = balance * p * (1 - p) + 1e-9
        target = logits - balance * (p - labels) / curvature
        system[:number, :number] = gram + torch.diag(strength / curvature)
        solved = torch.linalg.solve(system, torch.cat([target, labels.new_zeros(1)]))
        dual, bias = solved[:number], solved[number]
    return rows.T @ dual, bias
