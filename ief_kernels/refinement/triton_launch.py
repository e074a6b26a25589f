"""Refinement on a GPU: matrix products that end in bias + ReLU, or bias + attenuated subtraction.

Two ways forward. For few tokens (`FEW_TOKENS`), where launches cost more than products, one launch runs all steps:
teams of programs own a block of tokens each and meet twice per step. For more tokens there are two launches per step.
Backward computes for each step the hidden layer again, two products with an epilogue, and two weight gradients. These
are summed from float32 parts in a fixed order, so that the result repeats bit for bit. The algebra is in `native`.

The state and its gradient are float32. For bfloat16 and float16 products a copy in that dtype lies beside it, written
by the same epilogue. With `every` = 1 that copy is all that backward keeps, half the bytes of the state.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._triton import COOPERATIVE, INTERPRET, Config, device_guard, triton_check
from ..dispatch import Facts, register_backend
from . import triton_products as products
from .native import Weights, kept_steps

# An estimate: on a 132-processor GPU a step of 256 tokens at D = H = 768 takes about its two launches.
FEW_TOKENS = 256 if COOPERATIVE else 0


def _describe(facts: Facts) -> str:
    """Which way forward a call takes, for `explain`."""
    few, many = "all steps in one launch", "two launches per step"
    if FEW_TOKENS == 0:
        return f"kernel, {many}"
    if facts.get("shape") is None:
        return f"kernel: {few} up to {FEW_TOKENS} tokens, {many} for more"
    tokens = math.prod(facts["shape"][:-1])
    return f"kernel, {few if tokens <= FEW_TOKENS else many} (one launch up to {FEW_TOKENS} tokens)"


register_backend("refine", "triton", triton_check(), _describe)


def few_config(rows: int, size: int) -> Config:
    """Return the configuration of the single launch.

    Larger tiles would spill registers in float32 without tensor cores.
    """
    if size == 4:
        return Config({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16}, 4, 3)
    few = rows <= 64
    return Config({"BLOCK_M": 16 if few else 64, "BLOCK_N": 32, "BLOCK_K": 128 if few else 64}, 4, 4)


def saved_dtype(dtype: torch.dtype, every: int) -> torch.dtype:
    """Return the dtype of kept states: that of the products if every state is kept, else float32.

    From float32 states the rest are computed again.
    """
    return dtype if every == 1 else torch.float32


def _prepared(weights: Weights, dtype: torch.dtype) -> Weights:
    w1, b1, w2, b2 = (weight.to(dtype).contiguous() for weight in weights)
    return w1, b1, w2, b2


def _rows_of(z: Tensor) -> Tensor:
    return z.reshape(z.shape[:-1].numel(), z.shape[-1]).contiguous()


def _block(weights: Weights, step: int) -> Weights:
    k = 0 if weights[0].shape[0] == 1 else step
    w1, b1, w2, b2 = (weight[k] for weight in weights)
    return w1, b1, w2, b2


def _step(
    state: Tensor,
    source: Tensor,
    block: Weights,
    attenuation: float,
    hidden: Tensor,
    out: Tensor,
    narrow: Tensor | None,
) -> None:
    """One step from `state` and its copy `source` in the products' dtype to `out` and, if given, `narrow`."""
    w1, b1, w2, b2 = block
    products.product(source, w1, hidden, transposed=True, bias=b1)
    products.product(hidden, w2, out, transposed=True, bias=b2, base=state, narrow=narrow, scale=attenuation)


