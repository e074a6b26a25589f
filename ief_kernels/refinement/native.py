"""Refinement with torch's matrix products, in-place epilogues and a hidden layer that is never stored.

With h = relu(W1·z + b1) recomputed from z_k, λ = attenuation and g the gradient of z_{k+1}:

    gh = [h > 0]·(g·W2)        W2: -λ·gᵀ·h     b2: -λ·Σ g     W1: -λ·ghᵀ·z     b1: -λ·Σ gh     z_k: g - λ·gh·W1

The state z and its gradient stay in float32 (float64 for float64); the products run in `dtype`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .._products import product
from .._tensors import cast, compute_dtype
from ..dispatch import Facts, register_backend


def _check(device: torch.device, dtype: torch.dtype, facts: Facts) -> str | None:
    """Serve every device that has memory: torch's own matrix products run there."""
    return "tensors on meta have no memory" if device.type == "meta" else None


register_backend("refine", "native", _check, lambda facts: "torch's matrix products")

Weights = tuple[Tensor, Tensor, Tensor, Tensor]


def kept_steps(steps: int, every: int) -> list[int]:
    """Return the steps k whose input z_k is kept beside z_0: every, 2·every, ... below `steps`."""
    return list(range(every, steps, every))


def _without_autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _block(weights: Weights, step: int, dtype: torch.dtype) -> Weights:
    k = 0 if weights[0].shape[0] == 1 else step
    w1, b1, w2, b2 = [cast(weight[k], dtype) for weight in weights]
    return w1, b1, w2, b2


def _hidden(z: Tensor, w1: Tensor, b1: Tensor) -> Tensor:
    return product(cast(z, w1.dtype), w1.t(), b1, relu=True)


def _step(z: Tensor, block: Weights, attenuation: float, out: Tensor) -> Tensor:
    """Compute z - attenuation·(W2·relu(W1·z + b1) + b2), written to `out` (which may not be z)."""
    w1, b1, w2, b2 = block
    return torch.sub(z, product(_hidden(z, w1, b1), w2.t(), b2), alpha=attenuation, out=out)


def forward(
    z: Tensor, weights: Weights, attenuation: float, steps: int, every: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return z_N, of z's shape and dtype, and the kept states (n, rows, D)."""
    with _without_autocast(z.device.type):
        rows = z.reshape(-1, z.shape[-1]) if z.numel() else z.new_empty((z.shape[:-1].numel(), z.shape[-1]))
        rows = cast(rows, compute_dtype(z.dtype))
        kept = kept_steps(steps, every)
        saved = rows.new_empty((len(kept), *rows.shape))
        if steps == 0:
            return z.clone(memory_format=torch.contiguous_format), saved
        state, spare = rows, [torch.empty_like(rows) for _ in range(2 if steps - len(kept) > 1 else 1)]
        for k in range(steps):
            if k + 1 in kept:
                out = saved[(k + 1) // every - 1]
            else:
                out = next(buffer for buffer in spare if buffer is not state)
            state = _step(state, _block(weights, k, dtype), attenuation, out)
        return cast(state.view(z.shape), z.dtype), saved


def backward(
    grad: Tensor,
    z: Tensor,
    saved: Tensor,
    weights: Weights,
    attenuation: float,
    steps: int,
    every: int,
    dtype: torch.dtype,
    with_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of z, w1, b1, w2 and b2 (those of the weights empty without `with_weights`)."""
    with _without_autocast(z.device.type):
        arithmetic = compute_dtype(z.dtype)
        shape = (z.shape[:-1].numel(), z.shape[-1])
        g = cast(grad.reshape(shape), arithmetic).contiguous()
        rows = cast(z.reshape(shape), arithmetic)
        sums = [torch.zeros_like(w, dtype=arithmetic) for w in weights] if with_weights else []
        spare = [torch.empty_like(g) for _ in range(min(steps, 2))]
        for start in reversed([0, *kept_steps(steps, every)]):
            states = [saved[start // every - 1] if start else rows]
            for k in range(start, min(start + every, steps) - 1):
                block = _block(weights, k, dtype)
                states.append(_step(states[-1], block, attenuation, torch.empty_like(rows)))
            for k in reversed(range(start, start + len(states) if steps else 0)):
                out = next(buffer for buffer in spare if buffer is not g)
                block, totals = _block(weights, k, dtype), [total[k % len(total)] for total in sums]
                _backward_step(g, out, states.pop(), block, attenuation, totals)
                g = out
        sums = [cast(total, weight.dtype) for total, weight in zip(sums, weights, strict=False)]
        w1, b1, w2, b2 = sums or [weight.new_empty(0) for weight in weights]
        if steps == 0:
            g = g.clone()  # an operator returns no input
        return cast(g.view(z.shape), z.dtype), w1, b1, w2, b2


def _backward_step(g: Tensor, out: Tensor, z: Tensor, block: Weights, attenuation: float, sums: list[Tensor]) -> None:
    """Writes the gradient of z to `out` and adds those of the block to `sums` (w1, b1, w2, b2; or empty)."""
    w1, b1, w2, _ = block
    hidden = _hidden(z, w1, b1)
    narrow, z = cast(g, w1.dtype), cast(z, w1.dtype)
    gh = product(narrow, w2)
    if sums:
        _add_product(sums[2], narrow, hidden, attenuation)
        sums[3].sub_(g.sum(0), alpha=attenuation)
    gh = torch.ops.aten.threshold_backward(gh, hidden, 0)
    del hidden
    if sums:
        _add_product(sums[0], gh, z, attenuation)
        sums[1].sub_(gh.sum(0, dtype=g.dtype), alpha=attenuation)
    torch.sub(g, product(gh, w1), alpha=attenuation, out=out)


def _add_product(total: Tensor, a: Tensor, b: Tensor, attenuation: float) -> None:
    """Compute total -= attenuation·aᵀ·b."""
    total.sub_(product(a.t(), b), alpha=attenuation)
