"""What a call of event_synthesis means: shapes and settings, checked once for every backend."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _arguments
from .._tensors import require_same_device

NORMALIZE = ("clamp", "segment", "batch", "none")
POLARITY = ("merged", "split")
LAYOUT = ("auto", "rgb", "luma")
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNITS = 10_000  # luma is counted in 1e-4 grey levels
_INT32_MAX = 2**31 - 1


class Settings(NamedTuple):
    """The settings of a call.

    Attributes:
        threshold: integer, in 1e-4 grey levels.
        clamp: largest number of events per pixel.
        normalize: one of `NORMALIZE`.
        split: two maps, brighter and darker, instead of one.
        surrogate: τ in grey levels, or None.
        rgb: whether the last dimension holds colours.
    """

    threshold: int
    clamp: int
    normalize: str
    split: bool
    surrogate: float | None
    rgb: bool


def is_rgb(frames: Tensor, layout: str = "auto") -> bool:
    """Return whether the last dimension holds colours.

    Args:
        frames: the frames.
        layout: one of `LAYOUT`. "auto": the last dimension has size 3, and S, H and W come before it.

    Raises:
        ValueError: `layout` is none of them, or "rgb" and the frames have another shape.
    """
    if layout not in LAYOUT:
        raise ValueError(f"layout must be one of {', '.join(LAYOUT)}, got {layout!r}")
    possible = frames.dim() >= 4 and frames.shape[-1] == 3
    if layout == "rgb" and not possible:
        raise ValueError(f"with layout='rgb' frames must be (..., S, H, W, 3), got {tuple(frames.shape)}")
    return possible and layout != "luma"


def map_dtype(dtype: torch.dtype, normalize: str) -> torch.dtype:
    """Return the dtype of the maps: uint8 for counts, else float64 for float64 frames and float32 for all others."""
    if normalize == "none":
        return torch.uint8
    return torch.float64 if dtype == torch.float64 else torch.float32


def map_shape(frames: Tensor, rgb: bool, split: bool) -> list[int]:
    """Return the shape of the maps: (..., H, W), or (..., 2, H, W) for split polarity."""
    *batch, _, height, width = frames.shape[:-1] if rgb else frames.shape
    return [*batch, *([2] if split else []), height, width]


def check(
    frames: Tensor,
    threshold: float,
    clamp: int,
    normalize: str,
    polarity: str,
    carry: Tensor | None,
    surrogate: float | None,
    layout: str = "auto",
) -> Settings:
    """Check the arguments of `event_synthesis` and return them as settings.

    Raises:
        TypeError: `frames` is neither uint8 nor floating point.
        ValueError: another argument lies outside its range or has another shape.
    """
    if not isinstance(frames, Tensor):
        raise TypeError(f"frames must be a tensor, got {type(frames).__name__}")
    if carry is not None and not isinstance(carry, Tensor):
        raise TypeError(f"carry must be a tensor or None, got {type(carry).__name__}")
    if frames.dtype not in DTYPES:
        raise TypeError(f"frames must be uint8 or floating point, got {frames.dtype}")
    if frames.dim() < 3:
        raise ValueError(f"frames must be (..., S, H, W, 3) or (..., S, H, W), got {tuple(frames.shape)}")
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZE)}, got {normalize!r}")
    if polarity not in POLARITY:
        raise ValueError(f"polarity must be one of {', '.join(POLARITY)}, got {polarity!r}")
    threshold = _arguments.not_negative("threshold", threshold)
    clamp = _arguments.integer("clamp", clamp, 1, 255)
    if surrogate is not None:
        surrogate = _arguments.positive("surrogate", surrogate)
        if normalize == "none":
            raise ValueError("surrogate needs a floating-point map; normalize='none' gives uint8 counts")
    rgb = is_rgb(frames, layout)
    if carry is not None:
        at = -4 if rgb else -3
        expected = (*frames.shape[:at], *frames.shape[at + 1 :])
        if tuple(carry.shape) != expected:
            raise ValueError(f"carry must be one frame per segment, {expected}, got {tuple(carry.shape)}")
        if carry.dtype != frames.dtype:
            raise ValueError(f"carry must be like frames, {frames.dtype}, got {carry.dtype}; convert it")
        require_same_device({"frames": frames, "carry": carry})
    # No difference exceeds 255 grey levels by far, so a threshold beyond int32 means the same as int32's largest.
    units = _INT32_MAX if threshold * UNITS >= _INT32_MAX else round(threshold * UNITS)
    return Settings(units, clamp, normalize, polarity == "split", surrogate, rgb)
