"""The CUDA C++ kernel of event_synthesis on uint8 CUDA tensors (csrc/cuda/event_synthesis.cu)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _cuda_extension
from .arguments import map_dtype, map_shape
from .layout import normalise, packed_rows


def check(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return None if the kernel takes tensors of this dtype on this GPU, else the reason why it does not."""
    reason = _cuda_extension.why_not(device)
    if reason is None and dtype != torch.uint8:
        reason = f"its CUDA kernel takes uint8 frames, not {dtype}"
    return reason


def forward(
    frames: Tensor, carry: Tensor | None, rgb: bool, threshold: int, clamp: int, normalize: str, split: bool
) -> tuple[Tensor, Tensor]:
    """Return the maps, and what their counts were divided by; nothing here waits for the GPU."""
    dtype = map_dtype(frames.dtype, normalize)
    maps = torch.empty(map_shape(frames, rgb, split), dtype=dtype, device=frames.device)
    prefix = frames.dim() - (4 if rgb else 3)
    pixels = packed_rows(frames, prefix, rgb)
    last = None if carry is None else packed_rows(carry, prefix, rgb)
    peaks = torch.zeros(pixels.shape[0], dtype=torch.int32, device=frames.device)
    divisor = float(clamp) if normalize == "clamp" else 1.0
    if maps.numel():
        _cuda_extension.extension().event_synthesis_forward(
            frames=pixels.data_ptr(),
            strides=pixels.stride()[:3],
            carry=0 if last is None else last.data_ptr(),
            carry_strides=(0, 0) if last is None else last.stride()[:2],
            shape=tuple(pixels.shape),
            threshold=threshold,
            clamp=clamp,
            split=split,
            divisor=0.0 if dtype == torch.uint8 else divisor,
            maps=maps.data_ptr(),
            peaks=peaks.data_ptr() if normalize in ("segment", "batch") else 0,
            device=frames.get_device(),
            stream=torch.cuda.current_stream(frames.device).cuda_stream,
        )
    return maps, normalise(maps, peaks, clamp, normalize, split)
