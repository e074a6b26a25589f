"""Fusion and loss terms as one pair of registered operators, and the autograd Function on top of them.

Saved for the backward pass: the inputs, nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._tensors import compute_dtype, refuse_double_backward
from . import native, triton_launch

_KERNELS: dict[str, Any] = {"triton": triton_launch, "native": native}

torch.library.define(
    "ief_kernels::precision_fusion_forward",
    "(Tensor mu_img, Tensor logvar_img, Tensor mu_evt, Tensor logvar_evt, Tensor c_img, Tensor c_evt, Tensor? lengths,"
    " float eps, bool fuse, bool with_terms, str backend)"
    " -> (Tensor mean, Tensor var, Tensor w_img, Tensor w_evt, Tensor terms)",
)
torch.library.define(
    "ief_kernels::precision_fusion_backward",
    "(Tensor? g_mean, Tensor? g_var, Tensor? g_w_img, Tensor? g_w_evt, Tensor? g_terms, Tensor mu_img,"
    " Tensor logvar_img, Tensor mu_evt, Tensor logvar_evt, Tensor c_img, Tensor c_evt, Tensor? lengths, float eps,"
    " bool with_c, str backend)"
    " -> (Tensor mu_img, Tensor logvar_img, Tensor mu_evt, Tensor logvar_evt, Tensor c_img, Tensor c_evt)",
)


@torch.library.impl("ief_kernels::precision_fusion_forward", "default")
def _forward(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor,
    c_evt: Tensor,
    lengths: Tensor | None,
    eps: float,
    fuse: bool,
    with_terms: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    return _KERNELS[backend].forward(tensors, (c_img, c_evt), lengths, eps, fuse, with_terms)


@torch.library.register_fake("ief_kernels::precision_fusion_forward")
def _forward_fake(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor,
    c_evt: Tensor,
    lengths: Tensor | None,
    eps: float,
    fuse: bool,
    with_terms: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = mu_img.shape if fuse else (0,)
    mean, var, w_img, w_evt = (mu_img.new_empty(shape) for _ in range(4))
    terms = mu_img.new_empty((4 if with_terms else 0,), dtype=compute_dtype(mu_img.dtype))
    return mean, var, w_img, w_evt, terms


@torch.library.impl("ief_kernels::precision_fusion_backward", "default")
def _backward(
    g_mean: Tensor | None,
    g_var: Tensor | None,
    g_w_img: Tensor | None,
    g_w_evt: Tensor | None,
    g_terms: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor,
    c_evt: Tensor,
    lengths: Tensor | None,
    eps: float,
    with_c: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = (g_mean, g_var, g_w_img, g_w_evt, g_terms)
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    return _KERNELS[backend].backward(grads, tensors, (c_img, c_evt), lengths, eps, with_c)


@torch.library.register_fake("ief_kernels::precision_fusion_backward")
def _backward_fake(
    g_mean: Tensor | None,
    g_var: Tensor | None,
    g_w_img: Tensor | None,
    g_w_evt: Tensor | None,
    g_terms: Tensor | None,
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor,
    c_evt: Tensor,
    lengths: Tensor | None,
    eps: float,
    with_c: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (mu_img.new_empty(mu_img.shape) for _ in range(4))
    dtype = compute_dtype(mu_img.dtype)
    e, f = (mu_img.new_empty(scale.shape if with_c else (0,), dtype=dtype) for scale in (c_img, c_evt))
    return a, b, c, d, e, f


class _Gradient(torch.autograd.Function):
    """The backward operator, as a Function of its own so that a second derivative is refused instead of wrong."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        return torch.ops.ief_kernels.precision_fusion_backward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        refuse_double_backward("precision_fusion")


class PrecisionFusionFunction(torch.autograd.Function):
    """(mean, var, w_img, w_evt, terms); what is not asked for is empty."""

    @staticmethod
    def forward(
        ctx: Any,
        mu_img: Tensor,
        logvar_img: Tensor,
        mu_evt: Tensor,
        logvar_evt: Tensor,
        c_img: Tensor,
        c_evt: Tensor,
        lengths: Tensor | None,
        eps: float,
        fuse: bool,
        with_terms: bool,
        backend: str,
    ) -> Any:
        tensors = (mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt, lengths)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.fuse, ctx.with_terms, ctx.backend = eps, fuse, with_terms, backend
        return torch.ops.ief_kernels.precision_fusion_forward(*tensors, eps, fuse, with_terms, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        fields = grads[:4] if ctx.fuse else (None,) * 4
        terms = grads[4] if ctx.with_terms else None
        wanted = ctx.needs_input_grad[:6]
        if terms is None and all(field is None for field in fields):
            return (None,) * 11
        with_c = wanted[4] or wanted[5]
        gradients = _Gradient.apply(*fields, terms, *ctx.saved_tensors, ctx.eps, with_c, ctx.backend)
        return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *(None,) * 5)
