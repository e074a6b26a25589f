"""The scan by PyTorch's `associative_scan`: the 'associative' provider of the benchmarks.

With c = q + eps and b = var_t + eps a step is the Möbius map p' = b(p + c)/(p + b + c), so all p are the running
products of 2×2 matrices; the gains follow from p, and s' = (1 − gain)·s + gain·x is a running composition of affine
maps. That is what one writes to get a parallel scan, and a gradient, without a kernel of one's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

Matrix = tuple[Tensor, Tensor, Tensor, Tensor]


def _multiply(first: Matrix, then: Matrix) -> Matrix:
    """The map `first` followed by `then`, scaled so that its lower row sums to 1: the map is the same, and bounded."""
    a, b, c, d = first
    e, f, g, h = then
    top, low = (e * a + f * c, e * b + f * d), (g * a + h * c, g * b + h * d)
    scale = 1 / (low[0] + low[1])
    return top[0] * scale, top[1] * scale, low[0] * scale, low[1] * scale


def _compose(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return first[0] * then[0], first[1] * then[0] + then[1]


def kalman_scan(x: Tensor, var: Tensor, process_noise: Tensor, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and gain, (B, T, D) each, as `ief_kernels.kalman_scan` without lengths, ν and initial state."""
    from torch._higher_order_ops.associative_scan import (
        associative_scan,  # a prototype: no other provider depends on it
    )

    b, c = var + eps, (process_noise + eps).expand_as(var)
    start = (torch.arange(x.shape[1], device=x.device) == 0)[:, None]
    one = torch.ones_like(b)
    # The first step forgets what came before: the matrix of the constant map p' = var_0.
    top = torch.where(start, var, b), torch.where(start, var, b * c)
    low = one, torch.where(start, one, b + c)
    scale = 1 / (low[0] + low[1])
    steps = (top[0] * scale, top[1] * scale, low[0] * scale, low[1] * scale)
    _, numerator, _, denominator = associative_scan(_multiply, steps, dim=1, combine_mode="generic")
    variance = numerator / denominator
    before = variance[:, :-1] + c[:, 1:]
    gain = torch.cat([one[:, :1], before / (before + b[:, 1:])], 1)
    _, mean = associative_scan(_compose, (1 - gain, gain * x), dim=1, combine_mode="generic")
    return mean, variance, gain
