"""How single dimensions of the fusion weights answer to masking (paper, Section 4.2 and Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from iefvad.features.videos import Video
from iefvad.model.config import MODALITIES
from iefvad.model.networks import LearnedNetwork
from iefvad.model.standardize import Standardize
from iefvad.scoring.robustness import default_mask
from iefvad.scoring.scorer import choose_crops

RATIOS = (0.1, 0.3, 0.5)
"""Fractions of a modality's dimensions that are masked."""


def weight_shifts(
    model: LearnedNetwork,
    videos: Sequence[Video],
    *,
    crops: str = "5",
    chunk: int = 256,
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> dict[str, dict[str, list[float]]] | None:
    """Compute the change of the image weight in each dimension where dimensions of one modality are masked.

    They become what `robustness.default_mask` says: the mean of the training features, or zero.

    Args:
        model: The network.
        videos: Videos with stored features.
        crops: The crops that are scored, as in `choose_crops`.
        chunk: Number of segments that the attention sees at once.
        ratios: Fractions of the dimensions.
        seed: Seed that chooses the dimensions.

    Returns:
        Masked modality → fraction, such as "0.1" → mean of w_img (masked) less w_img (clean) over all segments, (D,),
        rounded to 7 digits after the point. None for a network without fusion weights.
    """
    clean = _mean_weights(model, videos, crops, chunk, None)
    if clean is None:
        return None
    result: dict[str, dict[str, list[float]]] = {}
    for name in MODALITIES:
        result[name] = {}
        for ratio in ratios:
            generator = torch.Generator().manual_seed(seed)
            masked = torch.randperm(model.config.dim, generator=generator)[: round(ratio * model.config.dim)]
            towards = torch.zeros(model.config.dim)
            if default_mask(model) == "mean":
                statistics = model.statistics[name]
                assert isinstance(statistics, Standardize)
                towards = statistics.centre.cpu()
            weights = _mean_weights(model, videos, crops, chunk, (name, masked, towards))
            assert weights is not None
            result[name][str(ratio)] = np.round(weights - clean, 7).tolist()
    return result


@torch.inference_mode()
def _mean_weights(
    model: LearnedNetwork, videos: Sequence[Video], crops: str, chunk: int, mask: tuple[str, Tensor, Tensor] | None
) -> np.ndarray | None:
    """Mean of w_img over all segments, float64 (D,). Weights do not depend on the recursion, so chunks stand alone.

    `mask` has the modality, the numbers of its masked dimensions, and what all dimensions would become.
    """
    device = next(model.parameters()).device
    model.eval()
    total, count = torch.zeros(1, dtype=torch.float64), 0
    for video in videos:
        for crop in choose_crops(video.crops, crops):
            pair = dict(zip(MODALITIES, video.features(crop), strict=True))
            if mask is not None:
                name, dimensions, towards = mask
                pair[name] = pair[name].index_copy(1, dimensions, towards[dimensions].expand(video.segments, -1))
            for start in range(0, video.segments, chunk):
                image, event = (pair[name][None, start : start + chunk] for name in MODALITIES)
                length = image.shape[1]
                if model.config.released and length < chunk:
                    image, event = (pad(values, (0, 0, 0, chunk - length)) for values in (image, event))
                out = model(image.to(device), event.to(device), torch.tensor([length]))
                if out.w_img is None:
                    return None
                total = total + out.w_img[0, :length].double().sum(0).cpu()
                count += length
    return (total / count).numpy() if count else None
