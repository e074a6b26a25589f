"""Robustness to masked features: a fraction of one stream's dimensions is set to zero, and all is scored again.

Source: Appendix H of the paper; `docs/specification.md#robustness`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from iefvad.features.videos import Video
from iefvad.model.config import MODALITIES
from iefvad.model.network import Network
from iefvad.scoring.metrics import robustness_row
from iefvad.scoring.scorer import score_videos
from iefvad.scoring.video_scores import VideoScores

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Fractions of the feature dimensions that the paper masks (Appendix H)."""


class Masked(Video):
    """A video one of whose modalities has some feature dimensions set to zero (paper §4.2)."""

    def __init__(self, video: Video, modality: str, dimensions: Tensor) -> None:
        self.__dict__.update(video.__dict__)
        self._video, self._modality, self._dimensions = video, modality, dimensions

    def features(self, crop: int) -> tuple[Tensor, Tensor]:
        """Image and event features (T, D) of one crop, masked."""
        pair = dict(zip(MODALITIES, self._video.features(crop), strict=True))
        pair[self._modality] = pair[self._modality].index_fill(1, self._dimensions, 0.0)
        return pair["image"], pair["event"]


def robustness(
    model: Network,
    videos: Sequence[Video],
    *,
    crops: str = "5",
    chunk: int = 256,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Appendix H: mask a share of one modality's feature dimensions (the same ones in all videos) and score again.

    The first row is the clean run. Keys as in `metrics.robustness_row`; `crops` and `chunk` as in `score_videos`.
    """

    def score(videos: Sequence[Video]) -> list[VideoScores]:
        return score_videos(model, videos, crops=crops, chunk=chunk)

    clean = score(videos)
    rows = [robustness_row("none", 0.0, clean, clean)]
    bar = tqdm([(name, ratio) for name in MODALITIES for ratio in ratios], desc="robustness", dynamic_ncols=True)
    for name, ratio in bar:
        generator = torch.Generator().manual_seed(seed)
        dim = model.config.dim
        masked = torch.randperm(dim, generator=generator)[: round(ratio * dim)]
        rows.append(robustness_row(name, ratio, clean, score([Masked(video, name, masked) for video in videos])))
    return rows
