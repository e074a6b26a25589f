"""The valid rows of a padded batch, so that what treats each segment alone need not compute the padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_WORTH = 0.9
"""Share of valid rows from which on leaving out the rest saves less than moving rows costs."""


@dataclass(frozen=True)
class ValidRows:
    """Which rows of a padded (B, T, ...) batch are segments of its videos.

    `index` (V,) int64: their places among all B·T, on the batch's device. `count` R ≥ V: of rows as taken out.
    """

    index: Tensor
    count: int
    batch: int
    segments: int

    @classmethod
    def of(cls, lengths: Tensor, segments: int, device: torch.device) -> ValidRows | None:
        """The first `lengths` (B,) of `segments` rows of each video; None where all rows may as well be computed.

        Lengths on a GPU are not looked at, since that would wait for it: None.
        """
        if lengths.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        valid = np.arange(segments) < lengths.numpy()[:, None]
        index = np.flatnonzero(valid)
        # At most 32 counts between a power of two and the next: every batch has another number of valid rows, and
        # memory, oneDNN's code and a GPU's tiles are reused for counts that were there before.
        step = 1 << max(0, index.size.bit_length() - 6)
        count = -(-index.size // step) * step
        if not 0 < count < _WORTH * valid.size:
            return None
        return cls(torch.from_numpy(index).to(device, non_blocking=True), count, len(lengths), segments)

    def take(self, padded: Tensor) -> Tensor:
        """(B, T, D) → (R, D): the valid rows, then rows of zeros. What lies in the padding, NaN even, is not read."""
        rows: Tensor = _Take.apply(padded, self)
        return rows

    def place(self, rows: Tensor) -> Tensor:
        """(R, ...) → (B, T, ...): the valid rows at their places, zeros in the padding."""
        padded: Tensor = _Place.apply(rows, self)
        return padded


def _take(padded: Tensor, rows: ValidRows) -> Tensor:
    flat = padded.flatten(0, 1)
    taken = flat.new_empty(rows.count, *flat.shape[1:])
    valid = len(rows.index)
    torch.index_select(flat, 0, rows.index, out=taken[:valid])
    taken[valid:] = 0
    return taken


def _place(taken: Tensor, rows: ValidRows) -> Tensor:
    flat = taken.new_zeros(rows.batch * rows.segments, *taken.shape[1:])
    flat[rows.index] = taken[: len(rows.index)]
    return flat.view(rows.batch, rows.segments, *taken.shape[1:])


class _Take(torch.autograd.Function):
    """Forward and backward are each other's, without the additions that an index's own backward pass makes."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, rows: ValidRows) -> Tensor:
        ctx.rows = rows
        return _take(padded, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _place(grad, ctx.rows), None


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, taken: Tensor, rows: ValidRows) -> Tensor:
        ctx.rows = rows
        return _place(taken, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _take(grad, ctx.rows), None
