"""Robustness to masked features: a fraction of one modality's dimensions is set to 0, and all videos are scored again.

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
from iefvad.model.networks import AnyNetwork
from iefvad.scoring.metrics import robustness_row
from iefvad.scoring.scorer import score_videos
from iefvad.scoring.video_scores import VideoScores

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Fractions of the feature dimensions that the paper masks (Appendix H)."""


class Masked(Video):
    """A video with some feature dimensions of one modality set to 0 (paper §4.2)."""

    def __init__(self, video: Video, modality: str, dimensions: Tensor) -> None:
        """Mask a video.

        Args:
            video: The video; it stays as it is.
            modality: "image" or "event".
            dimensions: Numbers of the dimensions that become 0, int64.
        """
        self.__dict__.update(video.__dict__)
        self._video, self._modality, self._dimensions = video, modality, dimensions

    def features(self, crop: int) -> tuple[Tensor, Tensor]:
        """Return the masked image and event features of one crop, (T, D) each."""
        pair = dict(zip(MODALITIES, self._video.features(crop), strict=True))
        pair[self._modality] = pair[self._modality].index_fill(1, self._dimensions, 0.0)
        return pair["image"], pair["event"]


def robustness(
    model: AnyNetwork,
    videos: Sequence[Video],
    *,
    crops: str = "5",
    chunk: int = 256,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Mask a fraction of one modality's feature dimensions, the same ones in all videos, and score again.

    Args:
        model: The network.
        videos: Videos with stored features.
        crops: The crops that are scored, as in `choose_crops`.
        chunk: Number of segments that the attention sees at once.
        ratios: Fractions of the dimensions that are masked.
        seed: Seed that chooses the dimensions.

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
        dim = model.config.dim
        masked = torch.randperm(dim, generator=generator)[: round(ratio * dim)]
        rows.append(robustness_row(name, ratio, clean, score([Masked(video, name, masked) for video in videos])))
    return rows
