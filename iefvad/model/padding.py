"""Which rows of a padded batch are computed, and which segments attend to which. Padding is skipped where possible."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iefvad.model.attention import Span, serves

_WORTH = 0.9
"""Skip compaction above this valid fraction: moving rows would cost more than leaving out the padding saves."""


@dataclass(frozen=True)
class ValidRows:
    """The rows of a padded (B, T, ...) batch that are segments of its videos.

    Attributes:
        index: (V,) int64, their positions among all B·T rows, on the batch's device.
        count: R ≥ V, number of rows of a compacted tensor; the last R − V are zeros.
        batch: B.
        segments: T.
    """

    index: Tensor
    count: int
    batch: int
    segments: int

    @classmethod
    def of(cls, lengths: Tensor, segments: int, device: torch.device) -> ValidRows | None:
        """Make the rows of videos from their lengths; None where computing all rows is as good.

        Args:
            lengths: (B,) integers. Lengths on a GPU give None, because reading them would wait for the GPU.
            segments: T.
            device: Device of the batch.
        """
        if not _known(lengths):
            return None
        valid = np.arange(segments) < lengths.numpy()[:, None]
        index = np.flatnonzero(valid)
        # At most 32 different counts between two powers of two. Every batch has another number of valid rows, and
        # memory, oneDNN's code and a GPU's tiles are reused for counts that occurred before.
        step = 1 << max(0, index.size.bit_length() - 6)
        count = -(-index.size // step) * step
        if not 0 < count < _WORTH * valid.size:
            return None
        return cls(torch.from_numpy(index).to(device, non_blocking=True), count, len(lengths), segments)

    def take(self, padded: Tensor) -> Tensor:
        """(B, T, D) → (R, D): the valid rows, then rows of zeros. The padding is never read; it may contain NaN."""
        rows: Tensor = _Move.apply(padded, self, True)
        return rows

    def place(self, rows: Tensor) -> Tensor:
        """(R, ...) → (B, T, ...): the valid rows at their positions, zeros in the padding."""
        padded: Tensor = _Move.apply(rows, self, False)
        return padded


class Layout(NamedTuple):
    """How the encoders compute a batch.

    Attributes:
        rows: The rows that are computed; None: all of (B, T).
        spans: Rows that attend to each other, one span per video. None: `mask` decides.
        mask: Bool, broadcasts to (B, 1, T, T), True where a segment may attend to another. None: all attend to all.
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
    """Decide how a batch is computed.

    Args:
        shape: (B, T).
        lengths: (B,) integers; None: all segments are valid.
        device: Device of the network.
        window: The network's attention window.
        padding: Padding takes part in attention.
        dropout: Dropout of the attention in this pass.

    Returns:
        The valid segments, (B, T) bool or None for all, and the layout.
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
    """Whether code may read the values without waiting for a device and without breaking a compiled graph."""
    return lengths.device.type == "cpu" and not torch.compiler.is_compiling()


def split(qkv: Tensor, rows: ValidRows | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a batch from one projection.

    Args:
        qkv: (B, T, 3, H, d); with `rows` (R, 3, H, d), which are placed.
        rows: The rows that were computed; None: all of (B, T).

    Returns:
        (B, H, T, d) each, views of one tensor.
    """
    if rows is None and torch.compiler.is_compiling():
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value
    query, key, value = _Split.apply(qkv, rows)
    return query, key, value


def _take(padded: Tensor, rows: ValidRows) -> Tensor:
    flat = padded.flatten(0, 1)
    taken = flat.new_empty(rows.count, *flat.shape[1:])
    valid = len(rows.index)
    torch.index_select(flat, 0, rows.index, out=taken[:valid])
    taken[valid:] = 0
    return taken


def _place(taken: Tensor, rows: ValidRows) -> Tensor:
    flat = taken.new_zeros(rows.batch * rows.segments, *taken.shape[1:])
    _wide(flat)[rows.index] = _wide(taken[: len(rows.index)])
    return flat.view(rows.batch, rows.segments, *taken.shape[1:])


def _wide(values: Tensor) -> Tensor:
    """(N, ...) → (N, K): the same bytes as 16-byte numbers where they fit. Indexing on a GPU moves a number per thread.

    A view where `values` is one row after another, at any distance.
    """
    flat = values.reshape(len(values), -1)
    if flat.device.type not in ("cpu", "cuda"):  # not every device has complex numbers
        return flat
    size = flat.element_size()
    if flat.stride(1) == 1 and not any(n * size % 16 for n in (flat.shape[1], flat.stride(0), flat.storage_offset())):
        return flat.view(torch.complex128)
    return flat


class _Move(torch.autograd.Function):
    """Take rows or place them. Each is the backward pass of the other, without the additions of indexing."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: ValidRows, out: bool) -> Tensor:
        ctx.rows, ctx.out = rows, out
        return _take(values, rows) if out else _place(values, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _place(grad, ctx.rows) if ctx.out else _take(grad, ctx.rows), None, None


class _Split(torch.autograd.Function):
    """`split`. Its backward pass writes each of three gradients once, into its place in the projection's gradient."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rows: ValidRows | None) -> tuple[Tensor, ...]:
        ctx.rows = rows
        padded = qkv if rows is None else _place(qkv, rows)
        return padded.permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rows: ValidRows | None = ctx.rows
        batch, heads, segments, width = grads[0].shape
        count = batch * segments if rows is None else rows.count
        valid = count if rows is None else len(rows.index)
        whole = grads[0].new_empty(count, 3, heads, width)
        for part, grad in enumerate(grads):
            found = _wide(grad.transpose(1, 2).flatten(0, 1))
            into = _wide(whole[:valid, part]) if found.is_complex() else whole[:valid, part].flatten(1)
            if rows is None:
                into.copy_(found)
            else:
                torch.index_select(found, 0, rows.index, out=into)
        whole[valid:] = 0
        return whole.view(batch, segments, 3, heads, width) if rows is None else whole, None
