"""Fusion and loss terms as one pair of registered operators, and the autograd Function on top of them.

A factor ν/(ν+1) is a tensor c, or where that is None a number, which needs no memory on the device.

Saved for the backward pass: the inputs and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands
from .._autograd import call, gradient, only_wanted, register_operator
from .._tensors import FLOATS, compute_dtype
from . import native, triton_launch

_KERNELS: dict[str, Any] = {"triton": triton_launch, "native": native}
_INPUTS = (
    "Tensor mu_img, Tensor logvar_img, Tensor mu_evt, Tensor logvar_evt, Tensor? c_img, Tensor? c_evt, Tensor? lengths,"
    " float factor_img, float factor_evt, float eps"
)


def _forward(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    factor_img: float,
    factor_evt: float,
    eps: float,
    fuse: bool,
    with_terms: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    factors = (factor_img if c_img is None else c_img, factor_evt if c_evt is None else c_evt)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _KERNELS[backend].forward(
        tensors, factors, lengths, eps, fuse, with_terms
    )
    return found


def _forward_fake(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    factor_img: float,
    factor_evt: float,
    eps: float,
    fuse: bool,
    with_terms: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = mu_img.shape if fuse else (0,)
    mean, var, w_img, w_evt = (mu_img.new_empty(shape) for _ in range(4))
    terms = mu_img.new_empty((4 if with_terms else 0,), dtype=compute_dtype(mu_img.dtype))
    return mean, var, w_img, w_evt, terms


def _backward(
    grad_mean: Tensor | None,
    grad_var: Tensor | None,
    grad_w_img: Tensor | None,
    grad_w_evt: Tensor | None,
    grad_terms: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    factor_img: float,
    factor_evt: float,
    eps: float,
    with_c: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = (grad_mean, grad_var, grad_w_img, grad_w_evt, grad_terms)
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    factors = (factor_img if c_img is None else c_img, factor_evt if c_evt is None else c_evt)
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = _KERNELS[backend].backward(
        grads, tensors, factors, lengths, eps, with_c
    )
    return found


def _backward_fake(
    grad_mean: Tensor | None,
    grad_var: Tensor | None,
    grad_w_img: Tensor | None,
    grad_w_evt: Tensor | None,
    grad_terms: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    factor_img: float,
    factor_evt: float,
    eps: float,
    with_c: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_mu_img, grad_logvar_img, grad_mu_evt, grad_logvar_evt = (mu_img.new_empty(mu_img.shape) for _ in range(4))
    dtype = compute_dtype(mu_img.dtype)
    grad_c_img, grad_c_evt = (
        mu_img.new_empty((0,) if not with_c else (1,) if scale is None else scale.shape, dtype=dtype)
        for scale in (c_img, c_evt)
    )
    return grad_mu_img, grad_logvar_img, grad_mu_evt, grad_logvar_evt, grad_c_img, grad_c_evt


def check_inputs(
    tensors: tuple[Tensor, ...],
    c: dict[str, Tensor | None],
    lengths: Tensor | None,
    factors: dict[str, float],
    eps: float,
) -> None:
    """Check what both fusions take.

    Args:
        tensors: mu_img, logvar_img, mu_evt and logvar_evt.
        c: factors ν/(ν+1) as tensors, by their names.
        lengths: (B,), or None.
        factors: factors ν/(ν+1) as numbers, by their names.
        eps: added to each variance.

    Raises:
        ValueError: one does not fit.
    """
    first = tensors[0]
    _operands.require_first("mu_img", first, FLOATS, range(1, 65) if lengths is None else range(3, 4))
    shape, dtype = first.shape, first.dtype
    arithmetic, per_dim = compute_dtype(dtype), shape[-1:]
    names = ("mu_img", "logvar_img", "mu_evt", "logvar_evt")
    _operands.require(first.device, [(name, t, shape, dtype) for name, t in zip(names, tensors, strict=True)])
    for name, scale in c.items():
        if scale is not None:
            _operands.require(first.device, [(name, scale, (1,) if scale.shape == (1,) else per_dim, arithmetic)])
    if lengths is not None:
        _operands.require_lengths(lengths, shape[0], first.device)
    for name, number in factors.items():
        _operands.require_number(name, number, 0, 1)
    _operands.require_number("eps", eps, 0)


def _check_forward(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    factor_img: float,
    factor_evt: float,
    eps: float,
    fuse: bool,
    with_terms: bool,
    backend: str,
) -> None:
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    numbers = {"factor_img": factor_img, "factor_evt": factor_evt}
    check_inputs(tensors, {"c_img": c_img, "c_evt": c_evt}, lengths, numbers, eps)
    _operands.require_backend("fusion_and_terms", backend, _KERNELS, mu_img)


def _check_backward(
    grad_mean: Tensor | None,
    grad_var: Tensor | None,
    grad_w_img: Tensor | None,
    grad_w_evt: Tensor | None,
    grad_terms: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor | None,
    c_evt: Tensor | None,
    lengths: Tensor | None,
    factor_img: float,
    factor_evt: float,
    eps: float,
    with_c: bool,
    backend: str,
) -> None:
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    _check_forward(*tensors, c_img, c_evt, lengths, factor_img, factor_evt, eps, False, False, backend)
    shape, dtype = mu_img.shape, mu_img.dtype
    _operands.require(
        mu_img.device,
        (
            ("grad_mean", grad_mean, shape, dtype),
            ("grad_var", grad_var, shape, dtype),
            ("grad_w_img", grad_w_img, shape, dtype),
            ("grad_w_evt", grad_w_evt, shape, dtype),
            ("grad_terms", grad_terms, (4,), compute_dtype(dtype)),
        ),
    )


register_operator(
    "precision_fusion_forward",
    f"({_INPUTS}, bool fuse, bool with_terms, str backend)"
    " -> (Tensor mean, Tensor var, Tensor w_img, Tensor w_evt, Tensor terms)",
    _forward,
    _forward_fake,
    _check_forward,
)
register_operator(
    "precision_fusion_backward",
    "(Tensor? grad_mean, Tensor? grad_var, Tensor? grad_w_img, Tensor? grad_w_evt, Tensor? grad_terms,"
    f" {_INPUTS}, bool with_c, str backend)"
    " -> (Tensor grad_mu_img, Tensor grad_logvar_img, Tensor grad_mu_evt, Tensor grad_logvar_evt,"
    " Tensor grad_c_img, Tensor grad_c_evt)",
    _backward,
    _backward_fake,
    _check_backward,
)


def operator_name(fuse: bool, with_terms: bool) -> str:
    """Return the name of the public function that asks for the fusion, the terms, or both."""
    if not with_terms:
        return "precision_fusion"
    return "fusion_and_terms" if fuse else "fusion_terms"


class PrecisionFusionFunction(torch.autograd.Function):
    """(mean, var, w_img, w_evt, terms); what is not asked for is empty."""

    @staticmethod
    def forward(
        ctx: Any,
        mu_img: Tensor,
        logvar_img: Tensor,
        mu_evt: Tensor,
        logvar_evt: Tensor,
        c_img: Tensor | None,
        c_evt: Tensor | None,
        lengths: Tensor | None,
        factor_img: float,
        factor_evt: float,
        eps: float,
        fuse: bool,
        with_terms: bool,
        backend: str,
        straight: bool,
    ) -> Any:
        """Run the forward operator and keep what the backward pass needs."""
        tensors = (mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt, lengths)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        numbers = (factor_img, factor_evt, eps)
        ctx.numbers, ctx.fuse, ctx.with_terms, ctx.backend, ctx.straight = numbers, fuse, with_terms, backend, straight
        return call(straight, "precision_fusion_forward", *tensors, *numbers, fuse, with_terms, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Run the backward operator."""
        fields = grads[:4] if ctx.fuse else (None,) * 4
        terms = grads[4] if ctx.with_terms else None
        if terms is None and all(field is None for field in fields):
            return (None,) * 14
        with_c = any(ctx.needs_input_grad[4:6])
        arguments = (*ctx.saved_tensors, *ctx.numbers, with_c, ctx.backend)
        title = operator_name(ctx.fuse, ctx.with_terms)
        gradients = gradient(ctx, "precision_fusion", (*fields, terms), *arguments, title=title)
        return only_wanted((*gradients, *(None,) * 8), ctx)
