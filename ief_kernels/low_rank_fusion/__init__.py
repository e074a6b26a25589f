"""Fusion of image and event beliefs whose covariances are low-rank plus diagonal.

The covariance of modality m is S_m(I + V_m V_mᵀ)S_m: scales S_m = √(σ̃_m² + eps) per position, and a factor V_m of r
columns that all positions share. So correlations between dimensions are learned once. The fused covariance is the
inverse of the sum of both precisions, by Woodbury's formula with one 2r×2r matrix per position.

The formulas are those of ``docs/specification.md#low-rank-fusion``. With V = 0 they are those of `precision_fusion`.
"""

from __future__ import annotations

from torch import Tensor

from .. import _arguments
from .._autograd import gradients_wanted, run
from .._tensors import cast, compute_dtype, require_float, require_same_device
from ..dispatch import choose
from ..precision_fusion import Fusion, Nu, NuPair, _check, _scale, fusion_and_terms, precision_fusion
from ..precision_fusion.reference import split_nu
from . import reference
from .autograd import LowRankFusionFunction

__all__ = ["low_rank_fusion", "low_rank_kl"]


def _check_factors(dim: int, factor_img: Tensor, factor_evt: Tensor) -> int:
    """Check both factors and return their rank."""
    require_float(factor_img=factor_img, factor_evt=factor_evt)
    for name, factor in (("factor_img", factor_img), ("factor_evt", factor_evt)):
        if factor.dim() != 2 or factor.shape[0] != dim:
            raise ValueError(f"{name} must be ({dim}, r), got {tuple(factor.shape)}")
    if factor_img.shape != factor_evt.shape:
        raise ValueError(
            f"factor_evt has rank {factor_evt.shape[1]}, but factor_img has rank {factor_img.shape[1]}: fill the"
            " smaller one up with columns of zeros"
        )
    return factor_img.shape[1]


def low_rank_fusion(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    factor_img: Tensor,
    factor_evt: Tensor,
    *,
    nu: NuPair = 8.0,
    lengths: Tensor | None = None,
    eps: float = 1e-8,
    backend: str = "auto",
    debug: bool = False,
) -> Fusion:
    """Fuse two beliefs with covariances S_m(I + V_m V_mᵀ)S_m by their precision matrices.

    Args:
        mu_img: (..., D), mean of the image belief; float16, bfloat16, float32 or float64. (B, T, D) with `lengths`.
        logvar_img: as mu_img: natural logarithm of the diagonal part of its variance.
        mu_evt: as mu_img: mean of the event belief.
        logvar_evt: as mu_img: natural logarithm of the diagonal part of its variance.
        factor_img: (D, r), the factor V of the image belief. A parameter: it never widens an output.
        factor_evt: (D, r), the factor V of the event belief.
        nu: as in `precision_fusion`.
        lengths: (B,) integers, on the device of mu_img or on the CPU. The fusion is zero at t ≥ length and the gradient
            there is exactly zero, whatever the inputs hold there. None: all positions are valid.
        eps: added to each effective variance before S is its root.
        backend: "auto", "triton", "native" or "reference".
        debug: as in `precision_fusion`.

    Returns:
        `Fusion(mean, var, w_img, w_evt)`, each of the inputs' shape and promoted dtype. var is the diagonal of the
        fused covariance. w_img is the derivative of mean in mu_img of the same dimension, and w_img + w_evt = 1. One
        weight may lie slightly outside [0, 1]; the mean over dimensions does not.

    Raises:
        TypeError: an input has another dtype.
        ValueError: shapes or devices differ, ν ≤ 0, or eps is negative or not finite.
        BackendUnavailable: the backend asked for cannot serve the call.
    """
    dtype = _check(mu_img, logvar_img, mu_evt, logvar_evt, nu, lengths)
    rank = _check_factors(mu_img.shape[-1], factor_img, factor_evt)
    require_same_device({"mu_img": mu_img, "factor_img": factor_img, "factor_evt": factor_evt})
    tensors = (mu_img, logvar_img, mu_evt, logvar_evt)
    choice = choose("low_rank_fusion", backend, mu_img.device, dtype, rank=rank)
    nu_img, nu_evt = split_nu(nu, debug=debug, everything=choice.backend != "native")
    eps = _arguments.not_negative("eps", eps)
    if rank == 0:  # nothing is correlated
        if lengths is None:
            return precision_fusion(*tensors, nu=nu, eps=eps, backend=choice.backend)
        return fusion_and_terms(*tensors, nu=nu, lengths=lengths, eps=eps, backend=choice.backend)[0]
    if choice.backend == "reference":
        return reference.low_rank_fusion(*tensors, factor_img, factor_evt, nu=nu, lengths=lengths, eps=eps)
    mu_img, logvar_img, mu_evt, logvar_evt = (cast(tensor, dtype) for tensor in tensors)
    factor_img, factor_evt = (cast(factor, compute_dtype(dtype)) for factor in (factor_img, factor_evt))
    logvar_img, c_img, number_img = _scale(logvar_img, nu_img)
    logvar_evt, c_evt, number_evt = _scale(logvar_evt, nu_evt)
    inputs = (mu_img, logvar_img, mu_evt, logvar_evt, factor_img, factor_evt, c_img, c_evt)
    settings = (number_img, number_evt, eps, choice.backend)
    wanted = gradients_wanted(*inputs)
    return Fusion(*run("low_rank_fusion", LowRankFusionFunction, wanted, *inputs, lengths, *settings))


def low_rank_kl(
    logvar: Tensor, factor: Tensor, *, nu: Nu = 8.0, lengths: Tensor | None = None, debug: bool = False
) -> Tensor:
    """Return what a factor adds to the KL term of `fusion_terms`, so that the sum is exact for the full covariance.

    KL(N(mu, S(I + VVᵀ)S) ‖ N(0, I)) per dimension, by the determinant lemma. It is eager PyTorch on every device: one
    pass over logvar, and products with r columns.

    Args:
        logvar: (..., D), as in `low_rank_fusion`; (B, T, D) with `lengths`.
        factor: (D, r), the modality's factor V.
        nu: degrees of freedom of this modality, as in `precision_fusion`.
        lengths: as in `fusion_terms`.
        debug: as in `precision_fusion`.

    Returns:
        A scalar, float32 (float64 for float64 inputs): the mean over valid positions, 0 without any.

    Raises:
        TypeError: an input has another dtype.
        ValueError: shapes or devices differ, or ν ≤ 0.
    """
    _check(logvar, logvar, logvar, logvar, nu, lengths)
    require_float(factor=factor)
    if factor.dim() != 2 or factor.shape[0] != logvar.shape[-1]:
        raise ValueError(f"factor must be ({logvar.shape[-1]}, r), got {tuple(factor.shape)}")
    require_same_device({"logvar": logvar, "factor": factor})
    _arguments.degrees_of_freedom("nu", nu, debug=debug)
    return reference.low_rank_kl(logvar, factor, nu=nu, lengths=lengths)
