"""Where the segments of a batch lie and which attend to which: padding is left out wherever nothing needs it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iefvad.model.attention import Span, serves

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
        if not _known(lengths):
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
        rows: Tensor = _Move.apply(padded, self, True)
        return rows

    def place(self, rows: Tensor) -> Tensor:
        """(R, ...) → (B, T, ...): the valid rows at their places, zeros in the padding."""
        padded: Tensor = _Move.apply(rows, self, False)
        return padded


class Layout(NamedTuple):
    """What the encoders are told of a batch.

    `rows`: those that are computed, None for all of (B, T). `spans`: rows of one video each that attend to each other;
    where None, `mask`, which broadcasts to (B, 1, T, T) bool, is True where a segment may attend to another, and None
    lets all attend to all.
    """

    rows: ValidRows | None = None
    spans: list[Span] | None = None
    mask: Tensor | None = None


def lay_out(
    shape: tuple[int, int],
    lengths: Tensor | None,
    device: torch.device,
    *,
    window: int | None,
    padding: bool,
    dropout: float,
) -> tuple[Tensor | None, Layout]:
    """The valid segments, (B, T) bool, None for all; and the layout of a batch of `shape` (B, T) on a device.

    `lengths` (B,), `window` as of the model; `padding`: it takes part in attention; `dropout` of this pass' attention.
    """
    batch, segments = shape
    if lengths is not None and _known(lengths) and (lengths.numpy() >= segments).all():
        lengths = None  # without a mask torch has faster attention
    position = torch.arange(segments, device=device)
    valid = None if lengths is None else position < lengths.to(device, non_blocking=True).unsqueeze(1)
    excluded = None if padding else lengths
    rows = None if excluded is None else ValidRows.of(excluded, segments, device)
    if window is None and serves(device, dropout) and (excluded is None or _known(excluded)):
        ends = [segments] * batch if excluded is None else excluded.clamp(0, segments).numpy().tolist()
        apart = [segments * index for index in range(batch)]
        starts = apart if rows is None else [0, *itertools.accumulate(ends[:-1])]
        return valid, Layout(rows, [(start, start + end) for start, end in zip(starts, ends, strict=True)])
    mask = None if excluded is None or valid is None else valid[:, None, None, :]
    if window is not None:
        near = position // window == (position // window).unsqueeze(1)
        mask = near if mask is None else mask & near
    if mask is not None:
        # Padding attends to itself (it is zeroed): a softmax over nothing would be NaN.
        mask = mask | (position == position.unsqueeze(1))
    return valid, Layout(rows, mask=mask)


def _known(lengths: Tensor) -> bool:
    """Whether code may depend on the values, without a wait for the device and without a break of a compiled graph."""
    return lengths.device.type == "cpu" and not torch.compiler.is_compiling()


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


class _Move(torch.autograd.Function):
    """Taking rows out or placing them; each is the other's backward pass, without an index's additions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: ValidRows, out: bool) -> Tensor:
        ctx.rows, ctx.out = rows, out
        return _take(values, rows) if out else _place(values, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _place(grad, ctx.rows) if ctx.out else _take(grad, ctx.rows), None, None
