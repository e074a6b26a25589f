"""Self-attention with dropout for training on the CPU, without the weights and masks of a whole batch in memory.

torch's `scaled_dot_product_attention` has a fused CPU kernel for attention without dropout only. With dropout it writes
and keeps scores, weights, masks and masked weights of the whole padded batch. Here one video after another, without
its padding, goes through all steps within the cache, and the backward pass computes the weights again. Kept are
queries, keys, values and one byte per weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

WEIGHTS = 1 << 19
"""Maximum number of attention weights in work at a time (2 MiB in float32), unless a single video has more."""
_DRAWS = 1 << 16  # a weight is dropped if 16 random bits are below dropout·2¹⁶

Span = tuple[int, int]


def serves(device: torch.device, dropout: float) -> bool:
    """Return whether `attention_with_dropout` serves this device and dropout. A compiler fuses the plain form."""
    return device.type == "cpu" and 0 < _cut(dropout) < _DRAWS and not torch.compiler.is_compiling()


def attention_with_dropout(qkv: Tensor, spans: Sequence[Span], dropout: float) -> Tensor:
    """Compute softmax(QKᵀ/√d)·V with dropout of the weights, on the CPU.

    Args:
        qkv: (N, 3, H, d) queries, keys and values of N rows and H heads, floating point.
        spans: (start, end) rows that attend to each other, ascending. Rows outside all spans become zeros.
        dropout: Probability, rounded to a multiple of 2⁻¹⁶; the remaining weights are scaled to match.

    Returns:
        (N, H·d), of the dtype of `qkv`.
    """
    found: Tensor = _Dropped.apply(qkv, _runs(spans, qkv.shape[2]), _cut(dropout))
    return found


def _cut(dropout: float) -> int:
    return round(dropout * _DRAWS)


def _runs(spans: Sequence[Span], heads: int) -> list[tuple[int, int, int]]:
    """(first row, number, length) of spans that are computed together: neighbours of equal length, within `WEIGHTS`."""
    runs: list[tuple[int, int, int]] = []
    for start, end in spans:
        length = end - start
        if runs and length == runs[-1][2]:
            first, number, _ = runs[-1]
            if first + number * length == start and (number + 1) * heads * length**2 <= WEIGHTS:
                runs[-1] = first, number + 1, length
                continue
        if length:
            runs.append((start, 1, length))
    return runs


def _keep(shape: tuple[int, ...], cut: int) -> Tensor:
    """Bool tensor, False with probability cut/2¹⁶; each drawn 64-bit number gives four values."""
    count = math.prod(shape)
    bits = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-count // 4),), dtype=torch.int64)
    return (bits.view(torch.int16)[:count] >= cut - _DRAWS // 2).view(shape)


def _parts(qkv: Tensor, runs: Sequence[tuple[int, int, int]]) -> Iterator[tuple[slice, tuple[int, ...], Any]]:
    """Per run: its rows, their shape (n, T, H, d), and scaled queries, keys and values, (n, H, T, d) each."""
    heads, width = qkv.shape[2:]
    for first, number, length in runs:
        rows = slice(first, first + number * length)
        query, key, value = qkv[rows].view(number, length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        yield rows, (number, length, heads, width), (query * width**-0.5, key, value)


class _Dropped(torch.autograd.Function):
    """Attention with dropout of cut/2¹⁶ over runs of videos."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, runs: list[tuple[int, int, int]], cut: int) -> Tensor:
        qkv = qkv.contiguous()
        out = qkv.new_zeros(qkv.shape[0], *qkv.shape[2:])
        kept = []
        with torch.autocast("cpu", enabled=False):
            for rows, shape, (query, key, value) in _parts(qkv, runs):
                weights = torch.softmax(torch.matmul(query, key.transpose(-1, -2)), -1)
                kept.append(_keep(tuple(weights.shape), cut))
                value = value * (_DRAWS / (_DRAWS - cut))
                out[rows].view(shape).copy_(torch.matmul(weights.mul_(kept[-1]), value).transpose(1, 2))
        ctx.save_for_backward(qkv, *kept)
        ctx.runs, ctx.cut = runs, cut
        return out.flatten(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        qkv, *kept = ctx.saved_tensors
        grad_qkv = torch.zeros_like(qkv)
        with torch.autocast("cpu", enabled=False):
            for keep, (rows, shape, (query, key, value)) in zip(kept, _parts(qkv, ctx.runs), strict=True):
                number, length, heads, width = shape
                weights = torch.softmax(torch.matmul(query, key.transpose(-1, -2)), -1)
                upstream = grad[rows].view(shape).transpose(1, 2) * (_DRAWS / (_DRAWS - ctx.cut))
                grad_value = torch.matmul((weights * keep).transpose(-1, -2), upstream)
                grad_weights = torch.matmul(upstream, value.transpose(-1, -2)).mul_(keep)
                grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                grad_query = torch.matmul(grad_scores, key).mul_(width**-0.5)
                grad_key = torch.matmul(grad_scores.transpose(-1, -2), query)
                into = grad_qkv[rows].view(number, length, 3, heads, width)
                for part, found in enumerate((grad_query, grad_key, grad_value)):
                    into[:, :, part] = found.transpose(1, 2)
        return grad_qkv, None, None
