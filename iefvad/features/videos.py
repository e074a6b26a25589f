"""Videos and benchmarks in memory: what is known of each video, and its features, read when asked for."""

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
    """One video: ``classes`` (none if normal), ``segments`` T, ``fps``, ``frames`` decoded.

    ``truth`` is (16·T,) uint8, or None where only the label is known. ``event_density`` is (T,) or None; ``source``
    the video file's path if known; ``crops`` the crop numbers that :meth:`features` serves.
    """

    name: str
    classes: tuple[str, ...]
    segments: int
    fps: float
    frames: int
    truth: np.ndarray | None = None
    event_density: np.ndarray | None = None
    source: str | None = None
    crops: tuple[int, ...] = (0,)
    reader: Reader | None = field(default=None, repr=False)

    def features(self, crop: int) -> tuple[Tensor, Tensor]:
        """Image and event features of one crop, (T, D) float32 each, read from disk now.

        Raises UserError for a crop that is not there, NaN or infinity (unless loaded with ``nan="zero"``), and files
        that are damaged or disagree in length.
        """
        if crop not in self.crops or self.reader is None:
            raise UserError(f"{self.name} has the crops {list(self.crops)}, not {crop}; choose one of them")
        image, event = self.reader(crop)
        return torch.from_numpy(image), torch.from_numpy(event)


@dataclass
class Benchmark:
    """Training and test videos with features of ``dim`` dimensions; ``notes`` say what a reader of results must know.

    ``settings`` are the encoders' (from a store), empty where they are unknown.
    """

    name: str
    train: list[Video]
    test: list[Video]
    dim: int
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def resample(features: Tensor, bins: int = 256) -> Tensor:
    """Average (T, D) over ``bins`` uniform bins along time when T > bins, else return it unchanged.

    Bin i covers rows ⌊iT/bins⌋ to ⌊(i+1)T/bins⌋ − 1, as in the field's loaders (SPEC §4).
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
    """Stack (T_i, D) into (B, max T, D), zero behind each end, with the lengths (B,) int64."""
    lengths = torch.tensor([len(sequence) for sequence in features], dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True), lengths
