"""Precision-weighted fusion of two Gaussian (or Student-t) beliefs and its loss terms: the specification in code.

Plain eager PyTorch, differentiable by autograd. Every other backend is compared with it. The formulas are those of
``docs/specification.md#precision-fusion`` and ``docs/specification.md#loss-terms``.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import _arguments
from .._tensors import compute_dtype, promoted_dtype, valid_mask

Nu: TypeAlias = float | Tensor | None
NuPair: TypeAlias = Nu | tuple[Nu, Nu]

# Where exp(logvar) stops growing: exp(80) = 5.5e34 leaves float32 room for sums and products.
LOGVAR_LIMIT = {torch.float32: 80.0, torch.float64: 700.0}
# A smaller eps counts as this, so that two vanishing variances still have a finite ratio in float32.
SMALLEST_EPS = 1e-30


class Fusion(NamedTuple):
    """Result of the fusion, each of the inputs' shape.

    Attributes:
        mean: fused mean.
        var: fused variance.
        w_img: normalised weight of the image belief.
        w_evt: normalised weight of the event belief, 1 − w_img.
    """

    mean: Tensor
    var: Tensor
    w_img: Tensor
    w_evt: Tensor


class Terms(NamedTuple):
    """Loss terms: scalars, each a mean over valid positions (of KL: and dimensions).

    Attributes:
        kl_img: divergence of the image belief from the standard normal.
        kl_evt: divergence of the event belief from the standard normal.
        cosine: 1 − cosine of the two means.
        norm: absolute difference of the norms of the two means.
    """

    kl_img: Tensor
    kl_evt: Tensor
    cosine: Tensor
    norm: Tensor


def split_nu(nu: NuPair, *, debug: bool = False, everything: bool = True) -> tuple[Nu, Nu]:
    """Return the degrees of freedom (image, event) from one value or a pair, after their check.

    Args:
        nu: one value or a pair.
        debug: check values inside tensors on every device; see `_arguments.degrees_of_freedom`.
        everything: whether tensors with dimensions are read.

    Raises:
        ValueError: a value is not positive, or it is neither one value nor a pair.
    """
    check = _arguments.degrees_of_freedom
    if isinstance(nu, tuple):
        if len(nu) != 2:
            raise ValueError(f"nu must be one value or a pair (image, event), got {len(nu)} values")
        image = check("nu[0]", nu[0], debug=debug, everything=everything)
        return image, check("nu[1]", nu[1], debug=debug, everything=everything)
    both = check("nu", nu, debug=debug, everything=everything)
    return both, both


def student_scale(nu: Nu, like: Tensor) -> Tensor:
    """Return ν/(ν+1) as a tensor in the arithmetic's dtype; 1 for None or ν = ∞.

    Args:
        nu: degrees of freedom, or None.
        like: decides device and dtype.
    """
    dtype = compute_dtype(like.dtype)
    if isinstance(nu, Tensor):
        nu = nu.to(like.device, dtype, non_blocking=True)
        return (nu.reciprocal() + 1).reciprocal()  # 1 / (1 + 1 / ν) in three launches
    return torch.full((), student_factor(nu), dtype=dtype, device=like.device)


def student_factor(nu: float | None) -> float:
    """Return ν/(ν+1) of a number > 0; 1 for None or ν = ∞."""
    if nu is None:
        return 1.0
    return 1 / (1 + 1 / nu)


def _fuse(
    mu_img: Tensor, logvar_img: Tensor, mu_evt: Tensor, logvar_evt: Tensor, c_img: Tensor, c_evt: Tensor, eps: float
) -> Fusion:
    eps = max(eps, SMALLEST_EPS)
    limit = LOGVAR_LIMIT[logvar_img.dtype]
    # The weights depend on the ratio of the two variances alone, so both may be divided by exp(shift).
    # Below the limit the shift is zero and the formula is the specification's to the letter.
    shift = (torch.maximum(logvar_img, logvar_evt).detach() - limit).clamp(min=0)
    a_img = c_img * torch.exp(logvar_img - shift) + eps
    a_evt = c_evt * torch.exp(logvar_evt - shift) + eps
    w_img = a_evt / (a_img + a_evt)
    w_evt = a_img / (a_img + a_evt)
    # 1/(1/a + 1/b) as lo·(hi/(lo+hi)): neither a square nor a reciprocal of something huge, here or in the gradient.
    a_img = c_img * torch.exp(logvar_img.clamp(max=limit)) + eps
    a_evt = c_evt * torch.exp(logvar_evt.clamp(max=limit)) + eps
    low, high = torch.minimum(a_img, a_evt), torch.maximum(a_img, a_evt)
    return Fusion(w_img * mu_img + w_evt * mu_evt, low * (high / (low + high)), w_img, w_evt)


def _kl(mu: Tensor, logvar: Tensor, c: Tensor) -> Tensor:
    """KL per element against the standard normal, −½(1 + log σ̃² − mu² − σ̃²)."""
    variance = c * torch.exp(logvar.clamp(max=LOGVAR_LIMIT[logvar.dtype]))
    return -0.5 * (1 + logvar + torch.log(c) - mu * mu - variance)


def _terms(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    c_img: Tensor,
    c_evt: Tensor,
    valid: Tensor | None,
) -> Terms:
    positions = mu_img.shape[:-1]
    dim = mu_img.shape[-1]
    weight = torch.ones(positions, dtype=mu_img.dtype, device=mu_img.device) if valid is None else valid.to(mu_img)
    weight = weight / weight.sum().clamp(min=1)  # divide, then add: a sum of exp(80) would overflow

    square_img, square_evt = (mu_img * mu_img).sum(-1), (mu_evt * mu_evt).sum(-1)
    alive_img, alive_evt = square_img != 0, square_evt != 0  # NaN is alive: it has to come out
    # sqrt has no derivative at 0: a zero vector has norm 0, cosine 0 and a zero gradient.
    norm_img = torch.where(alive_img, square_img, 1).sqrt()
    norm_evt = torch.where(alive_evt, square_evt, 1).sqrt()
    cosine = torch.where(alive_img & alive_evt, (mu_img * mu_evt).sum(-1) / norm_img / norm_evt, 0)
    gap = (torch.where(alive_img, norm_img, 0) - torch.where(alive_evt, norm_evt, 0)).abs()
    per_element = weight[..., None] / max(dim, 1)
    return Terms(
        (_kl(mu_img, logvar_img, c_img) * per_element).sum(),
        (_kl(mu_evt, logvar_evt, c_evt) * per_element).sum(),
        ((1 - cosine) * weight).sum(),
        (gap * weight).sum(),
    )


def _prepare(tensors: tuple[Tensor, ...], lengths: Tensor | None) -> tuple[list[Tensor], Tensor | None, torch.dtype]:
    """Inputs in the arithmetic's dtype with padding zeroed, the validity mask, and the dtype of the outputs."""
    dtype = promoted_dtype(*tensors)
    prepared = [tensor.to(compute_dtype(dtype)) for tensor in tensors]
    if lengths is None:
        return prepared, None, dtype
    valid = valid_mask(lengths, tensors[0].shape[1], tensors[0].device)
    # where() gives padding a gradient of exactly zero, whatever it holds.
    return [torch.where(valid[..., None], tensor, 0) for tensor in prepared], valid, dtype


