"""The scan as a pair of registered operators, and the autograd Function on top of them.

Saved for the backward pass: the inputs and the states (mean, var), from which the gain is computed again. Rounded
states are too inexact for the backward pass. So states of half precision are kept in float32: by the C++ kernels every
16th (`native.kept_states`), by the Triton kernels all of them or every 32nd (`paths.kept_every`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands
from .._autograd import call, gradient, only_wanted, register_operator
from .._tensors import FLOATS, compute_dtype
from . import native, triton_launch
from .paths import KEPT_EVERY, kept_every

_KERNELS: dict[str, Any] = {"triton": triton_launch, "native": native}
_INPUTS = "Tensor x, Tensor var, Tensor? lengths, Tensor q, Tensor? influence, float eps, Tensor? s0, Tensor? p0"


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
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _KERNELS[backend].forward(
        x, var, lengths, q, influence, eps, s0, p0, keep_states
    )
    return found


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
    shape: tuple[int, ...] = (0,)
    if keep_states and x.dtype != dtype:
        batch, steps, dim = x.shape
        if backend == "native":
            rows = native.kept_states(steps)
        else:
            rows = steps // kept_every(*x.shape, robust=influence is not None, eps=eps)
        shape = (2, batch, rows, dim)
    states = x.new_empty(shape, dtype=dtype)
    return mean, variance, gain, s, p, states


def _backward(
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    grad_gain: Tensor | None,
    grad_s: Tensor | None,
    grad_p: Tensor | None,
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
    grads = (grad_mean, grad_variance, grad_gain, grad_s, grad_p)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _KERNELS[backend].backward(
        grads, mean, variance, x, var, lengths, q, influence, eps, s0, p0
    )
    return found


def _backward_fake(
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    grad_gain: Tensor | None,
    grad_s: Tensor | None,
    grad_p: Tensor | None,
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


def _check_forward(
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
) -> None:
    _operands.require_first("x", x, FLOATS, range(3, 4))
    batch, _, dim = x.shape
    arithmetic = compute_dtype(x.dtype)
    if (s0 is None) != (p0 is None):
        raise ValueError("s0 and p0 must both be tensors, or both None")
    _operands.require(
        x.device,
        (
            ("var", var, x.shape, x.dtype),
            ("q", q, (1,) if q.shape == (1,) else (dim,), arithmetic),
            ("influence", influence, (1,), arithmetic),
            ("s0", s0, (batch, dim), arithmetic),
            ("p0", p0, (batch, dim), arithmetic),
        ),
    )
    _operands.require_lengths(lengths, batch, x.device)
    _operands.require_number("eps", eps, 0)
    _operands.require_backend("kalman_scan", backend, _KERNELS, x)


def _check_backward(
    grad_mean: Tensor | None,
    grad_variance: Tensor | None,
    grad_gain: Tensor | None,
    grad_s: Tensor | None,
    grad_p: Tensor | None,
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
) -> None:
    _check_forward(x, var, lengths, q, influence, eps, s0, p0, backend)
    batch, steps, dim = x.shape
    arithmetic = compute_dtype(x.dtype)
    rows = steps
    if x.dtype != arithmetic:  # the states that the forward pass kept
        if backend == "native":
            rows = native.kept_states(steps)
        elif mean.dim() == 3 and mean.shape[1] != steps:
            rows = steps // KEPT_EVERY
    _operands.require(
        x.device,
        (
            ("grad_mean", grad_mean, x.shape, x.dtype),
            ("grad_variance", grad_variance, x.shape, x.dtype),
            ("grad_gain", grad_gain, x.shape, x.dtype),
            ("grad_s", grad_s, (batch, dim), arithmetic),
            ("grad_p", grad_p, (batch, dim), arithmetic),
            ("mean", mean, (batch, rows, dim), arithmetic),
            ("variance", variance, (batch, rows, dim), arithmetic),
        ),
    )


register_operator(
    "kalman_scan_forward",
    f"({_INPUTS}, str backend, bool keep_states=False)"
    " -> (Tensor mean, Tensor variance, Tensor gain, Tensor s, Tensor p, Tensor states)",
    _forward,
    _forward_fake,
    _check_forward,
)
register_operator(
    "kalman_scan_backward",
    "(Tensor? grad_mean, Tensor? grad_variance, Tensor? grad_gain, Tensor? grad_s, Tensor? grad_p, Tensor mean,"
    f" Tensor variance, {_INPUTS}, str backend)"
    " -> (Tensor grad_x, Tensor grad_var, Tensor grad_q, Tensor grad_influence, Tensor grad_s0, Tensor grad_p0)",
    _backward,
    _backward_fake,
    _check_backward,
)


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
        straight: bool,
    ) -> Any:
        """Run the forward operator and keep what the backward pass needs."""
        *outputs, states = call(
            straight, "kalman_scan_forward", x, var, lengths, q, influence, eps, s0, p0, backend, keep_states
        )
        mean, variance = outputs[:2]
        if keep_states and x.dtype != compute_dtype(x.dtype):
            mean, variance = states.unbind()
        ctx.save_for_backward(mean, variance, x, var, lengths, q, influence, s0, p0)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.backend, ctx.straight = eps, backend, straight
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Run the backward operator."""
        if all(grad is None for grad in grads):
            return (None,) * 11
        *saved, s0, p0 = ctx.saved_tensors
        grad_x, grad_var, grad_q, grad_influence, grad_s0, grad_p0 = gradient(
            ctx, "kalman_scan", grads, *saved, ctx.eps, s0, p0, ctx.backend
        )
        return only_wanted(
            (grad_x, grad_var, None, grad_q, grad_influence, None, grad_s0, grad_p0, None, None, None), ctx
        )
