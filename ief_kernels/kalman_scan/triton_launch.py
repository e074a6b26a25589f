"""The scan's Triton kernels on float16, bfloat16 or float32 tensors; all arithmetic and the state are float32.

`triton_kernels` holds the filter itself, `triton_chunks` what makes chunks of one sequence independent, `paths` the
rule that chooses. Inputs are read in place unless their last dimension is not contiguous; incoming gradients are made
contiguous. `lengths` belong on the tensors' device (elsewhere they are copied there, which CUDA-graph capture does not
allow). Parameter gradients are sums of each chunk, added up in a fixed order, so that they repeat bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .._triton import Config, Tuner, device_guard
from . import triton_chunks as chunked
from . import triton_kernels as sweep
from .paths import choose_path

__all__ = ["backward", "forward", "static_cases"]

WORTH_TUNING = 1 << 20  # elements; a smaller call takes about as long in every configuration
MANY_LANES = 1 << 15  # more of them keep a GPU's memory busy by themselves; fewer want narrower programs


def _configs(size: int) -> tuple[Config, ...]:
    """For elements of so many bytes: rows of 16 bytes a thread first, then of 4 and 8 for few lanes, then longer ones.

    Less than 4 bytes a thread cannot be copied ahead.
    """
    wide = 512 // size
    shapes = ((wide, 1, 4), (wide // 4, 1, 4), (wide // 2, 1, 6), (wide, 1, 6), (2 * wide, 2, 4))
    return tuple(Config({"BLOCK": block, "STAGES": stages}, num_warps=warps) for block, warps, stages in shapes)


_KERNELS = {
    "forward": sweep.forward_sweep,
    "backward": sweep.backward_sweep,
    "forward_summary": chunked.forward_summary,
    "backward_summary": chunked.backward_summary,
}
_TUNERS = {(name, size): Tuner(f"kalman_scan_{name}", _configs(size)) for name in _KERNELS for size in (2, 4)}
# A carry is one short loop for each lane: as many programs as possible.
CARRY = Config({"BLOCK": 32, "STAGES": 4}, num_warps=1)


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
    ) -> _Call:
        path = choose_path(*x.shape, robust=influence is not None, eps=eps)
        chunk = max(path.chunk, 1)
        return cls(
            _rows(x),
            _rows(var),
            None if lengths is None else lengths.to(x.device).contiguous(),
            q,
            0 if q.numel() == 1 else q.stride(0),
            influence,
            eps,
            _contiguous(s0),
            _contiguous(p0),
            max(triton.cdiv(x.shape[1], chunk), 1),
            chunk,
        )

    def strides(self) -> tuple[int, ...]:
        return (*self.x.stride()[:2], *self.var.stride()[:2], self.q_d)

    def sizes(self) -> tuple[int, ...]:
        """chunks, chunk, T and D."""
        return self.chunks, self.chunk, self.x.shape[1], self.x.shape[2]

    def grid(self, chunks: int) -> Callable[[dict[str, Any]], tuple[int]]:
        batch, _, dim = self.x.shape
        return lambda meta: (batch * chunks * triton.cdiv(dim, meta["BLOCK"]),)

    def state(self) -> tuple[Tensor, Tensor]:
        """Two uninitialised (B, chunks, D)."""
        shape = (self.x.shape[0], self.chunks, self.x.shape[2])
        first, second = (torch.empty(shape, dtype=torch.float32, device=self.x.device) for _ in range(2))
        return first, second

    def launch(self, name: str, chunks: int, arguments: tuple[Any, ...], **constants: Any) -> None:
        """Runs one of `_KERNELS` over so many chunks, in its best configuration.

        That may differ between few lanes and many, and between one chunk and several.
        """
        kernel, grid = _KERNELS[name], self.grid(chunks)
        batch, steps, dim = self.x.shape
        key = (str(self.x.dtype), batch * dim <= MANY_LANES, self.chunks > 1, self.influence is not None)
        _TUNERS[name, self.x.element_size()].launch(
            self.x,
            key,
            lambda config: kernel[grid](*arguments, **constants, **config.options()),
            worth=batch * steps * dim >= WORTH_TUNING,
        )

    def carry(self, kernel: Any, arguments: tuple[Any, ...]) -> None:
        kernel[self.grid(1)](*arguments, self.x.shape[0], *self.sizes(), **CARRY.options())


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
    """Mean, variance, gain (B, T, D) in x's dtype, state s, p (B, D) float32, and mean and variance as float32.

    The last, (2, B, T, D), is empty unless `keep_states` is set and x is of half precision.
    """
    batch, _, dim = x.shape
    mean, variance, gain = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(3))
    s, p = (torch.empty((batch, dim), dtype=torch.float32, device=x.device) for _ in range(2))
    keep = keep_states and x.dtype != torch.float32
    states = torch.empty((2, *x.shape) if keep else (0,), dtype=torch.float32, device=x.device)
    if batch == 0 or dim == 0:
        return mean, variance, gain, s, p, states
    call = _Call.of(x, var, lengths, q, influence, eps, s0, p0)
    wide = (states[0], states[1]) if keep else (None, None)
    fixed = {"HAS_STATE": s0 is not None}
    with device_guard(x):
        state_in: tuple[Tensor | None, Tensor | None] = (call.s0, call.p0)
        if call.chunks > 1:
            shape = (6, batch, call.chunks - 1, dim)
            summary = torch.empty(shape, dtype=torch.float32, device=x.device)
            inputs = (call.x, call.var, call.lengths, q, summary, batch, *call.sizes(), *call.strides(), eps)
            call.launch("forward_summary", call.chunks - 1, inputs, **fixed)
            state_in = call.state()
            call.carry(chunked.forward_carry, (summary, call.lengths, call.s0, call.p0, *state_in))
        tensors = (call.x, call.var, call.lengths, q, influence, *state_in)
        outputs = (mean, variance, gain, *wide, s, p)
        call.launch("forward", call.chunks, (*tensors, *outputs, *call.sizes(), *call.strides(), eps), **fixed)
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
    """Gradients of x, var, q, influence, s0, p0 (empty where absent); `grads`: mean, var, gain, s, p.

    `mean` and `variance` are the forward pass's in float32.
    """
    batch, _, dim = x.shape

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    to_x, to_var = (torch.empty(tensor.shape, dtype=tensor.dtype, device=x.device) for tensor in (x, var))
    to_s0, to_p0 = (new(0) if s0 is None else new(batch, dim) for _ in range(2))
    if batch == 0 or dim == 0:
        return to_x, to_var, torch.zeros_like(q), torch.zeros_like(q[: int(influence is not None)]), to_s0, to_p0
    call = _Call.of(x, var, lengths, q, influence, eps, s0, p0)
    g_mean, g_var, g_gain, g_s, g_p = (_contiguous(grad) for grad in grads)
    rows, saved = (g_mean, g_var, g_gain), (mean.contiguous(), variance.contiguous())
    to_q, to_k = (new(batch, call.chunks, dim) for _ in range(2)) if influence is not None else (call.state()[0], None)
    with device_guard(x):
        leaving: tuple[Tensor | None, Tensor | None] = (g_s, g_p)
        if call.chunks > 1:
            summary = new(4, batch, call.chunks - 1, dim)
            inputs = (*rows, *saved, call.x, call.var, call.lengths, q, summary, batch)
            call.launch("backward_summary", call.chunks - 1, (*inputs, *call.sizes(), *call.strides(), eps))
            leaving = call.state()
            call.carry(chunked.backward_carry, (summary, call.lengths, g_s, g_p, *leaving))
        tensors = (*rows, *leaving, *saved, call.x, call.var, call.lengths, q, influence, call.s0, call.p0)
        start = (None, None) if s0 is None else (to_s0, to_p0)
        outputs = (to_x, to_var, *start, to_q, to_k)
        call.launch("backward", call.chunks, (*tensors, *outputs, *call.sizes(), *call.strides(), eps))
    sum_q = to_q.sum((0, 1), dtype=torch.float64)
    if q.numel() == 1:
        sum_q = sum_q.sum(0, keepdim=True)
    sum_k = new(0) if to_k is None else to_k.sum(dtype=torch.float64).reshape(1).float()
    return to_x, to_var, sum_q.float(), sum_k, to_s0, to_p0


_WIDE = "q influence s_in p_in mean_wide variance_wide s_out p_out g_s g_p to_s_in to_p_in s0 p0 to_s0 to_p0 to_q to_k"
_SIZES = ("batch", "chunks", "chunk", "steps", "dim", "x_b", "x_t", "var_b", "var_t", "q_d")
_ROWS = ("x_b", "x_t", "var_b", "var_t", "dim")  # multiples of 16 where D is
_BYTES = {"fp32": 4, "bf16": 2}


def _signature(kernel: Any, dtype: str, constants: dict[str, Any]) -> dict[str, str]:
    types = (
        {name: "*fp32" for name in (*_WIDE.split(), "summary")}
        | {name: "i32" for name in _SIZES}
        | {"lengths": "*i64", "eps": "fp32"}
    )
    if kernel in (sweep.backward_sweep, chunked.backward_summary):
        types |= {"mean": "*fp32", "variance": "*fp32"}  # the saved ones
    names = (name for name in kernel.arg_names if name not in constants)
    return {name: types.get(name, f"*{dtype}") for name in names}


def _case(kernel: Any, dtype: str, config: Config, **constants: Any) -> dict[str, Any]:
    constants |= config.meta
    lane_bytes = config.meta["BLOCK"] // (32 * config.num_warps) * _BYTES[dtype]
    return {
        "op": "kalman_scan",
        "kernel": kernel,
        "signature": _signature(kernel, dtype, constants),
        "constexprs": constants,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "wants": {"vector_loads": lane_bytes >= 16},
        "divisible": [name for name in _ROWS if name in kernel.arg_names],
    }


def _cases() -> Iterator[dict[str, Any]]:
    robust = {"chunks": 1}  # as triton specialises it
    plain = {"influence": None}
    for dtype, size in _BYTES.items():
        narrow = {"mean_wide": None, "variance_wide": None} if size == 4 else {}
        stateless = {"s0": None, "p0": None, "to_s0": None, "to_p0": None, "to_k": None}
        for config in _configs(size):
            yield _case(sweep.forward_sweep, dtype, config, HAS_STATE=False, **narrow, **plain)
            yield _case(sweep.forward_sweep, dtype, config, HAS_STATE=True, **narrow, **robust)
            yield _case(sweep.backward_sweep, dtype, config, **stateless, **plain)
            yield _case(sweep.backward_sweep, dtype, config, **robust)
            yield _case(chunked.forward_summary, dtype, config, HAS_STATE=False)
            yield _case(chunked.backward_summary, dtype, config)
    yield _case(chunked.forward_carry, "fp32", CARRY)
    yield _case(chunked.backward_carry, "fp32", CARRY)


def static_cases() -> list[dict[str, Any]]:
    """Every kernel in every configuration it may run in, plain and robust, for `bench.static`."""
    return list(_cases())
