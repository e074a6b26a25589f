"""Warnings about a training and its results, and the limits by which detection knows its kind of footage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from iefvad.data.batches import Clips
from iefvad.model.networks import LearnedNetwork
from iefvad.utils.advice import Advice

NEAR = 0.9
"""Fraction of ln 2 from which a classification loss is near ln 2, the loss of a network that says 1/2 everywhere."""

FEW = 10
"""Number of test videos below which figures are noise."""

LINEAR_PROBE = "linear probe"

_MARGIN = 2.0
"""A video of the training's kind may be this much further from the training videos than the farthest of these."""


def loss_advice(history: Sequence[Mapping[str, Any]], model: str, *, preset: str) -> list[Advice]:
    """Warn where the last classification loss of a model, mean over its seeds, is near ln 2.

    Args:
        history: Rows of log.jsonl.
        model: The model.
        preset: Preset of the training.
    """
    last = {row["seed"]: row for row in history if row["model"] == model and "loss_cls" in row}
    if not last:
        return []
    loss = sum(row["loss_cls"] for row in last.values()) / len(last)
    if not loss > NEAR * math.log(2):
        return []
    other = "" if preset == "own" else ", with --preset own"
    return [
        Advice(
            f"The classification loss ended at {loss:.3f}, near ln 2 = 0.693: the model has learned almost nothing.",
            f"Train longer (--min-steps 1000){other} or with a higher --lr, and check the labels.",
        )
    ]


def results_advice(
    metrics: Mapping[str, Mapping[str, Any]], model: str, videos: int, *, preset: str | None
) -> list[Advice]:
    """Warn where a simpler way has a higher AUC or AP than the model, or where there are few test videos.

    Args:
        metrics: Metrics by model, as metrics.json holds them.
        model: The model.
        videos: Number of test videos.
        preset: Preset of the training; None for a detector of normal footage, which was not trained.
    """
    found = []
    other = {
        None: ", or train on videos with anomalies too, without --normal-only",
        "own": "",
        "synth": ", or train longer (--epochs)",
    }.get(preset, ", or train with --preset own")
    simple = {
        "event density": f"Use the event density until there are more training videos{other}.",
        LINEAR_PROBE: "Give more training videos, or choose other settings: the network adds nothing to its features.",
    }
    for name, remedy in simple.items():
        higher = [
            f"{title} {metrics[name][key]:.3f} against {metrics[model][key]:.3f}"
            for key, title in (("auc", "AUC"), ("ap", "AP"))
            if name in metrics and name != model
            if metrics[name].get(key) is not None and metrics[model].get(key) is not None
            if metrics[name][key] > metrics[model][key]
        ]
        if higher:
            found.append(Advice(f"The {name} beats the {model} model on the test videos: {', '.join(higher)}.", remedy))
    if videos < FEW:
        found.append(
            Advice(
                f"There are {videos} test videos. With fewer than {FEW} the figures are mostly chance.",
                "Give more test videos, of other scenes or days than the training videos.",
            )
        )
    return found


def familiar_limits(model: LearnedNetwork, clips: Clips) -> dict[str, float]:
    """Return how far a video's mean features may be from those of the training videos, per modality.

    The distance is the mean square of the standardised mean (`iefvad.detection.advice`). The limit is twice the largest
    distance of a training video from the others.

    Args:
        model: The network. One that does not standardise its features has no limits.
        clips: Its training clips.
    """
    limits = {}
    streams = {"image": 0, "event": 1}
    owners = torch.tensor([index for index, _ in clips.items])
    statistics = model.statistics
    assert isinstance(statistics, nn.ModuleDict)
    for name in statistics if len(clips.videos) > 2 else ():
        totals: dict[int, list[torch.Tensor]] = {}
        for position, owner in enumerate(owners.tolist()):
            rows = clips[position][streams[name]].double().cpu()
            part = [torch.tensor(float(len(rows))), rows.sum(0), rows.square().sum(0)]
            totals[owner] = [a + b for a, b in zip(totals[owner], part, strict=True)] if owner in totals else part
        count, sums, squares = (torch.stack([total[i] for total in totals.values()]) for i in range(3))
        count = count.unsqueeze(-1)
        others = count.sum(0) - count
        centre = (sums.sum(0) - sums) / others
        scale = ((squares.sum(0) - squares) / others - centre.square()).clamp(min=0).sqrt() + 0.05
        distances = ((sums / count - centre) / scale).square().mean(-1)
        limits[name] = _MARGIN * float(distances.max())
    return limits
