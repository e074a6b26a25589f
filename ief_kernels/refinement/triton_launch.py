"""Refinement on a GPU: Triton's matrix products with fused epilogues, or the library's.

Who multiplies is measured from `LIBRARY_TOKENS` on (`_provider`). Before anything is measured it is the library
(`library_products`) for float32, with and without TF32, and Triton for half precision. What is said below is Triton's
way.

There are two ways forward. For few tokens (`FEW_TOKENS`), where launches cost more than products, one launch runs all
steps: teams of programs own a block of tokens each and meet twice per step. For more tokens there are two launches per
step. Backward computes for each step the hidden layer again, two products with an epilogue, and two weight gradients.
For few tokens the hidden layers of many steps have one launch, and so have their weight gradients. Weight gradients are
summed from float32 parts in a fixed order, so that the result repeats bit for bit. The algebra is in `native`.

The state and its gradient are float32. For bfloat16 and float16 products a copy in that dtype lies beside it, written
by the same epilogue. With `every` = 1 that copy is all that backward keeps, half the bytes of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .._triton import COOPERATIVE, INTERPRET, Config, Tuner, device_guard, triton_check
from ..dispatch import Facts, register_backend
from . import library_products
from . import triton_products as products
from .native import Weights, kept_steps

# An estimate: on a 132-processor GPU a step of 256 tokens at D = H = 768 takes about its two launches.
FEW_TOKENS = 256 if COOPERATIVE else 0


LIBRARY_TOKENS = products.MEASURED
"""Tokens from which the library's products take part. Below, Triton's need fewer launches."""

_LIBRARY, _TRITON = Config({"LIBRARY": 1}), Config({"LIBRARY": 0})
_providers = {
    4: Tuner("refine_provider", (_LIBRARY, _TRITON)),
    2: Tuner("refine_provider", (_TRITON, _LIBRARY)),
}
_Result = TypeVar("_Result")


def _describe(facts: Facts) -> str:
    """Which way forward a call takes, for `explain`."""
    few, many = "all steps in one launch", "two launches per step"
    more = f", or cuBLASLt from {LIBRARY_TOKENS} tokens on"
    if FEW_TOKENS == 0:
        return f"kernel, {many}{more}"
    if facts.get("shape") is None:
        return f"kernel: {few} up to {FEW_TOKENS} tokens, {many} for more{more}"
    tokens = math.prod(facts["shape"][:-1])
    return f"kernel, {few if tokens <= FEW_TOKENS else many} (one launch up to {FEW_TOKENS} tokens{more})"


register_backend("refine", "triton", triton_check(), _describe)


def few_config(rows: int, size: int) -> Config:
    """Return the configuration of the single launch.

    Larger tiles would spill registers in float32 without tensor cores.
    """
    if size == 4:
        return Config({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16}, 4, 3)
    few = rows <= 64
    return Config({"BLOCK_M": 16 if few else 64, "BLOCK_N": 32, "BLOCK_K": 128 if few else 64}, 4, 4)


GROUP_BYTES = 64 << 20
"""Bytes of hidden layers and gradients that the backward pass may keep to compute weight gradients together."""


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


def _provided(
    what: str,
    z: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    library: Callable[[], _Result],
    triton: Callable[[], _Result],
) -> _Result:
    """Return what the faster of both gives. They keep the same states, so forward and backward may differ."""
    (_, hidden, dim), tokens = weights[0].shape, z.shape[:-1].numel()
    half = dtype.itemsize == 2
    if INTERPRET or tokens < LIBRARY_TOKENS or (half and not library_products.widens(z.device, dtype)):
        return triton()
    found: list[_Result] = []

    def run(config: Config) -> None:
        found[:] = [library() if config.meta["LIBRARY"] else triton()]

    key = (what, str(dtype), products.precision(dtype), str(z.dtype), hidden, dim, len(weights[0]) == 1)
    # Results are not compared: over the steps half precision rounds to either side, and both are made of products that
    # have been checked.
    _providers[dtype.itemsize].launch(z, key, run, rows=tokens)
    return found[0]


def forward(
    z: Tensor, weights: Weights, attenuation: float, steps: int, every: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return z_N, of z's shape and dtype, and the kept states (n, rows, D) in `saved_dtype`."""
    arguments = (z, weights, attenuation, steps, every, dtype)
    return _provided(
        "forward",
        z,
        weights,
        dtype,
        lambda: library_products.forward(*arguments),
        lambda: _triton_forward(*arguments),
    )


