"""The scan as a pair of registered operators, and the autograd Function on top of them.

Saved for the backward pass: the inputs and the states (mean, var), from which the gain is computed again. The C++
kernels take float32 and float64, the Triton kernels float16, bfloat16 and float32; as rounded states would not do for
the backward pass, they write states of half precision a second time in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._tensors import compute_dtype, refuse_double_backward
from .._triton import triton_check
from ..dispatch import register_backend
from . import native
from .paths import describe

register_backend("kalman_scan", "triton", triton_check(), describe)

_INPUTS = "Tensor x, Tensor var, Tensor? lengths, Tensor q, Tensor? influence, float eps, Tensor? s0, Tensor? p0"

torch.library.define(
    "ief_kernels::kalman_scan_forward",
    f"({_INPUTS}, str backend, bool keep_states=False)"
    " -> (Tensor mean, Tensor variance, Tensor gain, Tensor s, Tensor p, Tensor states)",
)
torch.library.define(
    "ief_kernels::kalman_scan_backward",
    "(Tensor? g_mean, Tensor? g_var, Tensor? g_gain, Tensor? g_s, Tensor? g_p, Tensor mean, Tensor variance,"
    f" {_INPUTS}, str backend)"
    " -> (Tensor x, Tensor var, Tensor q, Tensor influence, Tensor s0, Tensor p0)",
)


@torch.library.impl("ief_kernels::kalman_scan_forward", "default")
def _forward(
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    q: Tensor,
    influence: Tensor | None,
    eps: float,
    s0: Tensor | None,
    p0: Tensor | None,
    backend: str,
    keep_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (x, var, lengths, q, influence, eps, s0, p0)
    if backend == "triton":
        from . import triton_launch  # not before it is needed: it imports triton

        return triton_launch.forward(*arguments, keep_states)
    return (*native.forward(*arguments), x.new_empty(0))


@torch.library.register_fake("ief_kernels::kalman_scan_forward")
def _forward_fake(
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    q: Tensor,
    influence: Tensor | None,
    eps: float,
    s0: Tensor | None,
    p0: Tensor | None,
    backend: str,
    keep_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    mean, variance, gain = (x.new_empty(x.shape) for _ in range(3))
    dtype = compute_dtype(x.dtype)
    s, p = (x.new_empty((x.shape[0], x.shape[2]), dtype=dtype) for _ in range(2))
    states = x.new_empty((2, *x.shape) if keep_states and x.dtype != dtype else (0,), dtype=dtype)
    return mean, variance, gain, s, p, states


@torch.library.impl("ief_kernels::kalman_scan_backward", "default")
def _backward(
    g_mean: Tensor | None,
    g_var: Tensor | None,
    g_gain: Tensor | None,
    g_s: Tensor | None,
    g_p: Tensor | None,
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = (g_mean, g_var, g_gain, g_s, g_p)
    arguments = (grads, mean, variance, x, var, lengths, q, influence, eps, s0, p0)
    if backend == "triton":
        from . import triton_launch

        return triton_launch.backward(*arguments)
    return native.backward(*arguments)


@torch.library.register_fake("ief_kernels::kalman_scan_backward")
def _backward_fake(
    g_mean: Tensor | None,
    g_var: Tensor | None,
    g_gain: Tensor | None,
    g_s: Tensor | None,
    g_p: Tensor | None,
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    state = (0,) if s0 is None else s0.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        q.new_empty(q.shape),
        q.new_empty((0 if influence is None else 1,)),
        q.new_empty(state),
        q.new_empty(state),
    )


class _Gradient(torch.autograd.Function):
    """The backward operator, as a Function of its own so that a second derivative is refused instead of wrong."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        return torch.ops.ief_kernels.kalman_scan_backward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        refuse_double_backward("kalman_scan")


class KalmanScanFunction(torch.autograd.Function):
    """(mean, var, gain, s, p); `keep_states` says that a backward pass may come."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        var: Tensor,
        lengths: Tensor | None,
        q: Tensor,
        influence: Tensor | None,
        eps: float,
        s0: Tensor | None,
        p0: Tensor | None,
        backend: str,
        keep_states: bool,
    ) -> Any:
        *outputs, states = torch.ops.ief_kernels.kalman_scan_forward(
            x, var, lengths, q, influence, eps, s0, p0, backend, keep_states
        )
        mean, variance = outputs[:2]
        if keep_states and x.dtype != compute_dtype(x.dtype):
            mean, variance = states.unbind()
        ctx.save_for_backward(mean, variance, x, var, lengths, q, influence, s0, p0)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.backend = eps, backend
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if all(grad is None for grad in grads):
            return (None,) * 10
        *saved, s0, p0 = ctx.saved_tensors
        gradients = _Gradient.apply(*grads, *saved, ctx.eps, s0, p0, ctx.backend)
        to_x, to_var, to_q, to_influence, to_s, to_p = gradients
        by_position = (to_x, to_var, None, to_q, to_influence, None, to_s, to_p, None, None)
        return tuple(
            gradient if want else None for gradient, want in zip(by_position, ctx.needs_input_grad, strict=True)
        )
