"""The C++ kernels of event_synthesis on CPU tensors (csrc/cpu/event_synthesis.cpp); CUDA tensors go to `cuda`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cuda_extension, _native
from .._tensors import address
from ..dispatch import Facts, native_check, register_backend
from . import cuda
from .arguments import DTYPES, map_dtype, map_shape
from .layout import normalise, packed_rows

_check_cpu = native_check(DTYPES)


def _check(device: torch.device, dtype: torch.dtype, facts: Facts) -> str | None:
    return cuda.check(device, dtype) if device.type == "cuda" else _check_cpu(device, dtype, facts)


def _describe(facts: Facts) -> str:
    return _cuda_extension.describe() if facts["device"].type == "cuda" else _native.describe()


register_backend("event_synthesis", "native", _check, _describe)


def _layout(frames: Tensor, carry: Tensor | None, rgb: bool) -> tuple[Tensor, Tensor | None, dict[str, object]]:
    prefix = frames.dim() - (4 if rgb else 3)
    pixels = packed_rows(frames, prefix, rgb)
    last = None if carry is None else packed_rows(carry, prefix, rgb)
    keywords = {
        "dtype": str(pixels.dtype).removeprefix("torch."),
        "frames": pixels.data_ptr(),
        "strides": pixels.stride()[:3],
        "carry": address(last),
        "carry_strides": (0, 0) if last is None else last.stride()[:2],
        "shape": tuple(pixels.shape),
        "threads": torch.get_num_threads(),
    }
    return pixels, last, keywords


def forward(
    frames: Tensor, carry: Tensor | None, rgb: bool, threshold: int, clamp: int, normalize: str, split: bool
) -> tuple[Tensor, Tensor]:
    """Return the maps, and what their counts were divided by: one number per segment, or one for all."""
    if frames.is_cuda:
        return cuda.forward(frames, carry, rgb, threshold, clamp, normalize, split)
    dtype = map_dtype(frames.dtype, normalize)
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
    return maps, normalise(maps, peaks, clamp, normalize, split)


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
    pixels, last, keywords = _layout(frames, carry, rgb)
    grad_frames = torch.empty(frames.shape, dtype=pixels.dtype)
    grad_carry = torch.empty(carry.shape if carry is not None else (0,), dtype=pixels.dtype)
    if frames.numel():
        above, scale = grad.to(pixels.dtype).contiguous(), scale.contiguous()
        _native.extension().event_synthesis_backward(
            threshold=threshold,
            clamp=clamp,
            split=split,
            surrogate=surrogate,
            grad=above.data_ptr(),
            scale=scale.data_ptr(),
            scale_stride=1 if scale.numel() > 1 else 0,
            grad_frames=grad_frames.data_ptr(),
            grad_carry=address(grad_carry) if carry is not None else 0,
            **keywords,
        )
    else:
        grad_carry.zero_()  # no frames, no differences
    del pixels, last
    return grad_frames.to(frames.dtype), grad_carry.to(frames.dtype)
