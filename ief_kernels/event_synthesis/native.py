"""The C++ kernels of event_synthesis on CPU tensors (csrc/cpu/event_synthesis.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from ..dispatch import native_check, register_backend
from .arguments import DTYPES, map_dtype, map_shape

register_backend("event_synthesis", "native", native_check(DTYPES))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor, prefix: int, rgb: bool) -> Tensor:
    """The tensor as (segments, [frames,] H, W, channels), each row without gaps; a copy only if need be."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if not rgb:
        tensor = tensor.unsqueeze(-1)
    width, channels = tensor.shape[-2:]
    packed = (channels == 1 or tensor.stride(-1) == 1) and (width == 1 or tensor.stride(-2) == channels)
    if not packed:
        tensor = tensor.contiguous()
    return tensor.flatten(0, prefix - 1) if prefix else tensor.unsqueeze(0)


def _layout(frames: Tensor, carry: Tensor | None, rgb: bool) -> tuple[Tensor, Tensor | None, dict[str, object]]:
    prefix = frames.dim() - (4 if rgb else 3)
    pixels = _rows(frames, prefix, rgb)
    last = None if carry is None else _rows(carry, prefix, rgb)
    keywords = {
        "dtype": str(pixels.dtype).removeprefix("torch."),
        "frames": pixels.data_ptr(),
        "strides": pixels.stride()[:3],
        "carry": _address(last),
        "carry_strides": (0, 0) if last is None else last.stride()[:2],
        "shape": tuple(pixels.shape),
        "threads": _native.threads(),
    }
    return pixels, last, keywords


def forward(
    frames: Tensor, carry: Tensor | None, rgb: bool, threshold: int, clamp: int, normalize: str, split: bool
) -> tuple[Tensor, Tensor]:
    """The maps, and what their counts were divided by: one number a segment, or one for all."""
    dtype = map_dtype(frames.dtype, normalize)
    scale_dtype = torch.float32 if dtype == torch.uint8 else dtype
    maps = torch.empty(map_shape(frames, rgb, split), dtype=dtype)
    pixels, last, keywords = _layout(frames, carry, rgb)  # `pixels` and `last` keep copies alive during the call
    peaks = torch.zeros(pixels.shape[0], dtype=torch.int32)
    divisor = float(clamp) if normalize == "clamp" else 1.0
    if maps.numel():
        _native.extension().event_synthesis_forward(
            counts=dtype == torch.uint8,
            threshold=threshold,
            clamp=clamp,
            split=split,
            divisor=divisor,
            maps=maps.data_ptr(),
            peaks=peaks.data_ptr(),
            **keywords,
        )
    del pixels, last
    if normalize == "segment":
        scale = peaks.clamp(min=1).to(scale_dtype)
        batch = maps.shape[: -3 if split else -2]
        maps.div_(scale.view([*batch, *([1] * (maps.dim() - len(batch)))]))
    elif normalize == "batch":
        scale = (peaks.amax(0, keepdim=True) if len(peaks) else peaks.new_ones(1)).clamp(min=1).to(scale_dtype)
        maps.div_(scale)
    else:
        scale = torch.full((1,), divisor, dtype=scale_dtype)
    return maps, scale


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
    pixels, last, keywords = _layout(frames, carry, rgb)
    grad_frames = torch.empty(frames.shape, dtype=pixels.dtype)
    grad_carry = torch.empty(carry.shape if carry is not None else (0,), dtype=pixels.dtype)
    if frames.numel():
        above = grad.to(pixels.dtype).contiguous()
        _native.extension().event_synthesis_backward(
            threshold=threshold,
            clamp=clamp,
            split=split,
            surrogate=surrogate,
            grad=above.data_ptr(),
            scale=scale.data_ptr(),
            scale_stride=1 if scale.numel() > 1 else 0,
            grad_frames=grad_frames.data_ptr(),
            grad_carry=_address(grad_carry) if carry is not None else 0,
            **keywords,
        )
    else:
        grad_carry.zero_()  # no frames, no differences
    del pixels, last
    return grad_frames.to(frames.dtype), grad_carry.to(frames.dtype)
