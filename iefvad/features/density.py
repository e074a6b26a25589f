"""The event density as one more dimension of the features.

A network of few videos starts from the density (`ModelConfig.density_prior`), which needs no training and no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iefvad.features.readers import Reader
from iefvad.features.videos import Benchmark
from iefvad.utils.errors import UserError

_SMALLEST = 1e-3
"""Densities far below this are all the same. A quiet picture has about as many events."""


def with_density(image: Tensor, event: Tensor, density: Sequence[float] | np.ndarray) -> tuple[Tensor, Tensor]:
    """Append the density to the features: log(1 + density / 0.001) to those of the events, 0 to those of the image.

    Args:
        image: Image features, (..., T, D).
        event: Event features, (..., T, D).
        density: Mean of the event map of each segment, T values.

    Returns:
        Both with one more dimension, (..., T, D + 1).
    """
    values = torch.as_tensor(np.log1p(np.asarray(density, np.float64) / _SMALLEST), dtype=event.dtype)
    column = values.to(event.device).unsqueeze(-1).expand(*event.shape[:-1], 1)
    return torch.cat([image, torch.zeros_like(column)], -1), torch.cat([event, column], -1)


def has_density(benchmark: Benchmark) -> bool:
    """Whether all videos of a benchmark have event densities."""
    return all(video.event_density is not None for video in [*benchmark.train, *benchmark.test])


def add_density(benchmark: Benchmark) -> None:
    """Let the features of all videos have the density as their last dimension.

    Raises:
        UserError: a video has no event densities.
    """
    for video in [*benchmark.train, *benchmark.test]:
        if video.event_density is None:
            raise UserError(
                f"{video.name} has no event densities, which this model sees: make the features with `iefvad extract`."
            )
        if video.reader is not None:
            video.reader = _DensityReader(video.reader, video.event_density)
    benchmark.dim += 1


class _DensityReader(Reader):
    """Reads what another reader reads, and appends the density."""

    def __init__(self, reader: Reader, density: np.ndarray) -> None:
        super().__init__(reader.nan, reader.notes)
        self.reader, self.density = reader, density

    def __call__(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        image, event = (torch.from_numpy(values) for values in self.reader(crop))
        image, event = with_density(image, event, self.density)
        return image.numpy(), event.numpy()

    def where(self, crop: int) -> tuple[str, str]:
        return self.reader.where(crop)

    def files(self, crop: int) -> list[Path]:
        return self.reader.files(crop)

    def check(self, crop: int) -> None:
        self.reader.check(crop)
