"""The scan as a pair of registered operators, and the autograd Function on top of them.

Saved for the backward pass: the inputs and the states (mean, var), from which the gain is computed again. Everything is
float32 or float64 here; half precision is cast outside, as its rounded states would not do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._tensors import refuse_double_backward
from . import native

_KERNELS = {"native": native}
_INPUTS = "Tensor x, Tensor var, Tensor? lengths, Tensor q, Tensor? influence, float eps, Tensor? s0, Tensor? p0"

torch.library.define(
    "ief_kernels::kalman_scan_forward",
    f"({_INPUTS}, str backend) -> (Tensor mean, Tensor variance, Tensor gain, Tensor s, Tensor p)",
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _KERNELS[backend].forward(x, var, lengths, q, influence, eps, s0, p0)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mean, variance, gain = (x.new_empty(x.shape) for _ in range(3))
    s, p = (x.new_empty((x.shape[0], x.shape[2])) for _ in range(2))
    return mean, variance, gain, s, p


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
    return _KERNELS[backend].backward(grads, mean, variance, x, var, lengths, q, influence, eps, s0, p0)


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
        x.new_empty(q.shape),
        x.new_empty((0 if influence is None else 1,)),
        x.new_empty(state),
        x.new_empty(state),
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
    """(mean, var, gain, s, p) of float32 or float64 tensors."""

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
    ) -> Any:
        outputs = torch.ops.ief_kernels.kalman_scan_forward(x, var, lengths, q, influence, eps, s0, p0, backend)
        ctx.save_for_backward(outputs[0], outputs[1], x, var, lengths, q, influence, s0, p0)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.backend = eps, backend
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if all(grad is None for grad in grads):
            return (None,) * 9
        *saved, s0, p0 = ctx.saved_tensors
        gradients = _Gradient.apply(*grads, *saved, ctx.eps, s0, p0, ctx.backend)
        to_x, to_var, to_q, to_influence, to_s, to_p = gradients
        by_position = (to_x, to_var, None, to_q, to_influence, None, to_s, to_p, None)
        return tuple(
            gradient if want else None for gradient, want in zip(by_position, ctx.needs_input_grad, strict=True)
        )
