"""The scan's Triton kernels on float16, bfloat16 or float32 tensors; all arithmetic and the state are float32.

`triton_kernels` holds the filter itself, `triton_chunks` what makes chunks of one sequence independent, `paths` the
rule that chooses. Inputs are read in place unless their last dimension is not contiguous. Incoming gradients are made
contiguous. `lengths` belong on the tensors' device; from elsewhere they are copied, which CUDA-graph capture does not
allow. Gradients of parameters are sums over each chunk, added in a fixed order, so that they repeat bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._triton import Config, Tuner, device_guard, triton_check
from ..dispatch import register_backend
from .paths import KEPT_EVERY, choose_path, describe, kept_every

register_backend("kalman_scan", "triton", triton_check(), describe)

WORTH_TUNING = 1 << 20  # elements; a smaller call takes about as long in every configuration
MANY_LANES = 1 << 15  # more of them keep a GPU's memory busy by themselves; fewer want narrower programs


KERNELS = ("forward", "backward", "forward_summary", "backward_summary")


def configs(size: int) -> tuple[Config, ...]:
    """Return the configurations of each of `KERNELS` for elements of `size` bytes.

    First 8 bytes per thread: a step is the shorter, the fewer elements a thread has, and calls too small to measure
    have few lanes. Then 4 bytes for fewer lanes still, and 16 bytes with fewer stages for many lanes, whose programs
    hide each other's latency. Less than 4 bytes per thread cannot be copied ahead.
    """
    wide = 512 // size
    shapes = ((wide // 2, 1, 10), (wide // 4, 1, 12), (wide, 1, 8))
    return tuple(Config({"BLOCK": block, "STAGES": stages}, num_warps=warps) for block, warps, stages in shapes)


_TUNERS = {(name, size): Tuner(f"kalman_scan_{name}", configs(size)) for name in KERNELS for size in (2, 4)}
# A carry is one short loop for each lane: as many programs as possible.
CARRY = Config({"BLOCK": 32, "STAGES": 4}, num_warps=1)


@functools.cache
def kernels() -> dict[str, Any]:
    """Return the `@triton.jit` functions by name; the first call imports triton."""
    from . import triton_chunks, triton_kernels

    return {
        "forward": triton_kernels.forward_sweep,
        "backward": triton_kernels.backward_sweep,
        "forward_summary": triton_chunks.forward_summary,
        "backward_summary": triton_chunks.backward_summary,
        "forward_carry": triton_chunks.forward_carry,
        "backward_carry": triton_chunks.backward_carry,
    }


def _rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.numel() == 0 else tensor.contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


class _Call(NamedTuple):
    """What the kernels of one call share."""

    x: Tensor
    var: Tensor
    lengths: Tensor | None
    q: Tensor
    q_d: int
    influence: Tensor | None
    eps: float
    s0: Tensor | None
    p0: Tensor | None
    chunks: int
    chunk: int

    @classmethod
    def of(
        cls,
        x: Tensor,
        var: Tensor,
        lengths: Tensor | None,
        q: Tensor,
        influence: Tensor | None,
        eps: float,
        s0: Tensor | None,
        p0: Tensor | None,
        every: int = 1,
    ) -> _Call:
        """Describe the call; with only every `every`-th state there are no chunks."""
        path = choose_path(*x.shape, robust=influence is not None, eps=eps)
        chunk = max(path.chunk if every == 1 else x.shape[1], 1)
        return cls(
            _rows(x),
            _rows(var),
            None if lengths is None else lengths.to(x.device, non_blocking=True).contiguous(),
            q,
            0 if q.numel() == 1 else q.stride(0),
            influence,
            eps,
            _contiguous(s0),
            _contiguous(p0),
            max(-(-x.shape[1] // chunk), 1),
            chunk,
        )

    def inputs(self) -> dict[str, Any]:
        """The inputs that every sweep and summary reads, and where they lie in memory."""
        return {
            "x": self.x,
            "var": self.var,
            "lengths": self.lengths,
            "q": self.q,
            **self.sizes(),
            "x_b": self.x.stride(0),
            "x_t": self.x.stride(1),
            "var_b": self.var.stride(0),
            "var_t": self.var.stride(1),
            "q_d": self.q_d,
            "eps": self.eps,
        }

    def sizes(self) -> dict[str, int]:
        return {"chunks": self.chunks, "chunk": self.chunk, "steps": self.x.shape[1], "dim": self.x.shape[2]}

    def grid(self, chunks: int, config: Config) -> tuple[int]:
        batch, _, dim = self.x.shape
        return (batch * chunks * -(-dim // config.meta["BLOCK"]),)

    def state(self) -> tuple[Tensor, Tensor]:
        """Two uninitialised (B, chunks, D)."""
        shape = (self.x.shape[0], self.chunks, self.x.shape[2])
        first, second = (torch.empty(shape, dtype=torch.float32, device=self.x.device) for _ in range(2))
        return first, second

    def launch(
        self, name: str, chunks: int, arguments: Mapping[str, Any], outputs: Mapping[str, Tensor | None]
    ) -> None:
        """Run one of `KERNELS` over so many chunks, in its best configuration.

        The best may differ between few lanes and many, and between one chunk and several. `outputs` are the arguments
        that the kernel writes for its caller.
        """
        kernel = kernels()[name]
        batch, steps, dim = self.x.shape
        every = arguments.get("EVERY", 1)
        key = (str(self.x.dtype), batch * dim <= MANY_LANES, self.chunks > 1, self.influence is not None, every)
        _TUNERS[name, self.x.element_size()].launch(
            self.x,
            key,
            lambda config: kernel[self.grid(chunks, config)](
                **self.inputs(), **arguments, **outputs, **config.options()
            ),
            worth=batch * steps * dim >= WORTH_TUNING,
            rows=batch * steps,
            outputs=list(outputs.values()),
        )

    def carry(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Run a carry kernel: a loop over the chunks for each lane."""
        batch = self.x.shape[0]
        kernels()[name][self.grid(1, CARRY)](
            lengths=self.lengths, batch=batch, **self.sizes(), **arguments, **CARRY.options()
        )


