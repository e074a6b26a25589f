"""Self-attention for training on the CPU: dropout, and neither weights nor masks of a whole batch in memory.

`scaled_dot_product_attention` has a fused CPU kernel without dropout alone; with it, scores, weights, masks and masked
weights of the whole padded batch are written and kept. Here one video after another, without its padding, goes through
all steps within the cache, and the backward pass computes the weights again; what is kept is queries, keys, values and
a byte a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

WEIGHTS = 1 << 19
"""Attention weights that are worked on at a time, 2 MiB in float32, unless a single video has more."""
_DRAWS = 1 << 16  # a weight is dropped if 16 random bits are below dropout·2¹⁶

Span = tuple[int, int]


def serves(device: torch.device, dropout: float) -> bool:
    """Whether `attention_with_dropout` is there for it. A compiler fuses the plain form itself."""
    return device.type == "cpu" and 0 < _cut(dropout) < _DRAWS and not torch.compiler.is_compiling()


def attention_with_dropout(qkv: Tensor, spans: Sequence[Span], dropout: float) -> Tensor:
    """softmax(QKᵀ/√d)·V with dropout of the weights, (N, 3, H, d) → (N, H·d), floating point, on the CPU.

    Rows of one span (start, end) attend to each other; spans ascend, and rows of none become zeros. The probability
    of dropout is rounded to a multiple of 2⁻¹⁶, and the rest is scaled to match.
    """
    found: Tensor = _Dropped.apply(qkv, _runs(spans, qkv.shape[2]), _cut(dropout))
    return found


def _cut(dropout: float) -> int:
    return round(dropout * _DRAWS)


def _runs(spans: Sequence[Span], heads: int) -> list[tuple[int, int, int]]:
    """(first row, number, length) of spans that are taken together: neighbours of one length, within `WEIGHTS`."""
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
    """Bool tensor, False with probability cut/2¹⁶, four values from each number that is drawn."""
    count = math.prod(shape)
    bits = torch.randint(-(1 << 63), (1 << 63) - 1, (-(-count // 4),), dtype=torch.int64)
    return (bits.view(torch.int16)[:count] >= cut - _DRAWS // 2).view(shape)


def _parts(qkv: Tensor, runs: Sequence[tuple[int, int, int]]) -> Iterator[tuple[slice, tuple[int, ...], Any]]:
    """Of each run its rows, their shape (n, T, H, d), and queries, scaled, keys and values, (n, H, T, d) each."""
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
        gradient = torch.zeros_like(qkv)
        with torch.autocast("cpu", enabled=False):
            for keep, (rows, shape, (query, key, value)) in zip(kept, _parts(qkv, ctx.runs), strict=True):
                number, length, heads, width = shape
                weights = torch.softmax(torch.matmul(query, key.transpose(-1, -2)), -1)
                upstream = grad[rows].view(shape).transpose(1, 2) * (_DRAWS / (_DRAWS - ctx.cut))
                to_value = torch.matmul((weights * keep).transpose(-1, -2), upstream)
                to_weights = torch.matmul(upstream, value.transpose(-1, -2)).mul_(keep)
                to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                to_query = torch.matmul(to_scores, key).mul_(width**-0.5)
                to_key = torch.matmul(to_scores.transpose(-1, -2), query)
                into = gradient[rows].view(number, length, 3, heads, width)
                for part, found in enumerate((to_query, to_key, to_value)):
                    into[:, :, part] = found.transpose(1, 2)
        return gradient, None, None
