"""Elementwise Kalman filter over time: the specification in code (``docs/specification.md#kalman-scan``).

Plain eager PyTorch, differentiable by autograd, linear in T. Every other backend is compared with it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _arguments
from .._tensors import compute_dtype, promoted_dtype, valid_mask

# Variance of a state that has seen nothing: the next input takes over entirely (gain 1 to rounding).
DIFFUSE = 1e30


class Scan(NamedTuple):
    """Result of the filter.

    Attributes:
        mean: (B, T, D), the filtered mean.
        var: (B, T, D), its variance.
        gain: (B, T, D), the Kalman gain.
        state: (s, p) after the last valid step, (B, D) each.
    """

    mean: Tensor
    var: Tensor
    gain: Tensor
    state: tuple[Tensor, Tensor]


def influence(nu: float | Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Return 1/(ν+1), the weight of the squared residual in the robust update, or None for the plain one.

    Args:
        nu: degrees of freedom, or None.
        device: of the result.
        dtype: of the arithmetic and of the result.
    """
    if nu is None:
        return None
    if isinstance(nu, Tensor):
        return 1 / (nu.to(device, dtype, non_blocking=True) + 1)
    return torch.full((), 1 / (nu + 1), dtype=dtype, device=device)


def kalman_scan(
    x: Tensor,
    var: Tensor,
    *,
    lengths: Tensor | None = None,
    process_noise: float | Tensor = 0.0,
    nu: float | Tensor | None = None,
    eps: float = 1e-8,
    initial_state: tuple[Tensor, Tensor] | None = None,
) -> Scan:
    """Run a Kalman filter with a random-walk state, elementwise over (B, D), sequential over T.

    Arguments, result and errors are those of `ief_kernels.kalman_scan`.
    a = p_{t−1} + q + eps and b = var_t + eps [+ (x_t − s_{t−1})²/(ν+1)]: gain = a/(a+b), p_t = a·b/(a+b),
    s_t = s_{t−1} + gain·(x_t − s_{t−1}). Without an initial state s_0 = x_0, p_0 = var_0, gain 1.
    """
    process_noise = _arguments.process_noise(process_noise)
    nu, eps = _arguments.degrees_of_freedom("nu", nu), _arguments.not_negative("eps", eps)
    dtype = promoted_dtype(x, var, states=initial_state or ())
    arithmetic = compute_dtype(dtype)
    batch, steps, dim = x.shape
    x, var = x.to(arithmetic), var.to(arithmetic)
    q = process_noise.to(x, non_blocking=True) if isinstance(process_noise, Tensor) else process_noise
    weight = influence(nu, x.device, arithmetic)
    if lengths is None:
        valid = torch.ones(batch, steps, dtype=torch.bool, device=x.device)
    else:
        valid = valid_mask(lengths, steps, x.device)
        x, var = torch.where(valid[..., None], x, 0), torch.where(valid[..., None], var, 1)
    if initial_state is None:
        s = torch.zeros(batch, dim, dtype=arithmetic, device=x.device)
        p = torch.full_like(s, DIFFUSE)
    else:
        s, p = (part.to(x) for part in initial_state)

    means, variances, gains = [], [], []
    for t, (x_t, var_t, here) in enumerate(zip(x.unbind(1), var.unbind(1), valid[..., None].unbind(1), strict=True)):
        if t == 0 and initial_state is None:
            gain, p_next, s_next = torch.ones_like(x_t), var_t, x_t
        else:
            residual = x_t - s
            a = p + q + eps
            b = var_t + eps if weight is None else var_t + eps + weight * residual * residual
            gain = a / (a + b) + 0 * b  # NaN for an infinite b, which the quotient alone would hide as gain 0
            p_next, s_next = b * gain, s + gain * residual
        means.append(torch.where(here, s_next, 0))
        variances.append(torch.where(here, p_next, 0))
        gains.append(torch.where(here, gain, 0))
        s, p = torch.where(here, s_next, s), torch.where(here, p_next, p)
    if not means:
        return Scan(x.to(dtype), var.to(dtype), x.to(dtype), (s, p))
    mean, p_all, gain_all = (torch.stack(rows, 1).to(dtype) for rows in (means, variances, gains))
    return Scan(mean, p_all, gain_all, (s, p))
