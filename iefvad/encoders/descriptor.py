"""Fixed descriptors of frames and event maps: the encoder that needs no weights.

Each stream has several groups of features, which `_image_groups` and `_event_groups` compute from a few pooled planes.
Each group is standardised by a constant centre and scale (`IMAGE_SCALES`, `EVENT_SCALES`: rounded mean and standard
deviation over real videos), so that all groups have similar weight. The groups are concatenated and padded with zeros
to `DIM`. Nothing is random and nothing is learned. A row depends only on its own frame or map.

There are two kinds of features. *Placed* features are the values of the cells of a coarse grid. *Order statistics* over
cells tell that a strong value exists somewhere in the picture, at any place.

`VERSION` is part of a store's encoder hash. Raise it with every change of the output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VERSION = 2
DIM = 128

# (centre, scale) of each group.
IMAGE_SCALES: dict[str, tuple[float, float]] = {
    "deviation ranks": (0.11, 0.11),
    "colour ranks": (0.04, 0.13),
    "edge ranks": (0.08, 0.08),
    "direction ranks": (0.05, 0.46),
    "contrast": (0.11, 0.07),
    "placed deviation": (0.08, 0.05),
}
EVENT_SCALES: dict[str, tuple[float, float]] = {
    "density ranks 0": (0.33, 0.33),
    "density ranks 1": (0.32, 0.31),
    "density ranks 2": (0.31, 0.28),
    "density ranks 3": (0.28, 0.24),
    "levels": (0.13, 0.14),
    "repeats": (0.18, 0.24),
    "level ranks": (0.29, 0.33),
    "edges": (0.22, 0.15),
    "spread": (0.12, 0.10),
    "mass": (0.24, 0.30),
    "peak across": (0.26, 0.24),
    "peak down": (0.28, 0.22),
}

_IMAGE_RANKS = (0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
_EVENT_RANKS = (1.0, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.65, 0.5)
_FEW_RANKS = (1.0, 0.98, 0.94, 0.85, 0.7)


def describe_images(frames: Tensor) -> Tensor:
    """Describe the appearance of frames.

    Args:
        frames: uint8 (n, H, W, 3) RGB, H and W at least 112.

    Returns:
        float32 (n, DIM) on the same device.

    Raises:
        ValueError: The shape or dtype is different.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 (n, H, W, 3), not {frames.dtype} {tuple(frames.shape)}")
    if min(frames.shape[1:3]) < 112:
        raise ValueError(f"frames must be at least 112 pixels high and wide, not {tuple(frames.shape[1:3])}")
    # Every second pixel in each direction is enough for the averages over cells, at a quarter of the work.
    red, green, blue = (frames[:, ::2, ::2, channel].to(torch.float32) / 255 for channel in range(3))
    return _pack(_image_groups(red, green, blue), IMAGE_SCALES)


def describe_events(maps: Tensor) -> Tensor:
    """Describe the motion in event maps.

    Args:
        maps: Floating point (n, H, W) in [0, 1], H and W at least 112.

    Returns:
        float32 (n, DIM) on the same device.

    Raises:
        ValueError: The shape or dtype is different.
    """
    if maps.ndim != 3 or not maps.is_floating_point():
        raise ValueError(f"maps must be floating point (n, H, W), not {maps.dtype} {tuple(maps.shape)}")
    if min(maps.shape[1:]) < 112:
        raise ValueError(f"maps must be at least 112 pixels high and wide, not {tuple(maps.shape[1:])}")
    return _pack(_event_groups(maps.to(torch.float32)), EVENT_SCALES)


def _image_groups(red: Tensor, green: Tensor, blue: Tensor) -> dict[str, Tensor]:
    """Feature groups of frames, given as three planes (n, h, w) in [0, 1]."""
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    dx = luma[:, :-1, 1:] - luma[:, :-1, :-1]
    dy = luma[:, 1:, :-1] - luma[:, :-1, :-1]

    def cells(plane: Tensor) -> Tensor:
        return _pool(plane, 14)

    red_mean, green_mean, blue_mean, mean = cells(red), cells(green), cells(blue), cells(luma)
    square = cells(luma * luma)
    across, down, diagonal = (cells(F.pad(plane, (0, 1, 0, 1))) for plane in (dx.abs(), dy.abs(), dx * dy))
    red_green, yellow_blue = red_mean - green_mean, 0.5 * (red_mean + green_mean) - blue_mean
    deviation = (square - mean * mean).clamp_min(0).sqrt()
    edges = across + down
    slant = diagonal / (edges * edges + 1e-3)
    upright = (across - down) / (edges + 1e-2)
    maps = torch.stack((mean, deviation, red_green, yellow_blue, edges, upright, slant), dim=1)
    surround = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    contrast = (maps - surround).abs()[:, :5]
    ranked = _ranks(maps[:, 1:].flatten(2), _IMAGE_RANKS)
    return {
        "deviation ranks": ranked[:, 0],
        "colour ranks": ranked[:, 1:3].flatten(1),
        "edge ranks": ranked[:, 3],
        "direction ranks": ranked[:, 4:6].flatten(1),
        "contrast": _ranks(contrast.flatten(2), (1.0, 0.99, 0.97, 0.9)).flatten(1),
        "placed deviation": F.adaptive_avg_pool2d(deviation, 7).flatten(1),
    }


