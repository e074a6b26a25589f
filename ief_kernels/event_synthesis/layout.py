"""Tensors as rows of pixels, and the divisors of maps: shared by the C++ and CUDA kernels of event synthesis."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_rows(tensor: Tensor, prefix: int, rgb: bool) -> Tensor:
    """View the tensor as (segments, [frames,] H, W, channels), each row without gaps; copy only if necessary.

    Args:
        tensor: frames or carried frames.
        prefix: number of dimensions before frames (of carried frames: before H).
        rgb: whether the last dimension holds colours.
    """
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if not rgb:
        tensor = tensor.unsqueeze(-1)
    width, channels = tensor.shape[-2:]
    packed = (channels == 1 or tensor.stride(-1) == 1) and (width == 1 or tensor.stride(-2) == channels)
    if not packed:
        tensor = tensor.contiguous()
    return tensor.flatten(0, prefix - 1) if prefix else tensor.unsqueeze(0)


def normalise(maps: Tensor, peaks: Tensor, clamp: int, normalize: str, split: bool) -> Tensor:
    """Divide maps of counts in place, and return the divisors.

    Args:
        maps: counts; for ``normalize="clamp"`` already divided.
        peaks: (segments,) int32, the largest count of each segment.
        clamp: largest number of events per pixel.
        normalize: as in `event_synthesis`.
        split: whether there are two maps per segment.

    Returns:
        What counts were divided by: one number per segment, or one for all.
    """
    dtype = torch.float32 if maps.dtype == torch.uint8 else maps.dtype
    if normalize == "segment":
        scale = peaks.clamp(min=1).to(dtype)
        batch = maps.shape[: -3 if split else -2]
        maps.div_(scale.view([*batch, *([1] * (maps.dim() - len(batch)))]))
        return scale
    if normalize == "batch":
        scale = (peaks.amax(0, keepdim=True) if len(peaks) else peaks.new_ones(1)).clamp(min=1).to(dtype)
        maps.div_(scale)
        return scale
    return torch.full((1,), float(clamp) if normalize == "clamp" else 1.0, dtype=dtype, device=maps.device)
