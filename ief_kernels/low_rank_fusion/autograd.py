"""Low-rank fusion as a pair of registered operators, and the autograd Function on top of them.

A factor ν/(ν+1) is a tensor c, or where that is None a number, as in `precision_fusion`.

Saved for the backward pass: the inputs and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands
from .._autograd import call, gradient, only_wanted, register_operator
from .._tensors import compute_dtype
from ..precision_fusion.autograd import check_inputs
from . import native

_KERNELS: dict[str, Any] = {"native": native}
_INPUTS = (
    "Tensor mu_img, Tensor logvar_img, Tensor mu_evt, Tensor logvar_evt, Tensor factor_img, Tensor factor_evt,"
    " Tensor? c_img, Tensor? c_evt, Tensor? lengths, float number_img, float number_evt, float eps"
)


def _forward(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    factor_img: Tensor,
    factor_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    number_img: float,
    number_evt: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    c = (number_img if c_img is None else c_img, number_evt if c_evt is None else c_evt)
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _KERNELS[backend].forward(
        tensors, (factor_img, factor_evt), c, lengths, eps
    )
    return found


def _forward_fake(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    factor_img: Tensor,
    factor_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    number_img: float,
    number_evt: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, var, w_img, w_evt = (mu_img.new_empty(mu_img.shape) for _ in range(4))
    return mean, var, w_img, w_evt


def _backward(
    grad_mean: Tensor | None,
    grad_var: Tensor | None,
    grad_w_img: Tensor | None,
    grad_w_evt: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    factor_img: Tensor,
    factor_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    number_img: float,
    number_evt: float,
    eps: float,
    with_c: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = (grad_mean, grad_var, grad_w_img, grad_w_evt)
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    c = (number_img if c_img is None else c_img, number_evt if c_evt is None else c_evt)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _KERNELS[backend].backward(
        grads, tensors, (factor_img, factor_evt), c, lengths, eps, with_c
    )
    return found


def _backward_fake(
    grad_mean: Tensor | None,
    grad_var: Tensor | None,
    grad_w_img: Tensor | None,
    grad_w_evt: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    factor_img: Tensor,
    factor_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    number_img: float,
    number_evt: float,
    eps: float,
    with_c: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_mu_img, grad_logvar_img, grad_mu_evt, grad_logvar_evt = (mu_img.new_empty(mu_img.shape) for _ in range(4))
    grad_factor_img, grad_factor_evt = (factor.new_empty(factor.shape) for factor in (factor_img, factor_evt))
    dtype = compute_dtype(mu_img.dtype)
    grad_c_img, grad_c_evt = (
        mu_img.new_empty((0,) if not with_c else (1,) if scale is None else scale.shape, dtype=dtype)
        for scale in (c_img, c_evt)
    )
    beliefs = (grad_mu_img, grad_logvar_img, grad_mu_evt, grad_logvar_evt)
    return (*beliefs, grad_factor_img, grad_factor_evt, grad_c_img, grad_c_evt)


def _check_forward(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    factor_img: Tensor,
    factor_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    number_img: float,
    number_evt: float,
    eps: float,
    backend: str,
) -> None:
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    numbers = {"number_img": number_img, "number_evt": number_evt}
    check_inputs(tensors, {"c_img": c_img, "c_evt": c_evt}, lengths, numbers, eps)
    arithmetic = compute_dtype(mu_img.dtype)
    _operands.require_first("factor_img", factor_img, (arithmetic,), range(2, 3))
    shape = (mu_img.shape[-1], factor_img.shape[1])
    factors = (("factor_img", factor_img, shape, arithmetic), ("factor_evt", factor_evt, shape, arithmetic))
    _operands.require(mu_img.device, factors)
    _operands.require_backend("low_rank_fusion", backend, _KERNELS, mu_img, rank=shape[1])


def _check_backward(
    grad_mean: Tensor | None,
    grad_var: Tensor | None,
    grad_w_img: Tensor | None,
    grad_w_evt: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    factor_img: Tensor,
    factor_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    number_img: float,
    number_evt: float,
    eps: float,
    with_c: bool,
    backend: str,
) -> None:
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt, factor_img, factor_evt)
    _check_forward(*tensors, c_img, c_evt, lengths, number_img, number_evt, eps, backend)
    names = ("grad_mean", "grad_var", "grad_w_img", "grad_w_evt")
    grads = zip(names, (grad_mean, grad_var, grad_w_img, grad_w_evt), strict=True)
    _operands.require(mu_img.device, [(name, grad, mu_img.shape, mu_img.dtype) for name, grad in grads])


register_operator(
    "low_rank_fusion_forward",
    f"({_INPUTS}, str backend) -> (Tensor mean, Tensor var, Tensor w_img, Tensor w_evt)",
    _forward,
    _forward_fake,
    _check_forward,
)
register_operator(
    "low_rank_fusion_backward",
    "(Tensor? grad_mean, Tensor? grad_var, Tensor? grad_w_img, Tensor? grad_w_evt,"
    f" {_INPUTS}, bool with_c, str backend)"
    " -> (Tensor grad_mu_img, Tensor grad_logvar_img, Tensor grad_mu_evt, Tensor grad_logvar_evt,"
    " Tensor grad_factor_img, Tensor grad_factor_evt, Tensor grad_c_img, Tensor grad_c_evt)",
    _backward,
    _backward_fake,
    _check_backward,
)


class LowRankFusionFunction(torch.autograd.Function):
    """(mean, var, w_img, w_evt)."""

    @staticmethod
    def forward(
        ctx: Any,
        mu_img: Tensor,
        logvar_img: Tensor,
        mu_evt: Tensor,
        logvar_evt: Tensor,
        factor_img: Tensor,
        factor_evt: Tensor,
        c_img: Tensor | None,
        c_evt: Tensor | None,
        lengths: Tensor | None,
        number_img: float,
        number_evt: float,
        eps: float,
        backend: str,
        straight: bool,
    ) -> Any:
        """Run the forward operator and keep what the backward pass needs."""
        tensors = (mu_img, logvar_img, mu_evt, logvar_evt, factor_img, factor_evt, c_img, c_evt, lengths)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.numbers, ctx.backend, ctx.straight = (number_img, number_evt, eps), backend, straight
        return call(straight, "low_rank_fusion_forward", *tensors, *ctx.numbers, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Run the backward operator."""
        if all(grad is None for grad in grads):
            return (None,) * 14
        with_c = any(ctx.needs_input_grad[6:8])
        arguments = (*ctx.saved_tensors, *ctx.numbers, with_c, ctx.backend)
        gradients = gradient(ctx, "low_rank_fusion", grads, *arguments)
        return only_wanted((*gradients, *(None,) * 6), ctx)
