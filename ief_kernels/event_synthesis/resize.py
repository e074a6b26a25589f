"""Bilinear resize of 8-bit pixels in fixed point: the tables and the eager reference."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_ONE = 2048  # weights are 11-bit fixed point


def axis(source: int, size: int, *, clip: bool) -> tuple[Tensor, Tensor]:
    """Where the outputs along one axis lie, and what their two neighbours weigh.

    Output i lies at x = (i + ½)·source/size − ½, between elements floor(x) and floor(x) + 1, which weigh 1 − f and f,
    f = x − floor(x) in float32. With ``clip`` (columns) an output beyond the centres of the end elements takes the end
    element alone; without (rows) both its neighbours are that element, which rounds twice.

    Returns:
        index: int32 (size,), floor(x), −1 to source − 1.
        weight: int16 (size, 2), in 2048ths, rounded half to even.
    """
    # The scale is rounded twice on purpose: once as size/source, once as its inverse.
    scale = 1.0 / (size / source)
    x = ((torch.arange(size, dtype=torch.float64, device="cpu") + 0.5) * scale - 0.5).float()
    low = x.floor()
    fraction = x - low
    if clip:
        fraction[(low < 0) | (low >= source - 1)] = 0
        low.clamp_(0, source - 1)
    weight = torch.stack([1 - fraction, fraction], 1) * WEIGHT_ONE
    return low.int(), weight.round().short()


def halves(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether both axes shrink to exactly a half, where a pixel is the rounded mean of four."""
    return (width, height) == (2 * size[0], 2 * size[1])


def resize(frames: Tensor, size: tuple[int, int] = (340, 256)) -> Tensor:
    """Bilinear resize of uint8 frames (..., H, W, C) to (..., height, width, C), `size` being (width, height).

    In integers, byte for byte what cv2.resize computes with INTER_LINEAR: with the weights a, b of `axis`,
    ``h = (a0·S[x] + a1·S[x+1]) >> 4`` across, then ``(((b0·h0) >> 16) + ((b1·h1) >> 16) + 2) >> 2`` down; the aspect
    ratio is not kept, and shrinking does not average beyond the two neighbours.
    """
    height, width = frames.shape[-3:-1]
    pixels = frames.int()
    if (width, height) == tuple(size):
        return frames.clone()
    if halves(height, width, size):
        rows = pixels[..., 0::2, :, :] + pixels[..., 1::2, :, :]
        return ((rows[..., 0::2, :] + rows[..., 1::2, :] + 2) >> 2).byte()

    def neighbours(axis_index: Tensor, source: int) -> tuple[Tensor, Tensor]:
        index = axis_index.to(frames.device)
        return index.clamp(0, source - 1), (index + 1).clamp(0, source - 1)

    index, weight = axis(width, size[0], clip=True)
    left, right = neighbours(index, width)
    a0, a1 = weight.int().to(frames.device)[:, None, :].unbind(-1)
    across = (pixels.index_select(-2, left) * a0 + pixels.index_select(-2, right) * a1) >> 4
    index, weight = axis(height, size[1], clip=False)
    above, below = neighbours(index, height)
    b0, b1 = weight.int().to(frames.device)[:, None, None, :].unbind(-1)
    down = (across.index_select(-3, above) * b0 >> 16) + (across.index_select(-3, below) * b1 >> 16)
    return ((down + 2) >> 2).byte()