def _cast(fusion: Fusion, dtype: torch.dtype) -> Fusion:
    # float16 ends at 65504: a variance beyond that saturates instead of turning infinite.
    var = fusion.var.clamp(max=torch.finfo(dtype).max) if dtype == torch.float16 else fusion.var
    return Fusion(fusion.mean.to(dtype), var.to(dtype), fusion.w_img.to(dtype), fusion.w_evt.to(dtype))


def precision_fusion(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    *,
    nu: NuPair = 8.0,
    eps: float = 1e-8,
) -> Fusion:
    """Return fused mean, variance and normalised weights; arguments and result as in `ief_kernels.precision_fusion`.

    Paper, sections 3.2 and 3.3, with the Student-t scale by Laplace's approximation:
    σ̃² = ν/(ν+1)·exp(logvar); w = 1/(σ̃² + eps); mean = Σ w·mu / Σ w; var = 1/Σ w.
    """
    (mu_i, lv_i, mu_e, lv_e), _, dtype = _prepare((mu_img, logvar_img, mu_evt, logvar_evt), None)
    nu_img, nu_evt = split_nu(nu)
    eps = _arguments.not_negative("eps", eps)
    return _cast(_fuse(mu_i, lv_i, mu_e, lv_e, student_scale(nu_img, mu_i), student_scale(nu_evt, mu_i), eps), dtype)


def fusion_terms(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    *,
    nu: NuPair = 8.0,
    lengths: Tensor | None = None,
) -> Terms:
    """Return loss terms over valid positions; arguments and result as in `ief_kernels.fusion_terms`.

    KL = −½·mean(1 + log σ̃² − mu² − σ̃²); cosine = mean(1 − cos); norm = mean |‖mu_img‖ − ‖mu_evt‖|.
    """
    (mu_i, lv_i, mu_e, lv_e), valid, _ = _prepare((mu_img, logvar_img, mu_evt, logvar_evt), lengths)
    nu_img, nu_evt = split_nu(nu)
    return _terms(mu_i, lv_i, mu_e, lv_e, student_scale(nu_img, mu_i), student_scale(nu_evt, mu_i), valid)


def fusion_and_terms(
    mu_img: Tensor,
    logvar_img: Tensor,
    mu_evt: Tensor,
    logvar_evt: Tensor,
    *,
    nu: NuPair = 8.0,
    lengths: Tensor | None = None,
    eps: float = 1e-8,
) -> tuple[Fusion, Terms]:
    """Return `precision_fusion` with zeros at padding, and `fusion_terms`, of the same four tensors."""
    (mu_i, lv_i, mu_e, lv_e), valid, dtype = _prepare((mu_img, logvar_img, mu_evt, logvar_evt), lengths)
    nu_img, nu_evt = split_nu(nu)
    eps = _arguments.not_negative("eps", eps)
    c_img, c_evt = student_scale(nu_img, mu_i), student_scale(nu_evt, mu_i)
    fusion = _fuse(mu_i, lv_i, mu_e, lv_e, c_img, c_evt, eps)
    if valid is not None:
        fusion = Fusion(*(torch.where(valid[..., None], tensor, 0) for tensor in fusion))
    return _cast(fusion, dtype), _terms(mu_i, lv_i, mu_e, lv_e, c_img, c_evt, valid)
