"""Makes the detector from normal footage: densities of all of it, precisions and calibration from held-out parts.

Source: `docs/specification.md#normal-only`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from iefvad.model.normality.config import MOST_ROWS, Density, NormalityConfig
from iefvad.model.normality.densities import Density as StreamDensity
from iefvad.model.normality.densities import make_density
from iefvad.model.normality.network import NormalityNetwork
from iefvad.model.normality.tail import curve_of

GROUPS = 5
"""Number of groups that are held out in turn. Neighbours in the list share a group: clips of one recording follow each
other, and they resemble each other."""

FEWEST = 8
"""Minimum number of normal segments: with fewer, held-out parts say nothing."""

MOST_SEGMENTS = 50_000
"""Maximum number of segments that the densities are made from, nine hours at 25 frames per second. With 1,280
dimensions they take 512 MB per stream in float64. Of more footage, evenly spaced segments of each video are taken."""

Features = Mapping[str, Tensor]
"""Stream → features of all crops, (C, T, D)."""


class Fitted(NamedTuple):
    """A detector and what was measured on held-out footage.

    Attributes:
        network: The detector.
        held_out: Scores of every video by densities that have not seen it, (T,) float32 each.
        groups: Number of groups that were held out in turn.
        blocks: Whether the groups are blocks of a single video.
        used: Number of segments that the densities were made from.
    """

    network: NormalityNetwork
    held_out: list[np.ndarray]
    groups: int
    blocks: bool
    used: int


def fit_normality(
    read: Callable[[int], Features],
    lengths: Sequence[int],
    *,
    density: Density,
    modality: str,
    per_hour: float,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Make a detector from normal videos. Draws no random number.

    Args:
        read: Number of a video → its features. It is called twice per video.
        lengths: Number of segments of each video.
        density: The density.
        modality: "fusion", or the only stream.
        per_hour: Segments per hour of the videos.
        device: Where it is computed, and where the detector is afterwards.

    Raises:
        ValueError: there are too few segments, or features of a stream are the same in all of them.
    """
    total = sum(lengths)
    if total < FEWEST:
        raise ValueError(f"{total} normal segments of 16 frames are too few: at least {FEWEST} are needed")
    step = -(-total // MOST_SEGMENTS)
    samples: dict[str, list[Tensor]] = {}
    for index in range(len(lengths)):
        for name, x in read(index).items():
            samples.setdefault(name, []).append(x[:, ::step].to(device))
    streams = list(samples)
    dim = samples[streams[0]][0].shape[-1]
    for name in streams:
        if not any((x != samples[name][0][0, 0]).any() for x in samples[name]):
            raise ValueError(f"the {name} features are the same in all normal segments")
    blocks = len(lengths) == 1
    groups = min(GROUPS, lengths[0] if blocks else len(lengths))

    def group_of(index: int) -> np.ndarray:
        """Return the group of each segment of a video."""
        if blocks:
            return np.arange(lengths[0]) * groups // lengths[0]
        return np.full(lengths[index], index * groups // len(lengths))

    def density_of(name: str, without: int | None) -> StreamDensity:
        parts = []
        for index, x in enumerate(samples[name]):
            kept = torch.from_numpy(group_of(index)[::step] != without).to(device)
            parts.append(x[:, kept].flatten(0, 1))
        rows = torch.cat(parts).double()
        stored = min(len(rows), MOST_ROWS) if density == "knn" else 0
        made = make_density(NormalityConfig(density, dim, rows=stored)).to(device)
        made.fit(rows)
        return made

    # One group after the other, so that only its densities are in memory.
    distances = [torch.zeros(0)] * len(lengths)
    for group in range(groups):
        made = {name: density_of(name, group) for name in streams}
        for index, length in enumerate(lengths):
            chosen = torch.from_numpy(group_of(index) == group)
            if not chosen.any():
                continue
            features = read(index)
            if not len(distances[index]):
                distances[index] = torch.zeros(len(features[streams[0]]), length, len(streams), dtype=torch.float64)
            found = [made[name](features[name][:, chosen].to(device)).cpu() for name in streams]
            distances[index][:, chosen] = torch.stack(found, -1)
    all_distances = torch.cat([part.flatten(0, 1) for part in distances])
    means, variances = all_distances.mean(0), all_distances.var(0, correction=0).clamp(min=1e-12)
    weights = (1 / variances) / (1 / variances).sum()
    curve = curve_of((all_distances - means) @ weights)
    rows = sum(x.shape[0] * x.shape[1] for x in samples[streams[0]])
    config = NormalityConfig(
        density,
        dim,
        "fusion" if len(streams) > 1 else modality,  # type: ignore[arg-type]
        rows=min(rows, MOST_ROWS) if density == "knn" else 0,
        knots=len(curve.points),
    )
    network = NormalityNetwork(config).to(device).eval()
    network.means.copy_(means)
    network.precisions.copy_(1 / variances)
    network.tail.fit(curve, per_hour)
    for name in streams:
        network.densities[name] = density_of(name, None)
    held_out = []
    with torch.inference_mode():
        for part in distances:
            scores = torch.sigmoid(network.tail(network.fuse(part.to(device))))
            held_out.append(scores.float().mean(0).cpu().numpy())
    return Fitted(network, held_out, groups, blocks, rows)
