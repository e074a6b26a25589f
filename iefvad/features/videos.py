"""Videos and benchmarks in memory. Features are read from disk only when they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iefvad.features.readers import Reader
from iefvad.utils.errors import UserError


@dataclass
class Video:
    """One video of a benchmark.

    Attributes:
        name: Name of the video.
        classes: Its anomaly classes, empty if it is normal.
        segments: Number of segments T.
        fps: Frames per second.
        frames: Number of decoded frames.
        truth: Frame labels, uint8 (16·T,), or None if only the classes are known.
        event_density: float32 (T,), or None.
        source: Path of the video file, if known.
        starts: Start of each segment in seconds, float64 (T,). None where only frames can be counted.
        ends: End of each segment in seconds, float64 (T,), or None.
        crops: Crop numbers that `features` accepts.
        reader: Reads the features.
    """

    name: str
    classes: tuple[str, ...]
    segments: int
    fps: float
    frames: int
    truth: np.ndarray | None = None
    event_density: np.ndarray | None = None
    source: str | None = None
    starts: np.ndarray | None = None
    ends: np.ndarray | None = None
    crops: tuple[int, ...] = (0,)
    reader: Reader | None = field(default=None, repr=False)

    def features(self, crop: int) -> tuple[Tensor, Tensor]:
        """Read the features of one crop from disk.

        Args:
            crop: One of `crops`.

        Returns:
            Image and event features, float32 (T, D) each.

        Raises:
            UserError: The video does not have this crop, features contain NaN or infinity (unless loaded with
                ``nan="zero"``), or files are damaged or have different lengths.
        """
        if crop not in self.crops or self.reader is None:
            raise UserError(f"{self.name} has the crops {list(self.crops)}, not {crop}; choose one of them")
        image, event = self.reader(crop)
        return torch.from_numpy(image), torch.from_numpy(event)


@dataclass
class Benchmark:
    """Training and test videos of one data set.

    Attributes:
        name: Name of the data set.
        train: Training videos.
        test: Test videos, in the order of the test list.
        dim: Width D of the features.
        notes: What a reader of results must know.
        settings: Settings of the encoders, from a store. Empty if unknown.
    """

    name: str
    train: list[Video]
    test: list[Video]
    dim: int
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def resample(features: Tensor, bins: int = 256) -> Tensor:
    """Average features over uniform bins along time (`docs/specification.md#data-conventions`).

    Bin i covers rows ⌊iT/bins⌋ to ⌊(i+1)T/bins⌋ − 1, as in the field's loaders.

    Args:
        features: (T, D).
        bins: Number of bins.

    Returns:
        (bins, D) of the same dtype, or ``features`` itself if T ≤ bins.
    """
    length = len(features)
    if length <= bins:
        return features
    edges = torch.arange(bins + 1, device=features.device) * length // bins
    sums = torch.zeros(length + 1, *features.shape[1:], dtype=torch.float64, device=features.device)
    torch.cumsum(features.double(), 0, out=sums[1:])
    counts = (edges[1:] - edges[:-1]).reshape(-1, *[1] * (features.dim() - 1))
    return ((sums[edges[1:]] - sums[edges[:-1]]) / counts).to(features.dtype)


def pad_batch(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack B sequences (T_i, D) into one batch.

    Returns:
        The batch (B, max T, D), zero after the end of each sequence, and the lengths, int64 (B,).
    """
    lengths = torch.tensor([len(sequence) for sequence in features], dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True), lengths