def _event_groups(maps: Tensor) -> dict[str, Tensor]:
    """Feature groups of event maps (n, H, W) in [0, 1]. Square roots spread the many small densities."""
    finest = _pool(maps, 56)
    fine, middle, coarse = _pool(finest, 28), _pool(finest, 14), _pool(finest, 7)
    scales = (finest, fine, middle, coarse)
    sparse = maps[:, ::2, ::2].contiguous()  # a quarter of the pixels is enough for counts of pixels
    at_least = torch.stack([(sparse >= k / 10 - 0.05).to(torch.float32) for k in range(1, 11)], dim=1)
    area = _pool(at_least, 7)  # (n, 10, 7, 7): fraction of a cell's pixels with k events or more
    total = area.mean((2, 3))
    cells = area.flatten(2)
    across = _pool(F.pad((sparse[:, :, 1:] - sparse[:, :, :-1]).abs(), (0, 1)), 14).flatten(1)
    down = _pool(F.pad((sparse[:, 1:] - sparse[:, :-1]).abs(), (0, 0, 0, 1)), 14).flatten(1)
    spread = (_pool(sparse * sparse, 14) - _pool(sparse, 14) ** 2).clamp_min(0).flatten(1)
    window = _around_peak(fine, 4)
    return {
        **{
            f"density ranks {i}": torch.cat((_ranks(s.flatten(1), _EVENT_RANKS), s.flatten(1).mean(1, True)), 1).sqrt()
            for i, s in enumerate(scales)
        },
        "levels": total.sqrt(),
        "repeats": total[:, 1:] / (total[:, :1] + 1e-3),
        "level ranks": _ranks(cells[:, [0, 2, 5, 9]], _FEW_RANKS).flatten(1).sqrt(),
        "edges": torch.cat((_ranks(across, _FEW_RANKS), _ranks(down, _FEW_RANKS)), 1).sqrt(),
        "spread": _ranks(spread, _FEW_RANKS).sqrt(),
        "mass": _moments(fine),
        "peak across": window.mean(1).sqrt(),
        "peak down": window.mean(2).sqrt(),
    }


def _pool(planes: Tensor, cells: int) -> Tensor:
    """Mean over each cell of a grid: (..., h, w) → (..., cells, cells).

    Rows and columns at the lower and right border that do not fill a cell are left out. Rows are summed first, along
    contiguous memory, which is several times as fast as avg_pool2d on a CPU.
    """
    *lead, height, width = planes.shape
    down, across = height // cells, width // cells
    planes = planes[..., : down * cells, : across * cells]
    summed = planes.reshape(*lead, cells, down, cells * across).sum(-2)
    return summed.reshape(*lead, cells, cells, across).sum(-1) / (down * across)


def _ranks(values: Tensor, ranks: tuple[float, ...]) -> Tensor:
    """Order statistics along the last dimension, without interpolation. Rank 0 is the smallest value, 1 the largest."""
    last = values.shape[-1] - 1
    index = torch.tensor([round(rank * last) for rank in ranks], device=values.device)
    return values.sort(dim=-1).values.index_select(-1, index)


def _moments(density: Tensor) -> Tensor:
    """Centre, spread, entropy, peak and total of (n, h, w) densities: (n, 7)."""
    _, height, width = density.shape
    mass = density.sum((1, 2)) + 1e-2
    y = torch.linspace(-1, 1, height, device=density.device)
    x = torch.linspace(-1, 1, width, device=density.device)
    along_y, along_x = density.sum(2), density.sum(1)
    mean_y, mean_x = (along_y * y).sum(1) / mass, (along_x * x).sum(1) / mass
    var_y = ((along_y * (y * y)).sum(1) / mass - mean_y**2).clamp_min(0).sqrt()
    var_x = ((along_x * (x * x)).sum(1) / mass - mean_x**2).clamp_min(0).sqrt()
    fraction = density.flatten(1) / mass[:, None]
    entropy = -(fraction * (fraction + 1e-8).log()).sum(1) / 7
    peak = fraction.amax(1)
    return torch.stack((mean_y, mean_x, var_y, var_x, entropy, peak, mass.log() / 7), dim=1)


def _around_peak(density: Tensor, reach: int) -> Tensor:
    """Window around the largest cell of (n, h, w), `reach` cells to each side, zero outside the border."""
    _, _, width = density.shape
    peak = density.flatten(1).argmax(1)
    padded = F.pad(density, (reach,) * 4)
    side = torch.arange(2 * reach + 1, device=density.device)
    rows = (peak // width)[:, None, None] + side[:, None]
    columns = (peak % width)[:, None, None] + side
    return padded[torch.arange(len(density), device=density.device)[:, None, None], rows, columns]


def _pack(groups: dict[str, Tensor], scales: dict[str, tuple[float, float]]) -> Tensor:
    """Standardise the groups, concatenate them and pad with zeros to (n, DIM)."""
    parts = []
    for name, values in groups.items():
        centre, scale = scales[name]
        parts.append((values - centre) / scale)
    row = torch.cat(parts, dim=1)
    if row.shape[1] > DIM:
        raise AssertionError(f"the groups have {row.shape[1]} features, more than DIM = {DIM}")
    return F.pad(row, (0, DIM - row.shape[1]))
