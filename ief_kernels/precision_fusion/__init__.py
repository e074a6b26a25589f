"""Precision-weighted fusion of image and event beliefs, and the loss terms that read the same tensors.

With σ̃² = ν/(ν+1)·exp(logvar) (Student-t scale by Laplace's approximation at the mode; 1·exp(logvar) without ν):

    w_m  = 1/(σ̃_m² + eps)                      mean = (w_i·mu_i + w_e·mu_e)/(w_i + w_e)      var = 1/(w_i + w_e)
    KL_m = −½·mean(1 + log σ̃_m² − mu_m² − σ̃_m²)   cosine = mean(1 − cos(mu_i, mu_e))   norm = mean |‖mu_i‖ − ‖mu_e‖|

The formulas are those of ``docs/specification.md#precision-fusion`` and ``docs/specification.md#loss-terms`` (paper,
sections 3.2, 3.3 and 3.6).

Saturation is the same on every backend: var, KL and their gradients take a logvar above 80 as 80 (700 in float64),
which keeps them finite. The normalised weights, and through them the mean, follow the true difference of the logvars.
An eps below 1e-30 counts as 1e-30. float16 variances end at 65504.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _arguments
from .._autograd import gradients_wanted, run
from .._tensors import (
    cast,
    promoted_dtype,
    require_float,
    require_lengths,
    require_same_device,
    require_same_shape,
)
from ..dispatch import choose
from . import reference
from .autograd import PrecisionFusionFunction, operator_name
from .reference import Fusion, Nu, NuPair, Terms, split_nu, student_factor, student_scale

__all__ = ["Fusion", "Nu", "NuPair", "Terms", "fusion_and_terms", "fusion_terms", "precision_fusion"]


def _check(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    nu: NuPair,
    lengths: Tensor | None = None,
) -> torch.dtype:
    """Check shapes, dtypes and devices, and return the promoted dtype."""
    tensors = {"mu_img": mu_img, "logvar_img": logvar_img, "mu_evt": mu_evt, "logvar_evt": logvar_evt}
    require_float(**tensors)
    require_same_shape(**tensors)
    if mu_img.dim() == 0:
        raise ValueError("mu_img must have at least one dimension")
    if lengths is not None:
        if mu_img.dim() != 3:
            raise ValueError(f"with lengths, mu_img must be (B, T, D), got {tuple(mu_img.shape)}")
        require_lengths(lengths, mu_img.shape[0])
    parameters: dict[str, object] = {"nu": nu}
    if isinstance(nu, tuple):
        parameters = {f"nu[{k}]": value for k, value in enumerate(nu)}
    require_same_device(tensors, lengths=lengths, parameters=parameters)
    for name, value in parameters.items():
        if isinstance(value, Tensor) and value.dim() and not _broadcasts(value.shape, mu_img.shape):
            raise ValueError(
                f"{name} must broadcast with mu_img, {tuple(mu_img.shape)}, but has shape {tuple(value.shape)}"
            )
    return promoted_dtype(mu_img, logvar_img, mu_evt, logvar_evt)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    """Return whether a tensor of `shape` broadcasts to the shape `to` without changing that."""
    return len(shape) <= len(to) and all(
        own in (1, size) for own, size in zip(reversed(shape), reversed(to), strict=False)
    )


def _apply(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    dtype: torch.dtype,
    nu: NuPair,
    lengths: Tensor | None,
    eps: float,
    fuse: bool,
    with_terms: bool,
    backend: str,
    debug: bool,
) -> tuple[Fusion, Terms]:
    nu_img, nu_evt = split_nu(nu, debug=debug, everything=backend != "native")
    eps = _arguments.not_negative("eps", eps)
    mu_img, logvar_img, mu_evt, logvar_evt = (cast(tensor, dtype) for tensor in tensors)
    logvar_img, c_img, factor_img = _scale(logvar_img, nu_img)
    logvar_evt, c_evt, factor_evt = _scale(logvar_evt, nu_evt)
    inputs = (mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt)
    settings = (factor_img, factor_evt, eps, fuse, with_terms, backend)
    *fields, terms = run(
        operator_name(fuse, with_terms), PrecisionFusionFunction, gradients_wanted(*inputs), *inputs, lengths, *settings
    )
    return Fusion(*fields), Terms(*terms.unbind()) if with_terms else Terms(terms, terms, terms, terms)


def _scale(logvar: Tensor, nu: Nu) -> tuple[Tensor, Tensor | None, float]:
    """The factor ν/(ν+1) as the kernels take it, (1,) or (D,) or else a number; any other shape goes into logvar."""
    if not isinstance(nu, Tensor):
        return logvar, None, student_factor(nu)
    c = student_scale(nu, logvar)
    if c.numel() == 1:
        return logvar, c.reshape(1), 1.0
    if c.shape == logvar.shape[-1:]:
        return logvar, c, 1.0
    _arguments.degrees_of_freedom("nu", nu)  # no kernel sees it
    return logvar + torch.log(c).to(logvar.dtype), None, 1.0


def precision_fusion(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    *,
    nu: NuPair = 8.0,
    eps: float = 1e-8,
    backend: str = "auto",
    debug: bool = False,
) -> Fusion:
    """Fuse two beliefs by their precisions.

    Args:
        mu_img: (..., D), mean of the image belief; float16, bfloat16, float32 or float64.
        logvar_img: (..., D), natural logarithm of its variance.
        mu_evt: (..., D), mean of the event belief.
        logvar_evt: (..., D), natural logarithm of its variance.
        nu: degrees of freedom ν > 0, one value for both modalities or a pair (image, event). Each is None (Gaussian),
            a float, or a tensor with a gradient that broadcasts with the inputs. It does not widen the outputs: it is
            converted to the dtype of the arithmetic. Without dimensions it may be on the CPU and is moved.
        eps: added to each effective variance.
        backend: "auto", "triton", "native" or "reference".
        debug: check values inside a tensor ν on a GPU too, which waits for it. On the CPU they are always checked.

    Returns:
        `Fusion(mean, var, w_img, w_evt)`, each of the inputs' shape and promoted dtype; w_img + w_evt = 1.

    Raises:
        TypeError: an input has another dtype.
        ValueError: shapes or devices differ, ν ≤ 0, or eps is negative or not finite.
        BackendUnavailable: the backend asked for cannot serve the call.
    """
    dtype = _check(mu_img, logvar_img, mu_evt, logvar_evt, nu)
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    choice = choose("precision_fusion", backend, mu_img.device, dtype)
    if choice.backend == "reference":
        split_nu(nu, debug=debug)
        return reference.precision_fusion(*tensors, nu=nu, eps=eps)
    return _apply(tensors, dtype, nu, None, eps, True, False, choice.backend, debug)[0]


def fusion_terms(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    *,
    nu: NuPair = 8.0,
    lengths: Tensor | None = None,
    backend: str = "auto",
    debug: bool = False,
) -> Terms:
    """Compute loss terms on the two beliefs, each a mean over valid positions (zero without a valid position).

    Args:
        mu_img: (..., D), mean of the image belief; (B, T, D) with `lengths`.
        logvar_img: as mu_img: natural logarithm of its variance.
        mu_evt: as mu_img: mean of the event belief.
        logvar_evt: as mu_img: natural logarithm of its variance.
        nu: as in `precision_fusion`.
        lengths: (B,) integers, on the device of mu_img or on the CPU; positions t ≥ length influence neither the terms
            nor a gradient. None: all are valid.
        backend: "auto", "triton", "native" or "reference".
        debug: as in `precision_fusion`.

    Returns:
        `Terms(kl_img, kl_evt, cosine, norm)`, scalars, float32 (float64 for float64 inputs). A zero vector has
        cosine 0 and a zero gradient through cosine and norm.

    Raises:
        TypeError: an input has another dtype.
        ValueError: shapes or devices differ, ν ≤ 0, or eps is negative or not finite.
        BackendUnavailable: the backend asked for cannot serve the call.
    """
    dtype = _check(mu_img, logvar_img, mu_evt, logvar_evt, nu, lengths)
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    choice = choose("fusion_terms", backend, mu_img.device, dtype)
    if choice.backend == "reference":
        split_nu(nu, debug=debug)
        return reference.fusion_terms(*tensors, nu=nu, lengths=lengths)
    return _apply(tensors, dtype, nu, lengths, 0.0, False, True, choice.backend, debug)[1]


def fusion_and_terms(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    *,
    nu: NuPair = 8.0,
    lengths: Tensor | None = None,
    eps: float = 1e-8,
    backend: str = "auto",
    debug: bool = False,
) -> tuple[Fusion, Terms]:
    """Compute `precision_fusion` and `fusion_terms` in one pass over the four tensors, as training needs both.

    Arguments, results and errors are those of the two functions. With `lengths`, the fusion is zero at t ≥ length and
    the gradient there is exactly zero, whatever the inputs hold there (NaN included).
    """
    dtype = _check(mu_img, logvar_img, mu_evt, logvar_evt, nu, lengths)
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    choice = choose("fusion_and_terms", backend, mu_img.device, dtype)
    if choice.backend == "reference":
        split_nu(nu, debug=debug)
        return reference.fusion_and_terms(*tensors, nu=nu, lengths=lengths, eps=eps)
    return _apply(tensors, dtype, nu, lengths, eps, True, True, choice.backend, debug)
