"""Fusion of two beliefs whose covariances are low-rank plus diagonal: the specification in code.

Plain eager PyTorch, differentiable by autograd. Every other backend is compared with it. The formulas are those of
``docs/specification.md#low-rank-fusion``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .. import _arguments
from ..precision_fusion.reference import (
    LOGVAR_LIMIT,
    SMALLEST_EPS,
    Fusion,
    Nu,
    NuPair,
    _cast,
    _fuse,
    _prepare,
    split_nu,
    student_scale,
)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Products of this arithmetic stay in its dtype."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Row by row the outer product of two (D, r) matrices, (D, r²)."""
    return (a[:, :, None] * b[:, None, :]).flatten(1)


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
) -> Fusion:
    """Return fused mean, variances and weights; arguments and result as in `ief_kernels.low_rank_fusion`.

    With a_m = σ̃_m² + eps, w, v and m̄ of `precision_fusion`, α = √w_img, β = √w_evt, and rows
    h = [β·V_img, α·V_evt], j = [α·V_img, −β·V_evt] of two (D, 2r) matrices:
    T = I + HᵀH; mean = m̄ − √v·J T⁻¹ Hᵀz with z = (mu_img − mu_evt)/√(a_img + a_evt); var = v·(1 + j T⁻¹ jᵀ);
    w_img = α² − αβ·h T⁻¹ jᵀ and w_evt = β² + αβ·h T⁻¹ jᵀ.
    """
    (mu_i, lv_i, mu_e, lv_e), valid, dtype = _prepare((mu_img, logvar_img, mu_evt, logvar_evt), lengths)
    factor_i, factor_e = factor_img.to(mu_i.dtype), factor_evt.to(mu_i.dtype)
    rank = factor_i.shape[1]
    nu_img, nu_evt = split_nu(nu)
    eps = _arguments.not_negative("eps", eps)
    c_i, c_e = student_scale(nu_img, mu_i), student_scale(nu_evt, mu_i)
    plain = _fuse(mu_i, lv_i, mu_e, lv_e, c_i, c_e, eps)
    limit = LOGVAR_LIMIT[mu_i.dtype]
    total = c_i * torch.exp(lv_i.clamp(max=limit)) + c_e * torch.exp(lv_e.clamp(max=limit)) + 2 * max(eps, SMALLEST_EPS)
    z = (mu_i - mu_e) / total.sqrt()
    # A root has no derivative at 0, where a weight is too small for the dtype.
    alpha, beta = (weight.clamp(min=torch.finfo(mu_i.dtype).tiny).sqrt() for weight in (plain.w_img, plain.w_evt))
    both = alpha * beta

    with _without_autocast(mu_i.device.type):
        # HᵀH and h T⁻¹ jᵀ consist of blocks in the products of two columns of V, which all positions share.
        ii, ie, ee = (_products(factor_i, factor_i), _products(factor_i, factor_e), _products(factor_e, factor_e))
        t_ii, t_ie, t_ee = (
            (scale @ products).unflatten(-1, (rank, rank))
            for scale, products in ((plain.w_evt, ii), (both, ie), (plain.w_img, ee))
        )
        rows = torch.cat([t_ii, t_ie], -1), torch.cat([t_ie.mT, t_ee], -1)
        inverse = torch.linalg.inv_ex(torch.eye(2 * rank, dtype=t_ii.dtype, device=t_ii.device) + torch.cat(rows, -2))[
            0
        ]
        b = torch.cat([(z * beta) @ factor_i, (z * alpha) @ factor_e], -1)
        c = (inverse @ b[..., None])[..., 0]
        shift = alpha * (c[..., :rank] @ factor_i.T) - beta * (c[..., rank:] @ factor_e.T)
        p_ii, p_ie, p_ee = (
            block.flatten(-2) @ products.T
            for block, products in (
                (inverse[..., :rank, :rank], ii),
                (inverse[..., :rank, rank:], ie),
                (inverse[..., rank:, rank:], ee),
            )
        )
    moved = both * (both * (p_ii - p_ee) + (plain.w_img - plain.w_evt) * p_ie)
    fusion = Fusion(
        plain.mean - plain.var.sqrt() * shift,
        plain.var * (1 + plain.w_img * p_ii - 2 * both * p_ie + plain.w_evt * p_ee),
        plain.w_img - moved,
        plain.w_evt + moved,
    )
    if valid is not None:
        fusion = Fusion(*(torch.where(valid[..., None], tensor, 0) for tensor in fusion))
    return _cast(fusion, dtype)


def low_rank_kl(logvar: Tensor, factor: Tensor, *, nu: Nu = 8.0, lengths: Tensor | None = None) -> Tensor:
    """Return what the factor adds to a KL term; arguments and result as in `ief_kernels.low_rank_kl`.

    ½·(Σ_d σ̃_d²·‖V_d‖² − log det(I + VᵀV)) / D, mean over valid positions: the exact divergence of
    N(mu, S(I + VVᵀ)S) from the standard normal, less that of N(mu, S²).
    """
    (logvar,), valid, _ = _prepare((logvar,), lengths)
    factor = factor.to(logvar.dtype)
    dim, rank = factor.shape
    positions = logvar.shape[:-1]
    nu = _arguments.degrees_of_freedom("nu", nu)
    weight = torch.ones(positions, dtype=logvar.dtype, device=logvar.device) if valid is None else valid.to(logvar)
    weight = weight / weight.sum().clamp(min=1)
    variance = student_scale(nu, logvar) * torch.exp(logvar.clamp(max=LOGVAR_LIMIT[logvar.dtype]))
    traces = (variance * factor.square().sum(1) * weight[..., None]).sum()
    with _without_autocast(logvar.device.type):
        inner = torch.eye(rank, dtype=factor.dtype, device=factor.device) + factor.T @ factor
        log_det: Tensor = torch.linalg.slogdet(inner)[1]
    found: Tensor = 0.5 * (traces - weight.sum() * log_det) / max(dim, 1)
    return found