def forward(
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    q: Tensor,
    influence: Tensor | None,
    eps: float,
    s0: Tensor | None,
    p0: Tensor | None,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the filter.

    Returns:
        Mean, variance and gain (B, T, D) in x's dtype, the state s and p (B, D) in float32, and mean and variance
        after every `kept_every`-th step in float32 as (2, B, T // every, D). That is empty unless `keep_states` is set
        and x is of half precision.
    """
    batch, _, dim = x.shape
    mean, variance, gain = [x.new_empty(x.shape) for _ in range(3)]
    s, p = [x.new_empty((batch, dim), dtype=torch.float32) for _ in range(2)]
    keep = keep_states and x.dtype != torch.float32
    every = kept_every(*x.shape, robust=influence is not None, eps=eps)
    shape = (2, batch, x.shape[1] // every, dim) if keep else (0,)
    states = x.new_empty(shape, dtype=torch.float32)
    if batch == 0 or dim == 0:
        return mean, variance, gain, s, p, states
    call = _Call.of(x, var, lengths, q, influence, eps, s0, p0)
    has_state = s0 is not None
    with device_guard(x):
        s_in, p_in = call.s0, call.p0
        if call.chunks > 1:
            summary = torch.empty((6, batch, call.chunks - 1, dim), dtype=torch.float32, device=x.device)
            call.launch(
                "forward_summary", call.chunks - 1, {"batch": batch, "HAS_STATE": has_state}, {"summary": summary}
            )
            s_in, p_in = call.state()
            start = {"s0": call.s0, "p0": call.p0}
            call.carry("forward_carry", {"summary": summary, **start, "s_in": s_in, "p_in": p_in})
        outputs = {
            "mean": mean,
            "variance": variance,
            "gain": gain,
            "kept_s": states[0] if keep else None,
            "kept_p": states[1] if keep else None,
            "s_out": s,
            "p_out": p,
        }
        entering = {"influence": influence, "s_in": s_in, "p_in": p_in, "HAS_STATE": has_state}
        call.launch("forward", call.chunks, {**entering, "EVERY": every if keep else 1}, outputs)
    return mean, variance, gain, s, p, states


def backward(
    grads: tuple[Tensor | None, ...],
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    q: Tensor,
    influence: Tensor | None,
    eps: float,
    s0: Tensor | None,
    p0: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, var, q, influence, s0 and p0 (empty where absent).

    Args:
        grads: incoming gradients of mean, variance, gain, s and p; None where absent.
        mean: what `forward` returned, or the first of the states that it kept; float32.
        variance: as mean.
        x: what `forward` took, and so are the rest.
        var: (B, T, D).
        lengths: (B,), or None.
        q: process noise, (1,) or (D,).
        influence: 1/(ν+1), (1,), or None.
        eps: added to both variances.
        s0: initial mean (B, D), or None.
        p0: initial variance (B, D), or None.
    """
    batch, _, dim = x.shape

    def new(*shape: int) -> Tensor:
        return x.new_empty(shape, dtype=torch.float32)

    grad_x, grad_var = x.new_empty(x.shape), var.new_empty(var.shape)
    grad_s0, grad_p0 = (new(0) if s0 is None else new(batch, dim) for _ in range(2))
    if batch == 0 or dim == 0:
        return (
            grad_x,
            grad_var,
            torch.zeros_like(q),
            torch.zeros_like(q[: int(influence is not None)]),
            grad_s0,
            grad_p0,
        )
    every = 1 if mean.shape[1] == x.shape[1] else KEPT_EVERY
    call = _Call.of(x, var, lengths, q, influence, eps, s0, p0, every)
    # The states between two kept ones, for every lane that a program of any size has.
    blocks = [-(-dim // config.meta["BLOCK"]) * config.meta["BLOCK"] for config in configs(x.element_size())]
    scratch = new(batch, 2, every, max(blocks)) if every > 1 else None
    grad_mean, grad_variance, grad_gain, grad_s, grad_p = (_contiguous(grad) for grad in grads)
    saved = {"mean": mean.contiguous(), "variance": variance.contiguous()}
    rows = {"grad_mean": grad_mean, "grad_variance": grad_variance, "grad_gain": grad_gain, **saved}
    q_sums, influence_sums = new(batch, call.chunks, dim), None if influence is None else new(batch, call.chunks, dim)
    with device_guard(x):
        grad_s_leaving, grad_p_leaving = grad_s, grad_p
        if call.chunks > 1:
            summary = new(4, batch, call.chunks - 1, dim)
            call.launch("backward_summary", call.chunks - 1, {**rows, "batch": batch}, {"summary": summary})
            grad_s_leaving, grad_p_leaving = call.state()
            leaving: dict[str, Any] = {"grad_s_leaving": grad_s_leaving, "grad_p_leaving": grad_p_leaving}
            call.carry("backward_carry", {"summary": summary, "grad_s": grad_s, "grad_p": grad_p, **leaving})
        outputs = {
            "grad_x": grad_x,
            "grad_var": grad_var,
            "grad_s0": None if s0 is None else grad_s0,
            "grad_p0": None if s0 is None else grad_p0,
            "grad_q": q_sums,
            "grad_influence": influence_sums,
        }
        leaving = {"grad_s_leaving": grad_s_leaving, "grad_p_leaving": grad_p_leaving}
        start = {"influence": influence, "s0": call.s0, "p0": call.p0, "scratch": scratch, "EVERY": every}
        call.launch("backward", call.chunks, {**rows, **leaving, **start}, outputs)
    grad_q = q_sums.sum((0, 1), dtype=torch.float64)
    if q.numel() == 1:
        grad_q = grad_q.sum(0, keepdim=True)
    total = new(0) if influence_sums is None else influence_sums.sum(dtype=torch.float64).reshape(1).float()
    return grad_x, grad_var, grad_q.float(), total, grad_s0, grad_p0
