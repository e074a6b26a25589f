"""Refinement on a GPU by torch's own matrix products (cuBLASLt), with few passes over memory between them.

With λ = attenuation and R_k = λ·Σ b2_j over the steps j ≥ k of a segment, y_k = z_k - R_k obeys

    h = relu(W1_k·y_k + (b1_k + W1_k·R_k)),    y_{k+1} = y_k - λ·W2_k·h,    y = z at the end of the segment.

So the second product is added to the state in place, without a bias, and the first one ends in bias + ReLU. A segment
is the steps from one kept state to the next. Its first step multiplies z itself. Half-precision products need a rounded
copy of z_k anyway. R_k is added before it is rounded, so one segment has all steps, and b1_k stays as it is.

Column sums of the gradients g of the states follow from those of gh, the gradients of the hidden layers:
Σ g_k = Σ g_{k+1} - λ·(Σ gh_k)·W1_k. The rest of the algebra is in `native`.

Nothing here needs a GPU, so the tests run it on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._tensors import compute_dtype
from .native import Weights, kept_steps


def forward(
    z: Tensor, weights: Weights, attenuation: float, steps: int, every: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return z_N, of z's shape and dtype, and the kept states (n, rows, D).

    Kept states have the products' dtype for `every` = 1, else that of the arithmetic.
    """
    with torch.autocast(z.device.type, enabled=False):
        rows, wide = z.reshape(z.shape[:-1].numel(), z.shape[-1]), compute_dtype(z.dtype)
        kept = kept_steps(steps, every)
        saved = rows.new_empty((len(kept), *rows.shape), dtype=dtype if every == 1 else wide)
        if steps == 0:
            return z.clone(memory_format=torch.contiguous_format), saved
        blocks = _Blocks(weights, attenuation, steps, dtype)
        way = _forward if dtype == wide else _forward_in_half
        return way(rows, blocks, every, saved).to(z.dtype).view(z.shape), saved