def _triton_forward(
    z: Tensor, weights: Weights, attenuation: float, steps: int, every: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
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
    arguments = (grad, z, saved, weights, attenuation, steps, every, dtype, with_weights)
    return _provided(
        f"backward {with_weights}",
        z,
        weights,
        dtype,
        lambda: library_products.backward(*arguments),
        lambda: _triton_backward(*arguments),
    )


def _triton_backward(
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
    rows, g = _rows_of(z), _rows_of(grad)
    out = torch.empty_like(rows)
    if steps == 0 or out.numel() == 0:
        zeros = (torch.zeros_like(w, memory_format=torch.contiguous_format) for w in weights)
        w1, b1, w2, b2 = zeros if with_weights else (w.new_empty(0) for w in weights)
        return out.copy_(g).view(z.shape), w1, b1, w2, b2
    run = _Backward(rows, g, out, weights, attenuation, steps, dtype, with_weights)
    if every == 1:
        run.segment(saved, 1)
        run.segment(rows.to(dtype).unsqueeze(0), 0)
    else:
        for start in reversed([0, *kept_steps(steps, every)]):
            first = saved[start // every - 1] if start else rows
            run.segment(run.states(first, start, min(start + every, steps)), start)
    w1, b1, w2, b2 = run.totals(weights)
    return out.view(z.shape), w1, b1, w2, b2


def group_size(rows: int, dim: int, hidden: int, size: int) -> int:
    """Return the number of steps whose hidden layers and weight gradients have one launch each.

    They must be kept until then, so it is more than one for few tokens only, where launches cost more than products.
    """
    return max(1, GROUP_BYTES // max(1, rows * (2 * hidden + dim) * size))


class _Backward:
    """Buffers of the backward pass, and its steps from the last to the first, in groups of consecutive steps.

    A group uses the last places of `hidden` (the hidden layers of its steps), of `gated` (their gradients) and of
    `grads` (the gradients of its steps' results), all in the products' dtype. So the gradient that a group hands to
    the one before is always in the last place.
    """

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
        self.shared = len(weights[0]) == 1
        self.size = min(steps, group_size(count, dim, hidden, dtype.itemsize))
        self.hidden = rows.new_empty((self.size, count, hidden), dtype=dtype)
        self.gated = torch.empty_like(self.hidden)
        self.grads = rows.new_empty((self.size, count, dim), dtype=dtype)
        self.grads[-1].copy_(grad)
        # The gradient itself: as it came, then in `grads` for float32 products, else in a buffer of its own.
        self.grad = grad
        self.wide = None if dtype == torch.float32 else torch.empty_like(rows, dtype=torch.float32)
        self.gradients: Weights | None = None
        if with_weights:
            self._make_room(weights, grad)

    def _make_room(self, weights: Weights, grad: Tensor) -> None:
        """Make the gradients of the weights, and the parts that they are summed from."""
        # Shared blocks are summed over the steps in float32; others are stored once, rounded.
        kind = torch.float32 if self.shared else None
        w1, b1, w2, b2 = (torch.empty_like(w, dtype=kind, memory_format=torch.contiguous_format) for w in weights)
        self.gradients, self.started = (w1, b1, w2, b2), False
        (count, dim), hidden = grad.shape, w1.shape[1]
        blocks, parts = -(-count // products.SUM_ROWS), products.parts(count, hidden, dim)[0]
        self.hidden_sums = grad.new_empty((self.size, blocks, hidden), dtype=torch.float32)
        self.sums = grad.new_zeros((self.size, blocks, dim), dtype=torch.float32)
        torch.sum(grad, 0, dtype=torch.float32, out=self.sums[-1, 0])
        self.room: Tensor | None = None
        if self.shared or parts > 1:
            self.room = grad.new_empty((2, self.size, parts, hidden, dim), dtype=torch.float32)

    def states(self, first: Tensor, start: int, stop: int) -> Tensor:
        """(stop - start, rows, D): z_k in the products' dtype for start ≤ k < stop, computed from z at `start`."""
        found = first.new_empty((stop - start, *first.shape), dtype=self.dtype)
        found[0].copy_(first)
        state, narrow = first, self.wide is not None
        buffers: list[Tensor] = []
        for place, k in enumerate(range(start, stop - 1), 1):
            target = _other(buffers, state) if narrow else found[place]
            copy = found[place] if narrow else None
            _step(state, found[place - 1], _block(self.weights, k), self.attenuation, self.hidden[0], target, copy)
            state = target
        return found

    def segment(self, sources: Tensor, start: int) -> None:
        """Take the gradient through consecutive steps from `start` on, whose inputs are `sources`, last step first."""
        end = len(sources)
        while end > 0:
            begin = max(0, end - self.size)
            self._group(sources[begin:end], start + begin)
            end = begin

    def _group(self, sources: Tensor, start: int) -> None:
        """As `segment`, for at most `size` steps."""
        free = self.size - len(sources)
        hidden, gated = self.hidden[free:], self.gated[free:]
        w1, b1, w2, _ = (weight if self.shared else weight[start : start + len(sources)] for weight in self.weights)
        products.product(sources, w1, hidden, transposed=True, bias=b1)
        for i in reversed(range(len(sources))):
            k = 0 if self.shared else i
            sums = None if self.gradients is None else self.hidden_sums[free + i]
            grad = self.grads[free + i]
            products.product(grad, w2[k], gated[i], transposed=False, gate=hidden[i], sums=sums)
            if i > 0:
                self._leave(gated[i], w1[k], free + i - 1)
        self._add_weights(sources, start, free)
        if start > 0:
            self._leave(gated[0], w1[0], self.size - 1)
        else:
            products.product(gated[0], w1[0], self.out, transposed=False, base=self.grad, scale=self.attenuation)

    def _leave(self, gated: Tensor, w1: Tensor, place: int) -> None:
        """Write the gradient of a step's input, which is the result of the step before, to a place of `grads`."""
        narrow = None if self.wide is None else self.grads[place]
        target = self.grads[place] if self.wide is None else self.wide
        sums = None if self.gradients is None else self.sums[place]
        products.product(
            gated,
            w1,
            target,
            transposed=False,
            base=self.grad,
            narrow=narrow,
            sums=sums,
            scale=self.attenuation,
        )
        self.grad = target

    def _add_weights(self, sources: Tensor, start: int, free: int) -> None:
        """Compute the gradients of a group's blocks."""
        if self.gradients is None:
            return
        count = len(sources)
        w1, b1, w2, b2 = (g if self.shared else g[start : start + count] for g in self.gradients)
        biases, weights = (self.hidden_sums[free:], self.sums[free:]), None
        if self.room is None:
            products.weight_gradient(self.grads[free:], self.hidden[free:], w2, -self.attenuation)
            products.weight_gradient(self.gated[free:], sources, w1, -self.attenuation)
        else:
            weights = self.room[0, :count], self.room[1, :count]
            products.weight_gradient(self.gated[free:], sources, weights[0], 1.0)
            products.weight_gradient(self.grads[free:], self.hidden[free:], weights[1], 1.0)
        products.add_parts(biases, weights, (w1, b1, w2, b2), -self.attenuation, self.started)
        self.started = self.shared

    def totals(self, weights: Weights) -> Weights:
        """Gradients of the weights in their own dtypes; empty if not asked for."""
        if self.gradients is None:
            w1, b1, w2, b2 = (weight.new_empty(0) for weight in weights)
        else:
            w1, b1, w2, b2 = (g.to(w.dtype) for g, w in zip(self.gradients, weights, strict=True))
        return w1, b1, w2, b2