def forward(
    z: Tensor, weights: Weights, attenuation: float, steps: int, every: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return z_N, of z's shape and dtype, and the kept states (n, rows, D) in `saved_dtype`."""
    rows = _rows_of(z)
    out = torch.empty_like(rows)
    kept = kept_steps(steps, every)
    saved = rows.new_empty((len(kept), *rows.shape), dtype=saved_dtype(dtype, every))
    if steps == 0 or out.numel() == 0:
        return out.copy_(rows).view(z.shape), saved
    weights = _prepared(weights, dtype)
    if len(rows) <= FEW_TOKENS:
        _few(rows, weights, attenuation, steps, every, dtype, saved, out)
        return out.view(z.shape), saved
    hidden = rows.new_empty((len(rows), weights[0].shape[1]), dtype=dtype)
    wide = dtype == torch.float32
    # The state moves between two buffers, or from kept state to kept state; its narrow copy can be overwritten.
    buffers: list[Tensor] = []
    copy = None if wide or (every == 1 and kept) or steps == 1 else torch.empty_like(rows, dtype=dtype)
    state, source = rows, rows.to(dtype)
    for k in range(steps):
        slot = saved[(k + 1) // every - 1] if k + 1 in kept else None
        if k + 1 == steps:
            _step(state, source, _block(weights, k), attenuation, hidden, out, None)
            break
        target = slot if slot is not None and slot.dtype == torch.float32 else _other(buffers, state)
        narrow = None if wide else (slot if slot is not None and every == 1 else copy)
        _step(state, source, _block(weights, k), attenuation, hidden, target, narrow)
        state, source = target, target if narrow is None else narrow
    return out.view(z.shape), saved


def _other(buffers: list[Tensor], state: Tensor) -> Tensor:
    """A float32 buffer that does not hold `state`; a new one joins `buffers` where there is none."""
    for buffer in buffers:
        if buffer is not state:
            return buffer
    buffers.append(torch.empty_like(state, dtype=torch.float32))
    return buffers[-1]


def team_size(rows: int, columns: int, config: Config, device: torch.device) -> int:
    """Return the number of programs per block of tokens in the single launch, so that all are resident at once.

    It is 1 in the interpreter, which runs programs one after another: there a program cannot wait for the next.
    """
    if INTERPRET:
        return 1
    teams = -(-rows // config.meta["BLOCK_M"])
    tiles = -(-columns // config.meta["BLOCK_N"])
    return max(1, min(tiles, torch.cuda.get_device_properties(device).multi_processor_count // teams))


def _few(
    rows: Tensor,
    weights: Weights,
    attenuation: float,
    steps: int,
    every: int,
    dtype: torch.dtype,
    saved: Tensor,
    out: Tensor,
    team: int | None = None,
) -> None:
    """All steps in one launch; `team` is how many programs share a block of tokens (None: as many as fit)."""
    w1, b1, w2, b2 = weights
    (count, dim), hidden_size = rows.shape, w1.shape[1]
    config = few_config(count, dtype.itemsize)
    team = team_size(count, max(dim, hidden_size), config, rows.device) if team is None else team
    teams = -(-count // config.meta["BLOCK_M"])
    state = torch.empty_like(rows, dtype=torch.float32)
    with device_guard(rows):
        products.kernels().all_steps[(teams * team,)](
            z=rows,
            w1=w1,
            b1=b1,
            w2=w2,
            b2=b2,
            state=state,
            narrow=None if dtype == torch.float32 else torch.empty_like(rows, dtype=dtype),
            hidden=rows.new_empty((count, hidden_size), dtype=dtype),
            saved=saved if len(saved) else None,
            out=out,
            counters=torch.zeros(teams, dtype=torch.int32, device=rows.device),
            rows=count,
            dim=dim,
            width=hidden_size,
            steps=steps,
            every=every,
            scale=attenuation,
            team=team,
            SHARED=len(w1) == 1,
            PRECISION=products.precision(dtype),
            launch_cooperative_grid=team > 1,
            **config.options(),
        )


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
    rows, g = _rows_of(z), _rows_of(grad)
    out = torch.empty_like(rows)
    if steps == 0 or out.numel() == 0:
        zeros = (torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights)
        w1, b1, w2, b2 = zeros if with_weights else (w.new_empty(0) for w in weights)
        return out.copy_(g).view(z.shape), w1, b1, w2, b2
    run = _Backward(rows, g, out, weights, attenuation, steps, dtype, with_weights)
    for start in reversed([0, *kept_steps(steps, every)]):
        first = saved[start // every - 1] if start else rows
        for source, k in run.states(first, start, min(start + every, steps)):
            run.step(source, k)
    w1, b1, w2, b2 = run.totals(weights)
    return out.view(z.shape), w1, b1, w2, b2


class _Backward:
    """Buffers of the backward pass, and its steps from the last to the first."""

    def __init__(
        self,
        rows: Tensor,
        grad: Tensor,
        out: Tensor,
        weights: Weights,
        attenuation: float,
        steps: int,
        dtype: torch.dtype,
        with_weights: bool,
    ) -> None:
        self.weights, self.attenuation, self.dtype, self.out = _prepared(weights, dtype), attenuation, dtype, out
        (count, dim), hidden = rows.shape, weights[0].shape[1]
        self.hidden = rows.new_empty((count, hidden), dtype=dtype)
        self.hidden_grad = torch.empty_like(self.hidden)
        self.grad, self.narrow = grad, grad.to(dtype)
        wide = dtype == torch.float32
        self.buffers = [torch.empty_like(rows, dtype=torch.float32) for _ in range(min(steps - 1, 2))]
        self.copy = None if wide or steps == 1 else torch.empty_like(rows, dtype=dtype)
        self.shared = len(weights[0]) == 1
        self.gradients: list[Tensor] = []
        self.added: set[int] = set()
        if with_weights:
            # Shared blocks are summed over the steps in float32; others are stored once, rounded.
            kind = torch.float32 if self.shared else None
            self.gradients = [
                torch.empty_like(weight, dtype=kind, memory_format=torch.contiguous_format) for weight in weights
            ]
            parts = max(products.parts(count, hidden, dim)[0], products.parts(count, dim, hidden)[0])
            self.room = rows.new_empty((parts, hidden * dim), dtype=torch.float32)
            blocks = -(-count // products.SUM_ROWS)
            self.sums = rows.new_empty((blocks, dim), dtype=torch.float32)
            self.hidden_sums = rows.new_empty((blocks, hidden), dtype=torch.float32)
            self.grad_sums = grad.sum(0, keepdim=True, dtype=torch.float32)

    def states(self, first: Tensor, start: int, stop: int) -> list[tuple[Tensor, int]]:
        """(z_k in the products' dtype, k) for start ≤ k < stop, last first, computed from z at `start`."""
        narrow = self.dtype != torch.float32
        state, source = first, first.to(self.dtype)
        found = [(source, start)]
        buffers: list[Tensor] = []
        for k in range(start, stop - 1):
            target = _other(buffers, state) if narrow else torch.empty_like(first, dtype=torch.float32)
            copy = torch.empty_like(first, dtype=self.dtype) if narrow else None
            _step(state, source, _block(self.weights, k), self.attenuation, self.hidden, target, copy)
            state, source = target, target if copy is None else copy
            found.append((source, k + 1))
        return found[::-1]

    def step(self, source: Tensor, k: int) -> None:
        """Takes the gradient from z_{k+1} to z_k (to `out` for k = 0) and adds to those of the block."""
        w1, b1, w2, _ = _block(self.weights, k)
        weighted = bool(self.gradients)
        products.product(source, w1, self.hidden, transposed=True, bias=b1)
        hidden_sums = self.hidden_sums if weighted else None
        products.product(self.narrow, w2, self.hidden_grad, transposed=False, gate=self.hidden, sums=hidden_sums)
        if weighted:
            block = 0 if self.shared else k
            grad_w1, grad_b1, grad_w2, grad_b2 = (gradient[block] for gradient in self.gradients)
            add, scale = block in self.added, -self.attenuation
            self.added.add(block)
            products.weight_gradient(self.narrow, self.hidden, self.room, grad_w2, scale, add)
            products.weight_gradient(self.hidden_grad, source, self.room, grad_w1, scale, add)
            products.add_parts(self.grad_sums, len(self.grad_sums), grad_b2, scale, add)
            products.add_parts(self.hidden_sums, len(self.hidden_sums), grad_b1, scale, add)
        if k == 0:
            products.product(self.hidden_grad, w1, self.out, transposed=False, base=self.grad, scale=self.attenuation)
            return
        target = next(b for b in self.buffers if b is not self.grad)
        sums = self.sums if weighted else None
        products.product(
            self.hidden_grad,
            w1,
            target,
            transposed=False,
            base=self.grad,
            narrow=self.copy,
            sums=sums,
            scale=self.attenuation,
        )
        self.grad, self.narrow = target, target if self.copy is None else self.copy
        if weighted:
            self.grad_sums = self.sums

    def totals(self, weights: Weights) -> Weights:
        """Gradients of the weights in their own dtypes; empty if not asked for."""
        if not self.gradients:
            w1, b1, w2, b2 = (weight.new_empty(0) for weight in weights)
        else:
            w1, b1, w2, b2 = (g.to(w.dtype) for g, w in zip(self.gradients, weights, strict=True))
        return w1, b1, w2, b2
