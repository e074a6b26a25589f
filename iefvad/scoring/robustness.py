"""Robustness to damage: dimensions or time steps of one modality are damaged, and all videos are scored again.

Source: Appendix H of the paper; `docs/specification.md#robustness`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from iefvad.features.videos import Video
from iefvad.model.config import MODALITIES
from iefvad.model.networks import AnyNetwork
from iefvad.scoring.metrics import robustness_row
from iefvad.scoring.scorer import score_videos
from iefvad.scoring.video_scores import VideoScores

Damage = Literal["features", "segments"]

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Fractions of a modality that are damaged (paper, Appendix H)."""


class Damaged(Video):
    """A video with some feature dimensions (paper §4.2) or some time steps of one modality damaged."""

    def __init__(self, video: Video, modality: str, *, dimensions: Tensor | None, steps: Tensor | None) -> None:
        """Damage a video.

        Args:
            video: The video; it stays as it is.
            modality: "image" or "event".
            dimensions: Numbers of the dimensions that become 0, int64.
            steps: Numbers of the segments whose features are multiplied by 0.01, int64.
        """
        self.__dict__.update(video.__dict__)
        self._video, self._modality, self._dimensions, self._steps = video, modality, dimensions, steps

    def features(self, crop: int) -> tuple[Tensor, Tensor]:
        """Return the damaged image and event features of one crop, (T, D) each."""
        pair = dict(zip(MODALITIES, self._video.features(crop), strict=True))
        values = pair[self._modality]
        if self._dimensions is not None:
            values = values.index_fill(1, self._dimensions, 0.0)
        if self._steps is not None:
            values = values.clone()
            values[self._steps] *= 0.01
        return (values, pair["event"]) if self._modality == "image" else (pair["image"], values)


def robustness(
    model: AnyNetwork,
    videos: Sequence[Video],
    *,
    crops: str = "5",
    chunk: int = 256,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
    damage: Damage = "features",
) -> list[dict[str, Any]]:
    """Damage a fraction of one modality and score again.

    Args:
        model: The network.
        videos: Videos with stored features.
        crops: The crops that are scored, as in `choose_crops`.
        chunk: Number of segments that the attention sees at once.
        ratios: Fractions of the dimensions or of the time steps.
        seed: Seed that chooses them.
        damage: "features": dimensions become 0, the same ones in all videos, as the paper says. "segments": time steps
            are multiplied by 0.01, drawn anew for each video, as the released script does.

    Returns:
        Rows of `metrics.robustness_row`: first the clean features, then each modality with each ratio.
    """

    def score(videos: Sequence[Video]) -> list[VideoScores]:
        return score_videos(model, videos, crops=crops, chunk=chunk)

    clean = score(videos)
    rows = [robustness_row("none", 0.0, clean, clean)]
    bar = tqdm([(name, ratio) for name in MODALITIES for ratio in ratios], desc="robustness", dynamic_ncols=True)
    for name, ratio in bar:
        generator = torch.Generator().manual_seed(seed)

        def drawn(number: int, generator: torch.Generator = generator, ratio: float = ratio) -> Tensor:
            return torch.randperm(number, generator=generator)[: round(ratio * number)]

        if damage == "features":
            dimensions = drawn(model.config.dim)
            damaged = [Damaged(video, name, dimensions=dimensions, steps=None) for video in videos]
        else:
            damaged = [Damaged(video, name, dimensions=None, steps=drawn(video.segments)) for video in videos]
        rows.append(robustness_row(name, ratio, clean, score(damaged)))
    return rows