class _Blocks:
    """The weights of each step in the products' dtype, and λ."""

    def __init__(self, weights: Weights, attenuation: float, steps: int, dtype: torch.dtype) -> None:
        # Shared blocks become views of as many.
        self.w1, self.b1, self.w2, self.b2 = (w.to(dtype).expand(steps, *w.shape[1:]) for w in weights)
        self.attenuation, self.steps, self.shared = attenuation, steps, len(weights[0]) == 1

    def offsets(self, every: int) -> Tensor:
        """R_k of each step, (steps, D) in the dtype of the arithmetic, for segments of `every` steps."""
        scaled = self.b2.to(compute_dtype(self.b2.dtype)) * self.attenuation
        if every == 1:
            return scaled
        segments, rest = -(-self.steps // every), -self.steps % every
        padded = torch.cat([scaled, scaled.new_zeros(rest, scaled.shape[1])]) if rest else scaled
        return padded.view(segments, every, -1).flip(1).cumsum(1).flip(1).flatten(0, 1)[: self.steps]


def _forward(rows: Tensor, blocks: _Blocks, every: int, saved: Tensor) -> Tensor:
    """Return z_N where the products have the dtype of the arithmetic. Each segment runs in the place of its result."""
    offsets, folded = blocks.offsets(every), blocks.b1
    if every > 1:
        folded = torch.baddbmm(blocks.b1.unsqueeze(2), blocks.w1, offsets.unsqueeze(2)).squeeze(2)
    state, out = rows, torch.empty_like(rows, memory_format=torch.contiguous_format)
    hidden = rows.new_empty(len(rows), blocks.b1.shape[1])
    for k in range(blocks.steps):
        if k % every == 0:
            _hidden(state, blocks.w1[k], blocks.b1[k], hidden)
            place = k // every
            state = torch.sub(state, offsets[k], out=saved[place] if place < len(saved) else out)
        else:
            _hidden(state, blocks.w1[k], folded[k], hidden)
        _subtract(state, hidden, blocks.w2[k].t(), blocks.attenuation)
    return state


def _forward_in_half(rows: Tensor, blocks: _Blocks, every: int, saved: Tensor) -> Tensor:
    """Return z_N where the products are half precision, and the state is float32."""
    offsets = blocks.offsets(blocks.steps)
    state = torch.sub(rows, offsets[0])  # float32, as the offsets
    hidden = rows.new_empty((len(rows), blocks.b1.shape[1]), dtype=blocks.b1.dtype)
    source = rows.to(blocks.b1.dtype)
    room = None if every == 1 or blocks.steps == 1 else torch.empty_like(source)
    for k in range(blocks.steps):
        if k > 0:
            source = torch.add(state, offsets[k], out=saved[k - 1] if room is None else room)
            if every > 1 and k % every == 0:
                torch.add(state, offsets[k], out=saved[k // every - 1])
        _hidden(source, blocks.w1[k], blocks.b1[k], hidden)
        _subtract(state, hidden, blocks.w2[k].t(), blocks.attenuation)
    return state


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
    with torch.autocast(z.device.type, enabled=False):
        shape, wide = (z.shape[:-1].numel(), z.shape[-1]), compute_dtype(z.dtype)
        rows, g = z.reshape(shape), torch.empty(shape, dtype=wide, device=z.device).copy_(grad.reshape(shape))
        blocks = _Blocks(weights, attenuation, steps, dtype)
        gradients = _Gradients(weights, blocks, g) if with_weights else None
        hidden, gated = rows.new_empty((2, len(rows), weights[0].shape[1]), dtype=dtype)
        for start in reversed([0, *kept_steps(steps, every)] if steps else []):
            first = saved[start // every - 1] if start else rows
            sources = _sources(first, weights, attenuation, start, min(start + every, steps), dtype)
            for k in reversed(range(start, start + len(sources))):
                source, narrow = sources.pop(), g.to(dtype)
                _hidden(source, blocks.w1[k], blocks.b1[k], hidden)
                torch.mm(narrow, blocks.w2[k], out=gated)
                torch.ops.aten.threshold_backward.grad_input(gated, hidden, 0, grad_input=gated)
                if gradients is not None:
                    gradients.add(k, source, hidden, gated, narrow)
                _subtract(g, gated, blocks.w1[k], attenuation)
        w1, b1, w2, b2 = (w.new_empty(0) for w in weights) if gradients is None else gradients.totals(weights)
        return g.to(z.dtype).view(z.shape), w1, b1, w2, b2


def _sources(
    first: Tensor, weights: Weights, attenuation: float, start: int, stop: int, dtype: torch.dtype
) -> list[Tensor]:
    """Return z_k in the products' dtype for start ≤ k < stop, computed from z at `start`."""
    found, more = [first.to(dtype)], stop - start - 1
    if more > 0:
        part = (w if len(w) == 1 else w[start : stop - 1] for w in weights)
        w1, b1, w2, b2 = part
        last, between = forward(first, (w1, b1, w2, b2), attenuation, more, 1, dtype)
        found += [*between, last.to(dtype)]
    return found


class _Gradients:
    """Gradients of the weights, while the backward pass goes through the steps."""

    def __init__(self, weights: Weights, blocks: _Blocks, grad: Tensor) -> None:
        self.blocks, self.grad_sum, wide = blocks, grad.sum(0), grad.dtype
        w1, _, w2, _ = weights
        # Shared blocks are summed over the steps in the dtype of the arithmetic; others are stored once, rounded.
        self.w1, self.w2 = (
            torch.empty_like(w, dtype=wide if blocks.shared else None, memory_format=torch.contiguous_format)
            for w in (w1, w2)
        )
        if blocks.steps == 0:
            self.w1, self.w2 = torch.zeros_like(self.w1), torch.zeros_like(self.w2)
        self.hidden_sums = grad.new_empty((blocks.steps, w1.shape[1]))

    def add(self, k: int, source: Tensor, hidden: Tensor, gated: Tensor, narrow: Tensor) -> None:
        """Take part in step k; `narrow` is the gradient of its result, `gated` that of its hidden layer."""
        block, more = (0, k + 1 < self.blocks.steps) if self.blocks.shared else (k, False)
        _add_gradient(self.w2[block], narrow, hidden, self.blocks.attenuation, more)
        _add_gradient(self.w1[block], gated, source, self.blocks.attenuation, more)
        torch.sum(gated, 0, dtype=self.hidden_sums.dtype, out=self.hidden_sums[k])

    def totals(self, weights: Weights) -> Weights:
        """The gradients in the weights' dtypes."""
        scale = -self.blocks.attenuation
        through = torch.bmm(self.hidden_sums.unsqueeze(1), self.blocks.w1.to(self.hidden_sums.dtype)).squeeze(1)
        later = through.flip(0).cumsum(0).flip(0) - through
        b1, b2 = self.hidden_sums * scale, (self.grad_sum + scale * later) * scale
        if self.blocks.shared:
            b1, b2 = b1.sum(0, keepdim=True), b2.sum(0, keepdim=True)
        found = (self.w1, b1, self.w2, b2)
        w1, b1, w2, b2 = (total.to(weight.dtype) for total, weight in zip(found, weights, strict=True))
        return w1, b1, w2, b2


def _hidden(source: Tensor, w1: Tensor, b1: Tensor, out: Tensor) -> None:
    """Compute out = relu(source·w1ᵀ + b1)."""
    if _works(_fused_relu, source.device, source.dtype):
        torch._addmm_activation(b1, source, w1.t(), use_gelu=False, out=out)
    else:
        torch.addmm(b1, source, w1.t(), out=out).relu_()


def _subtract(state: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """Compute state -= scale·a·b in place; state may be wider than a and b."""
    if state.dtype == a.dtype:
        state.addmm_(a, b, alpha=-scale)
    elif _works(_widening, a.device, a.dtype):
        _add_wide(state, a, b, 1.0, -scale)
    else:
        state.sub_(torch.mm(a, b), alpha=scale)


def _add_gradient(total: Tensor, a: Tensor, b: Tensor, attenuation: float, add: bool) -> None:
    """Compute total = -attenuation·aᵀ·b, or add that to it; total may be wider than a and b."""
    if total.dtype == a.dtype:
        total.addmm_(a.t(), b, beta=int(add), alpha=-attenuation)
    elif _works(_widening, a.device, a.dtype):
        _add_wide(total, a.t(), b, float(add), -attenuation)
    elif add:
        total.sub_(torch.mm(a.t(), b), alpha=attenuation)
    else:
        torch.mul(torch.mm(a.t(), b), -attenuation, out=total)


def _add_wide(total: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> None:
    """Compute total = beta·total + alpha·a·b in float32 from half precision; torch has it from 2.8 on, for CUDA."""
    torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, beta=beta, alpha=alpha, out=total)


# What the last functions of torch do is not documented for all its versions, so it is looked at once per device and
# dtype, and plain products serve where it is not as needed.

_found: dict[tuple[str, torch.device, torch.dtype], bool] = {}


def _works(check: Callable[[torch.device, torch.dtype], bool], device: torch.device, dtype: torch.dtype) -> bool:
    key = (check.__name__, device, dtype)
    if key not in _found:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # a look waits for the GPU, which a capture forbids
        try:
            _found[key] = check(device, dtype)
        except (AttributeError, RuntimeError):
            _found[key] = False
    return _found[key]


def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether half-precision products can be added to a float32 state on this device without being rounded."""
    return _works(_widening, device, dtype)


def _fused_relu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product can end in bias + ReLU, and keeps NaN."""
    a = torch.full((64, 64), -1.0, dtype=dtype)
    a[1], a[2, 3] = 1.0, torch.nan
    bias, b = torch.ones(64, dtype=dtype), torch.eye(64, dtype=dtype)
    expected = torch.zeros(64, 64, dtype=dtype)
    expected[1], expected[2] = 2.0, torch.nan
    out = torch.empty(64, 64, dtype=dtype, device=device)
    torch._addmm_activation(bias.to(device), a.to(device), b.to(device).t(), use_gelu=False, out=out)
    return torch.equal(out.cpu().nan_to_num(7.0), expected.nan_to_num(7.0))


def _widening(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `_add_wide` works, and rounds neither the product nor the state."""
    a = torch.full((64, 64), 1 + 2**-7, dtype=dtype, device=device)
    total = torch.ones(64, 64, device=device)
    _add_wide(total, a, a, 1.0, -1.0)
    return torch.equal(total.cpu(), torch.full((64, 64), -64 - 2**-8))
