"""Event maps of frames at another size than their own: resize, luma and counting in one pass."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..dispatch import choose, native_check, register_backend
from . import reference
from .arguments import check, map_dtype, map_shape
from .layout import normalise, packed_rows
from .resize import axis, halves, resize

SIZE = (340, 256)
_cached_axis = functools.lru_cache(maxsize=64)(axis)

register_backend("resized_events", "native", native_check((torch.uint8,)))

torch.library.define(
    "ief_kernels::resized_events_forward",
    "(Tensor frames, Tensor? carry, int[] size, int threshold, int clamp, str normalize, bool split, bool keep)"
    " -> (Tensor resized, Tensor maps)",
)


class ResizedEvents(NamedTuple):
    """`frames`: uint8 (..., S, height, width, 3), the resized frames; `maps`: their event maps."""

    frames: Tensor
    maps: Tensor


def resized_events(
    frames: Tensor,
    *,
    size: tuple[int, int] = SIZE,
    threshold: float = 10,
    clamp: int = 10,
    normalize: str = "clamp",
    polarity: str = "merged",
    carry: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Event maps of segments whose frames are first resized, without the resized frames in memory.

    Equal bit for bit to ``event_synthesis`` of the resized frames, and the resize equal byte for byte to cv2.resize
    with INTER_LINEAR (its formula: ``ief_kernels.reference.resize``). All ten crops of a video are crops of this map.

    Args:
        frames: uint8 (..., S, H, W, 3) RGB, at least one pixel each, S frames a segment.
        size: (width, height) of the maps; the aspect ratio is not kept.
        threshold, clamp, normalize, polarity: as in ``event_synthesis``.
        carry: uint8 (..., H, W, 3), the last frame before each segment at its own size, or None.
        backend: ``"auto"``, ``"native"`` or ``"reference"``.

    Returns:
        (..., height, width), or (..., 2, height, width) for split polarity; float32, uint8 for ``normalize="none"``.

    Raises:
        TypeError, ValueError: arguments without a meaning.
        BackendUnavailable: the backend asked for cannot serve this call.
    """
    return _run(frames, size, threshold, clamp, normalize, polarity, carry, backend, keep=False).maps


def resize_with_events(
    frames: Tensor,
    *,
    size: tuple[int, int] = SIZE,
    threshold: float = 10,
    clamp: int = 10,
    normalize: str = "clamp",
    polarity: str = "merged",
    carry: Tensor | None = None,
    backend: str = "auto",
) -> ResizedEvents:
    """The resized frames and their event maps from one pass; arguments and maps as in ``resized_events``."""
    return _run(frames, size, threshold, clamp, normalize, polarity, carry, backend, keep=True)


def _run(
    frames: Tensor,
    size: tuple[int, int],
    threshold: float,
    clamp: int,
    normalize: str,
    polarity: str,
    carry: Tensor | None,
    backend: str,
    *,
    keep: bool,
) -> ResizedEvents:
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if frames.dim() < 4 or frames.shape[-1] != 3 or 0 in frames.shape[-3:-1]:
        raise ValueError(f"frames must be (..., S, H, W, 3) with at least one pixel, got {tuple(frames.shape)}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (width, height), each at least 1, got {tuple(size)}")
    settings = check(frames, threshold, clamp, normalize, polarity, carry, None)
    choice = choose("resized_events", backend, frames.device, frames.dtype)
    if choice.backend == "reference":
        resized = resize(frames, size)
        maps = reference.event_synthesis(
            resized,
            threshold=threshold,
            clamp=clamp,
            normalize=normalize,
            polarity=polarity,
            carry=None if carry is None else resize(carry, size),
        )
        return ResizedEvents(resized, maps)
    return ResizedEvents(
        *torch.ops.ief_kernels.resized_events_forward(
            frames, carry, list(size), settings.threshold, settings.clamp, normalize, settings.split, keep
        )
    )


def _shapes(frames: Tensor, size: list[int], split: bool, keep: bool) -> tuple[list[int], list[int]]:
    kept = [*frames.shape[:-3], size[1], size[0], 3] if keep else [0]
    *batch, _, _ = map_shape(frames, True, split)
    return kept, [*batch, size[1], size[0]]


@torch.library.impl("ief_kernels::resized_events_forward", "default")
def _forward(
    frames: Tensor,
    carry: Tensor | None,
    size: list[int],
    threshold: int,
    clamp: int,
    normalize: str,
    split: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    kept, shape = _shapes(frames, size, split, keep)
    resized = torch.empty(kept, dtype=torch.uint8)
    maps = torch.empty(shape, dtype=map_dtype(frames.dtype, normalize))
    prefix = frames.dim() - 4
    pixels = packed_rows(frames, prefix, True)  # `pixels` and `last` keep copies alive during the call
    last = None if carry is None else packed_rows(carry, prefix, True)
    segments, length, height, width = pixels.shape[:4]
    peaks = torch.zeros(segments, dtype=torch.int32)
    rows, columns = _cached_axis(height, size[1], clip=False), _cached_axis(width, size[0], clip=True)
    if segments:
        _native.extension().event_resize(
            counts=maps.dtype == torch.uint8,
            frames=pixels.data_ptr(),
            strides=pixels.stride()[:3],
            carry=0 if last is None else last.data_ptr(),
            carry_strides=(0, 0) if last is None else last.stride()[:2],
            shape=(segments, length, height, width),
            size=tuple(size),
            rows=[table.data_ptr() for table in rows],
            columns=[table.data_ptr() for table in columns],
            halve=halves(height, width, (size[0], size[1])),
            threshold=threshold,
            clamp=clamp,
            split=split,
            divisor=float(clamp) if normalize == "clamp" else 1.0,
            resized=resized.data_ptr() if keep else 0,
            maps=maps.data_ptr(),
            peaks=peaks.data_ptr(),
            threads=_native.threads(),
        )
    normalise(maps, peaks, clamp, normalize, split)
    return resized, maps


@torch.library.register_fake("ief_kernels::resized_events_forward")
def _forward_fake(
    frames: Tensor,
    carry: Tensor | None,
    size: list[int],
    threshold: int,
    clamp: int,
    normalize: str,
    split: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    kept, shape = _shapes(frames, size, split, keep)
    maps = frames.new_empty(shape, dtype=map_dtype(frames.dtype, normalize))
    return frames.new_empty(kept, dtype=torch.uint8), maps
