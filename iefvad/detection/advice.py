"""Warnings about detection: a model of another world than the footage, too much flagged, saturated scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from iefvad.detection.threshold import Rule
from iefvad.model.standardize import Standardize
from iefvad.scoring.video_scores import Interval, VideoScores
from iefvad.utils.advice import Advice, score_text

HALF = 0.5
"""Fraction of the footage that is much to flag."""

SHORTEST = 10
"""Segments from which footage that is mostly flagged is worth a warning: a short clip may be abnormal as a whole."""

SATURATED = 0.999
"""A threshold above this leaves little room for scores of anomalies."""


def model_advice(provenance: Mapping[str, Any]) -> list[Advice]:
    """Warn where the model knows rendered scenes only."""
    if not provenance.get("rendered"):
        return []
    return [
        Advice(
            "This model was trained on rendered scenes only. Its scores of real footage mean nothing.",
            "Train on your own footage: iefvad extract, then iefvad train --features STORE (docs/dataset.md).",
        )
    ]


def rule_advice(rule: Rule) -> list[Advice]:
    """Warn where the threshold is so near to 1 that hardly a score can reach it."""
    if rule.threshold <= SATURATED or rule.origin == "--threshold":
        return []
    return [
        Advice(
            f"The threshold is {score_text(rule.threshold)}: normal footage has scores near 1, so hardly anything can"
            " be flagged.",
            "Add normal footage of this camera to the training videos, train again, and calibrate again.",
        )
    ]


@dataclass
class Flagged:
    """How much of the footage is flagged, over any number of videos."""

    segments: int = 0
    seconds: float = 0.0
    flagged: float = 0.0

    def add(self, scores: VideoScores, intervals: Sequence[Interval]) -> Flagged:
        """Add a video, and return this object."""
        self.segments += scores.scores.size
        self.seconds += scores.seconds
        self.flagged += sum(end - start for start, end, _ in intervals)
        return self


def flagged_advice(footage: Flagged) -> list[Advice]:
    """Warn where more than half of the footage is flagged, unless it is a few segments."""
    if footage.segments < SHORTEST or footage.flagged <= HALF * footage.seconds:
        return []
    return [
        Advice(
            f"{footage.flagged / footage.seconds:.0%} of the footage is flagged: the threshold or the model"
            " does not fit it.",
            "Calibrate on normal footage of this camera (iefvad calibrate RUN NORMAL_VIDEO), or train on it.",
        )
    ]


def familiar_advice(
    provenance: Mapping[str, Any], statistics: Mapping[str, Any], means: Mapping[str, Tensor]
) -> list[Advice]:
    """Warn where the features of a video are far from those of the training videos.

    Args:
        provenance: What is known of the model; "familiar" has the limits.
        statistics: Modality → `Standardize` of the network.
        means: Modality → mean features of the video, (D,).
    """
    limits = provenance.get("familiar") or {}
    far = []
    for name, limit in limits.items():
        known = dict(statistics).get(name)
        if not isinstance(known, Standardize) or name not in means or not isinstance(limit, int | float):
            continue
        mean = means[name].double()
        size = len(mean)
        centre, scale = known.centre[:size].double().cpu(), known.scale[:size].double().cpu()
        distance = float(((mean.cpu() - centre) / scale).square().mean())
        if distance > limit:
            far.append(f"{name} {distance:.3g}, limit {limit:.3g}")
    if not far:
        return []
    return [
        Advice(
            f"The features are unlike those of the training videos (distance: {'; '.join(far)}): another camera, place"
            " or light.",
            "Train on footage of this camera, or do not trust these scores.",
        )
    ]
