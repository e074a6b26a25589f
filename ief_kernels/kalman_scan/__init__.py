"""Elementwise Kalman filter over time (random-walk state), with ragged lengths, carried state and a robust variant.

From ``docs/specification.md#kalman-scan``:

    a_t = p_{t−1} + q + eps            b_t = var_t + eps [+ r_t²/(ν+1)]          r_t = x_t − s_{t−1}
    gain_t = a_t/(a_t + b_t)           p_t = b_t·gain_t = 1/(1/a_t + 1/b_t)      s_t = s_{t−1} + gain_t·r_t

Without an initial state s_0 = x_0, p_0 = var_0 and gain_0 = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _arguments
from .._autograd import gradients_wanted, run
from .._tensors import (
    cast,
    compute_dtype,
    promoted_dtype,
    require_float,
    require_lengths,
    require_same_device,
    require_same_shape,
)
from ..dispatch import choose
from . import reference
from .autograd import KalmanScanFunction
from .reference import Scan, influence

__all__ = ["Scan", "kalman_scan"]


def _check(
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    process_noise: float | Tensor,
    nu: float | Tensor | None,
    initial_state: tuple[Tensor, Tensor] | None,
) -> None:
    """Check shapes, dtypes and devices."""
    require_float(x=x, var=var)
    require_same_shape(x=x, var=var)
    if x.dim() != 3:
        raise ValueError(f"x must be (B, T, D), got {tuple(x.shape)}")
    batch, _, dim = x.shape
    require_lengths(lengths, batch)
    if isinstance(process_noise, Tensor):
        require_float(process_noise=process_noise)
        if process_noise.numel() not in (1, dim) or process_noise.dim() > 1:
            raise ValueError(f"process_noise must have shape ({dim},) or one element, got {tuple(process_noise.shape)}")
    if isinstance(nu, Tensor):
        require_float(nu=nu)
        if nu.numel() != 1:
            raise ValueError(f"nu must have one element, got {tuple(nu.shape)}")
    s = p = None
    if initial_state is not None:
        s, p = pair_of_tensors(initial_state)
        require_float(initial_mean=s, initial_var=p)
        if s.shape != (batch, dim) or p.shape != (batch, dim):
            shapes = f"{tuple(s.shape)} and {tuple(p.shape)}"
            raise ValueError(f"initial_state must be two tensors of shape ({batch}, {dim}), got {shapes}")
    require_same_device(
        {"x": x, "var": var, "initial_state[0]": s, "initial_state[1]": p},
        lengths=lengths,
        parameters={"process_noise": process_noise, "nu": nu},
    )


def pair_of_tensors(initial_state: object) -> tuple[Tensor, Tensor]:
    """Return an initial state that is a pair of tensors.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(initial_state, tuple | list) and len(initial_state) == 2:
        s, p = initial_state
        if isinstance(s, Tensor) and isinstance(p, Tensor):
            return s, p
    raise ValueError("initial_state must be None or two tensors (s, p) of shape (B, D)")


def kalman_scan(
    x: Tensor,
    var: Tensor,
    *,
    lengths: Tensor | None = None,
    process_noise: float | Tensor = 0.0,
    nu: float | Tensor | None = None,
    eps: float = 1e-8,
    initial_state: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto",
    debug: bool = False,
) -> Scan:
    """Filter x over time, each (b, d) on its own.

    Args:
        x: (B, T, D), the inputs; float16, bfloat16, float32 or float64.
        var: (B, T, D), their variances ≥ 0; of one of these dtypes.
        lengths: (B,) integers, on x's device or on the CPU; steps t ≥ length are padding. None: all steps are valid.
        process_noise: q ≥ 0, a float, or a tensor of shape (D,) or with one element, with a gradient. 0 makes the
            state a running mean. It does not widen the outputs, and neither does ν: both are converted to the dtype of
            the arithmetic. Without dimensions they may be on the CPU and are moved.
        nu: degrees of freedom ν > 0 of the robust update: a float, or a tensor of one element with a gradient. None:
            the plain update.
        eps: added to both variances.
        initial_state: (s, p), (B, D) each, such as the `state` of an earlier call. float64 makes the outputs float64;
            other dtypes are converted. None: the first step is copied.
        backend: "auto", "triton", "native" or "reference". Triton runs a loop over time, or, for long sequences of few
            lanes, chunks of time side by side; `explain("kalman_scan", x, nu=nu)` says which.
        debug: check values inside tensors q and ν on a GPU too, which waits for it. On the CPU they are always checked.

    Returns:
        `Scan(mean, var, gain, state)`. The first three are (B, T, D) in the promoted dtype of x and var, and zero at
        t ≥ length. `state` is (s, p) after each sequence's last valid step, (B, D) each, float32 (float64 for float64
        inputs), so that carrying it on equals one call on the concatenation. A sequence of length 0 returns its
        initial state. Without one it returns s = 0 with the diffuse variance 1e30, which the next call's first input
        replaces.

    Raises:
        TypeError: an input has another dtype.
        ValueError: an input has another shape or is on another device, q or eps is negative or not finite, or ν ≤ 0.
        BackendUnavailable: the backend asked for cannot serve the call.
    """
    _check(x, var, lengths, process_noise, nu, initial_state)
    dtype = promoted_dtype(x, var, states=initial_state or ())
    choice = choose("kalman_scan", backend, x.device, dtype)
    others = choice.backend != "native"  # the C++ kernels look at q themselves
    process_noise = _arguments.process_noise(process_noise, debug=debug, everything=others)
    nu = _arguments.degrees_of_freedom("nu", nu, debug=debug)
    eps = _arguments.not_negative("eps", eps)
    if choice.backend == "reference":
        return reference.kalman_scan(
            x, var, lengths=lengths, process_noise=process_noise, nu=nu, eps=eps, initial_state=initial_state
        )
    arithmetic = compute_dtype(dtype)
    s0, p0 = initial_state or (None, None)
    wanted = gradients_wanted(x, var, process_noise, nu, s0, p0)
    if isinstance(process_noise, Tensor):
        q = process_noise.to(x.device, arithmetic, non_blocking=True).reshape(-1)
    else:
        q = torch.full((1,), process_noise, dtype=arithmetic, device=x.device)
    weight = influence(nu, x.device, arithmetic)
    mean, variance, gain, s, p = run(
        "kalman_scan",
        KalmanScanFunction,
        wanted,
        cast(x, dtype),
        cast(var, dtype),
        lengths,
        q,
        None if weight is None else weight.reshape(1),
        eps,
        None if s0 is None else cast(s0, arithmetic),
        None if p0 is None else cast(p0, arithmetic),
        choice.backend,
        wanted,
    )
    return Scan(mean, variance, gain, (s, p))
