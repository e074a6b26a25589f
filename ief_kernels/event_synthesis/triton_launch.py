"""Launches the Triton kernels of event synthesis (triton_kernels.py).

Byte frames are read as 32-bit words: three hold four RGB pixels. Where every frame begins at a multiple of 16 bytes and
is as long, a lane reads 48 bytes with three 16-byte loads; otherwise 12 bytes with three 4-byte loads, or, where frames
begin between words, with pairs of those that are shifted together. Frames must be without gaps inside (others are
copied); segments and frames may lie anywhere, such as every second frame of a video.

Floating-point frames are read a pixel a lane.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._triton import Config, Tuner, device_guard, triton_check
from ..dispatch import register_backend
from .arguments import UNITS, map_dtype, map_shape

register_backend("event_synthesis", "triton", triton_check((torch.uint8, torch.float16, torch.bfloat16, torch.float32)))

_WORTH_TUNING = 1 << 24  # bytes of frames; a smaller call takes about as long in every configuration
_WIDE = tuple(Config({"LANES": lanes}, lanes // 32) for lanes in (64, 128, 256))
# For luma the compiler spills registers in the blocks that suit RGB.
_WIDE_GREY = tuple(Config({"LANES": lanes}, warps) for lanes, warps in ((32, 1), (128, 2)))
_NARROW = tuple(Config({"LANES": lanes}, lanes // 64) for lanes in (256, 128))
_FLOATS = tuple(Config({"LANES": lanes}, 4) for lanes in (128, 256))
_wide, _wide_grey = Tuner("event_wide", _WIDE), Tuner("event_wide_grey", _WIDE_GREY)
_narrow, _floats = Tuner("event_narrow", _NARROW), Tuner("event_floats", _FLOATS)
_back = Tuner("event_backward", _FLOATS)
_DIVIDE = Config({"BLOCK": 1024}, 4)


@functools.cache
def _kernels() -> ModuleType:
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


def _as_words(images: Tensor) -> tuple[Tensor, int]:
    """The memory of byte images as int32, and the byte in it where they begin (below 16 if memory is so aligned)."""
    storage, offset = images.untyped_storage(), int(images.storage_offset())
    if storage.data_ptr() % 16:  # memory from elsewhere
        images = images.clone()
        storage, offset = images.untyped_storage(), 0
    first = offset // 16 * 16
    words = torch.empty(0, dtype=torch.int32, device=images.device)
    return words.set_(storage, first // 4, ((storage.nbytes() - first) // 4,), (1,)), offset - first


def forward(
    frames: Tensor, carry: Tensor | None, rgb: bool, threshold: int, clamp: int, normalize: str, split: bool
) -> tuple[Tensor, Tensor]:
    """The maps, and what their counts were divided by: one number a segment, or one for all."""
    maps = torch.empty(map_shape(frames, rgb, split), dtype=map_dtype(frames.dtype, normalize), device=frames.device)
    images, last = _layout(frames, carry, rgb)
    segments, count, pixels = images.shape[0], images.shape[1], images.shape[2] // (3 if rgb else 1)
    by_peak = normalize in ("segment", "batch")
    peaks = None
    counts = maps
    if by_peak:
        peaks = torch.zeros(segments if normalize == "segment" else 1, dtype=torch.int32, device=frames.device)
        counts = torch.empty_like(maps, dtype=torch.uint8)
    stride = int(normalize == "segment")
    if count + (last is not None) < 2 or count == 0:
        maps.zero_()
    elif maps.numel():
        rest = (stride, count, pixels, threshold, clamp, *(_inverse(clamp) if normalize == "clamp" else (None, None)))
        (_count_bytes if frames.dtype == torch.uint8 else _count_floats)(images, last, counts, peaks, rgb, split, rest)
        if peaks is not None:
            size = pixels * (2 if split else 1)
            grid = (segments * -(-size // _DIVIDE.meta["BLOCK"]),)
            with device_guard(maps):
                _kernels().divide[grid](counts, peaks, maps, size, stride, **_options(_DIVIDE))
    if peaks is not None:
        return maps, peaks.clamp(min=1).float()
    value = float(clamp) if normalize == "clamp" else 1.0
    return maps, torch.full((1,), value, dtype=torch.float32, device=frames.device)


def _count_bytes(
    images: Tensor,
    carry: Tensor | None,
    maps: Tensor,
    peaks: Tensor | None,
    rgb: bool,
    split: bool,
    rest: tuple[Any, ...],
) -> None:
    words, start = _as_words(images)
    last, carry_start = (None, 0) if carry is None else _as_words(carry)
    places = [start, *images.stride()[:2], carry_start, 0 if carry is None else carry.stride(0)]
    for axis, size in ((1, images.shape[0]), (2, images.shape[1]), (4, images.shape[0])):
        if size == 1:
            places[axis] = 0  # never stepped over, so not to be looked at below
    pixels = rest[2]
    wide = not any(place % 16 for place in (*places, images.shape[2]))
    shifted = any(place % 4 for place in places)
    if wide:
        places = [place // 16 for place in places]

    def run(config: Config) -> None:
        each = config.meta["LANES"] * (16 if wide else 4)
        _kernels().count_bytes[(images.shape[0] * -(-pixels // each),)](
            words,
            last,
            maps,
            peaks,
            *places,
            *rest,
            RGB=rgb,
            SPLIT=split,
            WIDE=wide,
            SHIFTED=shifted,
            **_options(config),
        )

    key = (rgb, split, shifted, carry is None, str(maps.dtype))
    tuner = (_wide if rgb else _wide_grey) if wide else _narrow
    tuner.launch(images, key, run, worth=images.numel() >= _WORTH_TUNING)


def _count_floats(
    images: Tensor,
    carry: Tensor | None,
    maps: Tensor,
    peaks: Tensor | None,
    rgb: bool,
    split: bool,
    rest: tuple[Any, ...],
) -> None:
    stride, count, pixels, threshold, clamp, *inverse = rest

    def run(config: Config) -> None:
        _kernels().count_floats[(images.shape[0] * -(-pixels // config.meta["LANES"]),)](
            images,
            carry,
            maps,
            peaks,
            *images.stride()[:2],
            0 if carry is None else carry.stride(0),
            stride,
            count,
            pixels,
            float(threshold),
            clamp,
            *inverse,
            RGB=rgb,
            SPLIT=split,
            **_options(config),
        )

    key = (str(images.dtype), rgb, split, carry is None, str(maps.dtype))
    _floats.launch(images, key, run, worth=images.numel() * images.element_size() >= _WORTH_TUNING)


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
    """Gradients of the frames and of the carried frame (empty without one), contiguous, in the frames' dtype."""
    grad_frames = torch.empty(frames.shape, dtype=frames.dtype, device=frames.device)
    grad_carry = torch.empty(carry.shape if carry is not None else (0,), dtype=frames.dtype, device=frames.device)
    if frames.numel() == 0:
        return grad_frames, grad_carry.zero_()  # no frames, no differences
    images, last = _layout(frames, carry, rgb)
    segments, count, pixels = images.shape[0], images.shape[1], images.shape[2] // (3 if rgb else 1)
    above = grad.float().contiguous()

    def run(config: Config) -> None:
        _kernels().pull_back[(segments * -(-pixels // config.meta["LANES"]),)](
            above,
            images,
            last,
            scale,
            grad_frames,
            None if last is None else grad_carry,
            *images.stride()[:2],
            0 if last is None else last.stride(0),
            1 if scale.numel() > 1 else 0,
            count,
            pixels,
            float(threshold),
            clamp,
            surrogate * UNITS,
            RGB=rgb,
            SPLIT=split,
            **_options(config),
        )

    key = (str(images.dtype), rgb, split, last is None)
    _back.launch(images, key, run, worth=images.numel() * images.element_size() >= _WORTH_TUNING)
    return grad_frames, grad_carry


def static_cases() -> list[dict[str, Any]]:
    """Every kernel in every configuration, for `bench.static`."""
    kernels, cases = _kernels(), list[dict[str, Any]]()

    def case(
        kernel: Any,
        pointers: Mapping[str, str | None],
        numbers: Mapping[str, str | None],
        config: Config,
        **more: Any,
    ) -> None:
        arguments = {name: kind and f"*{kind}" for name, kind in pointers.items()} | dict(numbers)
        cases.append(
            {
                "op": f"event_{kernel.__name__}",
                "kernel": kernel,
                "signature": {name: kind for name, kind in arguments.items() if kind is not None},
                "constexprs": {**{n: None for n, kind in arguments.items() if kind is None}, **more, **config.meta},
                "num_warps": config.num_warps,
                "num_stages": config.num_stages,
                "wants": {"vector_loads": more.get("WIDE", False)},
                "divisible": ("pixels", "size", "segment_stride", "frame_stride", "carry_stride"),
            }
        )

    places = dict.fromkeys(("start", "segment_stride", "frame_stride", "carry_start", "carry_stride"), "i32")
    steps = dict.fromkeys(("segment_stride", "frame_stride", "carry_stride"), "i32")
    rule: dict[str, str | None] = {"peak_stride": "i32", "pixels": "i32", "clamp": "i32"}
    # (maps' type, type of the inverse, of the peaks, of the carry, split): a map at once, or counts and peaks
    for kind, inverse, peak, carried, split in (("fp32", "fp32", None, False, False), ("u8", None, "i32", True, True)):
        factor = {"inverse": inverse, "inverse_rest": inverse}
        for rgb in (True, False):
            bytes_at: dict[str, str | None] = {"words": "i32", "carry": "i32" if carried else None}
            numbers = {**places, **rule, "frames": "i32", "threshold": "i32", **factor}
            at_once = _WIDE if rgb else _WIDE_GREY
            for wide, shifted, configs in ((True, False, at_once), (False, False, _NARROW), (False, True, _NARROW)):
                for config in configs:
                    flags = {"RGB": rgb, "SPLIT": split, "WIDE": wide, "SHIFTED": shifted}
                    case(kernels.count_bytes, {**bytes_at, "maps": kind, "peaks": peak}, numbers, config, **flags)
            for element in ("fp32", "bf16"):
                pixels = {"frames": element, "carry": element if carried else None}
                numbers = {**steps, **rule, "count": "i32", "threshold": "fp32"}
                for config in _FLOATS:
                    flags = {"RGB": rgb, "SPLIT": split}
                    where = {**pixels, "maps": kind, "peaks": peak}
                    case(kernels.count_floats, where, {**numbers, **factor}, config, **flags)
                    grads: dict[str, str | None] = {
                        "grad": "fp32",
                        "scale": "fp32",
                        "grad_frames": element,
                        "grad_carry": pixels["carry"],
                    }
                    more: dict[str, str | None] = {
                        **steps,
                        "scale_stride": "i32",
                        "count": "i32",
                        "pixels": "i32",
                        "clamp": "i32",
                    }
                    more |= {"threshold": "fp32", "tau": "fp32"}
                    case(kernels.pull_back, {**grads, **pixels}, more, config, **flags)
    sizes: dict[str, str | None] = {"size": "i32", "peak_stride": "i32"}
    case(kernels.divide, {"counts": "u8", "peaks": "i32", "maps": "fp32"}, sizes, _DIVIDE)
    return cases
