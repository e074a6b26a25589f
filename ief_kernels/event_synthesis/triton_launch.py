"""Launches the Triton kernels of event synthesis (triton_kernels.py).

Byte frames are read as 32-bit words: three words hold four RGB pixels. Where every frame begins at a multiple of 16
bytes and its length is one, a lane reads 48 bytes with three 16-byte loads. Otherwise it reads 12 bytes with three
4-byte loads, or, where frames begin between words, with pairs of loads that are shifted together. Segments and frames
may lie anywhere, such as every second frame of a video.

Rows of byte frames may have gaps between them (a pitch), as surfaces of a video decoder and windows of a larger frame
have. Then all this is asked of rows instead of frames. Rows with gaps inside them are copied.

Of floating-point frames a lane reads one pixel. Frames with gaps inside are copied.
"""

from __future__ import annotations

import functools
import math
import struct
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._triton import Config, Tuner, device_guard, triton_check
from ..dispatch import register_backend
from .arguments import UNITS, map_dtype, map_shape
from .layout import packed_rows

register_backend("event_synthesis", "triton", triton_check((torch.uint8, torch.float16, torch.bfloat16, torch.float32)))

_WORTH_TUNING = 1 << 24  # bytes of frames; a smaller call takes about as long in every configuration
WIDE = tuple(Config({"LANES": lanes}, lanes // 32) for lanes in (64, 128, 256))
# For luma the compiler spills registers in the blocks that suit RGB.
WIDE_GREY = tuple(Config({"LANES": lanes}, warps) for lanes, warps in ((32, 1), (128, 2)))
NARROW = tuple(Config({"LANES": lanes}, lanes // 64) for lanes in (256, 128))
FLOATS = tuple(Config({"LANES": lanes}, 4) for lanes in (128, 256))
_wide, _wide_grey = Tuner("event_wide", WIDE), Tuner("event_wide_grey", WIDE_GREY)
_narrow, _floats = Tuner("event_narrow", NARROW), Tuner("event_floats", FLOATS)
_back = Tuner("event_backward", FLOATS)
DIVIDE = Config({"BLOCK": 1024}, 4)


@functools.cache
def kernels() -> ModuleType:
    """Return the module of the kernels; the first call imports triton."""
    from . import triton_kernels

    return triton_kernels


def _options(config: Config) -> dict[str, Any]:
    # Luma of floating-point frames must round after every operation, as the reference's does.
    return {**config.options(), "enable_fp_fusion": False}


def _inverse(divisor: int) -> tuple[float, float]:
    """1/divisor as a sum of two float32 numbers, for kernels whose numbers are float32."""
    first = struct.unpack("f", struct.pack("f", 1 / divisor))[0]
    return first, 1 / divisor - first


def _images(tensor: Tensor, prefix: int, dims: int) -> Tensor:
    """The tensor as (segments, [frames,] values of one image), images without gaps; a copy only if need be."""
    batch = tensor.shape[:prefix].numel()
    gaps, expected = False, 1
    for size, stride in zip(reversed(tensor.shape[-dims:]), reversed(tensor.stride()[-dims:]), strict=True):
        gaps |= size != 1 and stride != expected
        expected *= size
    if gaps or tensor.numel() == 0:
        tensor = tensor.contiguous()
    return tensor.reshape(batch, *tensor.shape[prefix:-dims], expected)


def _layout(frames: Tensor, carry: Tensor | None, rgb: bool) -> tuple[Tensor, Tensor | None]:
    dims = 3 if rgb else 2
    prefix = frames.dim() - dims - 1
    return _images(frames, prefix, dims), None if carry is None else _images(carry, prefix, dims)


class _Rows:
    """Byte frames (segments, frames, H, W, channels), or carried ones without `frames`, as words in memory.

    Attributes:
        words: the memory from the 16-byte boundary before the first pixel on, as int32.
        start: byte in it where the frames begin, below 16.
        strides: bytes from segment to segment, [frame to frame,] and row to row; 0 where it is never stepped over.
        line: bytes of a row.
    """

    def __init__(self, tensor: Tensor, prefix: int, rgb: bool) -> None:
        rows = packed_rows(tensor, prefix, rgb)
        if rows.untyped_storage().data_ptr() % 16:  # memory from elsewhere
            rows = rows.clone(memory_format=torch.contiguous_format)
        self.sizes = rows.shape[:-2]
        self.strides = tuple(s if n > 1 else 0 for n, s in zip(self.sizes, rows.stride()[:-2], strict=True))
        self.line = rows.shape[-2] * rows.shape[-1]
        storage, offset = rows.untyped_storage(), int(rows.storage_offset())
        first = offset // 16 * 16
        self.start = offset - first
        words = torch.empty(0, dtype=torch.int32, device=rows.device)
        self.words = words.set_(storage, first // 4, ((storage.nbytes() - first) // 4,), (1,))

    @property
    def pitched(self) -> bool:
        """Whether there are gaps between rows."""
        return self.strides[-1] not in (0, self.line)

    def wide(self, pitched: bool, unit: int) -> bool:
        """Whether 16-byte loads serve: all begins at multiples of 16 bytes, and none reaches out of the memory.

        Args:
            pitched: whether the kernel goes along rows, not frames.
            unit: bytes of 16 pixels. The last load of a row may reach into the gap behind it.
        """
        steps = self.strides if pitched else self.strides[:-1]
        if any(place % 16 for place in (self.start, *steps)):
            return False
        if not pitched:
            return self.sizes[-1] * self.line % 16 == 0
        reach = -(-self.line // unit) * unit
        last = self.start + sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True))
        return reach <= self.strides[-1] and last + reach <= 4 * self.words.numel()


def forward(
    frames: Tensor, carry: Tensor | None, rgb: bool, threshold: int, clamp: int, normalize: str, split: bool
) -> tuple[Tensor, Tensor]:
    """Return the maps, and what their counts were divided by: one number per segment, or one for all."""
    maps = torch.empty(map_shape(frames, rgb, split), dtype=map_dtype(frames.dtype, normalize), device=frames.device)
    *batch, count, height, width = frames.shape[:-1] if rgb else frames.shape
    segments, pixels = math.prod(batch), height * width
    by_peak = normalize in ("segment", "batch")
    peaks = None
    counts = maps
    if by_peak:
        peaks = torch.empty(segments if normalize == "segment" else 1, dtype=torch.int32, device=frames.device)
        counts = torch.empty_like(maps, dtype=torch.uint8)
    stride = int(normalize == "segment")
    if count + (carry is not None) < 2 or count == 0:
        maps.zero_()
        if peaks is not None:
            peaks.zero_()
    elif maps.numel():
        inverse, inverse_rest = _inverse(clamp) if normalize == "clamp" else (None, None)
        rest = {
            "peak_stride": stride,
            "pixels": pixels,
            "clamp": clamp,
            "inverse": inverse,
            "inverse_rest": inverse_rest,
            "RGB": rgb,
            "SPLIT": split,
        }
        count_events = _count_bytes if frames.dtype == torch.uint8 else _count_floats
        count_events(frames, carry, counts, peaks, threshold, rest)
        if peaks is not None:
            size = pixels * (2 if split else 1)
            grid = (segments * -(-size // DIVIDE.meta["BLOCK"]),)
            with device_guard(maps):
                kernels().divide[grid](
                    counts=counts, peaks=peaks, maps=maps, size=size, peak_stride=stride, **_options(DIVIDE)
                )
    if peaks is not None:
        return maps, peaks.clamp(min=1).float()
    value = float(clamp) if normalize == "clamp" else 1.0
    return maps, torch.full((1,), value, dtype=torch.float32, device=frames.device)


def _count_bytes(
    frames: Tensor, carry: Tensor | None, maps: Tensor, peaks: Tensor | None, threshold: int, rest: dict[str, Any]
) -> None:
    rgb, pixels = rest["RGB"], rest["pixels"]
    prefix = frames.dim() - (4 if rgb else 3)
    images = _Rows(frames, prefix, rgb)
    last = None if carry is None else _Rows(carry, prefix, rgb)
    both = [images] if last is None else [images, last]
    pitched = any(part.pitched for part in both)
    wide = all(part.wide(pitched, 48 if rgb else 16) for part in both)
    (segment, frame, row), (carry_segment, carry_row) = images.strides, (0, 0) if last is None else last.strides
    places = {
        "start": images.start,
        "segment_stride": segment,
        "frame_stride": frame,
        "row_stride": row if pitched else 0,
        "carry_start": 0 if last is None else last.start,
        "carry_stride": carry_segment,
        "carry_row_stride": carry_row if pitched else 0,
    }
    shifted = not wide and any(place % 4 for place in places.values())
    if wide:
        places = {name: place // 16 for name, place in places.items()}
    width = images.line // (3 if rgb else 1) if pitched else pixels
    each = 16 if wide else 4
    groups = pixels // width * -(-width // each)

    def run(config: Config) -> None:
        if peaks is not None:
            peaks.zero_()  # the kernel takes the larger of this and what it finds
        kernels().count_bytes[(images.sizes[0] * -(-groups // config.meta["LANES"]),)](
            words=images.words,
            carry=None if last is None else last.words,
            maps=maps,
            peaks=peaks,
            **places,
            frames=images.sizes[1],
            width=width,
            threshold=threshold,
            **rest,
            WIDE=wide,
            SHIFTED=shifted,
            PITCHED=pitched,
            **_options(config),
        )

    key = (rgb, rest["SPLIT"], shifted, carry is None, str(maps.dtype), pitched)
    tuner = (_wide if rgb else _wide_grey) if wide else _narrow
    size = frames.numel()
    tuner.launch(frames, key, run, size >= _WORTH_TUNING, rows=size, outputs=[maps, peaks])


def _count_floats(
    frames: Tensor, carry: Tensor | None, maps: Tensor, peaks: Tensor | None, threshold: int, rest: dict[str, Any]
) -> None:
    pixels = rest["pixels"]
    images, last = _layout(frames, carry, rest["RGB"])

    def run(config: Config) -> None:
        if peaks is not None:
            peaks.zero_()
        kernels().count_floats[(images.shape[0] * -(-pixels // config.meta["LANES"]),)](
            frames=images,
            carry=last,
            maps=maps,
            peaks=peaks,
            **_strides(images, last),
            count=images.shape[1],
            threshold=float(threshold),
            **rest,
            **_options(config),
        )

    key = (str(images.dtype), rest["RGB"], rest["SPLIT"], carry is None, str(maps.dtype))
    size = images.numel() * images.element_size()
    _floats.launch(images, key, run, size >= _WORTH_TUNING, rows=size, outputs=[maps, peaks])


def _strides(images: Tensor, carry: Tensor | None) -> dict[str, int]:
    return {
        "segment_stride": images.stride(0),
        "frame_stride": images.stride(1),
        "carry_stride": 0 if carry is None else carry.stride(0),
    }


def backward(
    grad: Tensor,
    frames: Tensor,
    carry: Tensor | None,
    scale: Tensor,
    rgb: bool,
    threshold: int,
    clamp: int,
    split: bool,
    surrogate: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of frames and of carried frames (empty without them), contiguous, in frames' dtype."""
    grad_frames = torch.empty(frames.shape, dtype=frames.dtype, device=frames.device)
    grad_carry = torch.empty(carry.shape if carry is not None else (0,), dtype=frames.dtype, device=frames.device)
    if frames.numel() == 0:
        return grad_frames, grad_carry.zero_()  # no frames, no differences
    images, last = _layout(frames, carry, rgb)
    segments, count, pixels = images.shape[0], images.shape[1], images.shape[2] // (3 if rgb else 1)
    above = grad.float().contiguous()

    def run(config: Config) -> None:
        kernels().pull_back[(segments * -(-pixels // config.meta["LANES"]),)](
            grad=above,
            frames=images,
            carry=last,
            scale=scale,
            grad_frames=grad_frames,
            grad_carry=None if last is None else grad_carry,
            **_strides(images, last),
            scale_stride=1 if scale.numel() > 1 else 0,
            count=count,
            pixels=pixels,
            threshold=float(threshold),
            clamp=clamp,
            tau=surrogate * UNITS,
            RGB=rgb,
            SPLIT=split,
            **_options(config),
        )

    key = (str(images.dtype), rgb, split, last is None)
    size = images.numel() * images.element_size()
    _back.launch(images, key, run, size >= _WORTH_TUNING, rows=size, outputs=[grad_frames, grad_carry])
    return grad_frames, grad_carry
