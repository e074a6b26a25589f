"""Event maps in plain eager PyTorch: the specification in code (``docs/specification.md#event-synthesis``)."""

from __future__ import annotations

import torch
from torch import Tensor

from .._autograd import transformed
from .arguments import UNITS, check, map_dtype


def luma(frames: Tensor, rgb: bool) -> Tensor:
    """Return Y = 2989·R + 5870·G + 1140·B, or 10000 times a luma, in 1e-4 grey levels.

    The result is int32 for uint8 frames, float64 for float64 frames and float32 for other floating-point frames.
    Integer-valued pixels give the same exact Y as uint8 ones.
    """
    wide = {torch.uint8: torch.int32, torch.float64: torch.float64}.get(frames.dtype, torch.float32)
    frames = frames.to(wide)
    if not rgb:
        return frames * UNITS
    red, green, blue = frames.unbind(-1)
    return red * 2989 + green * 5870 + blue * 1140


def soft_events(delta: Tensor, threshold: int, surrogate: float) -> Tensor:
    """Return sigmoid((|ΔY| − threshold)/τ), which the surrogate gradient differentiates in place of the step.

    Args:
        delta: ΔY, in 1e-4 grey levels.
        threshold: in 1e-4 grey levels.
        surrogate: τ, in grey levels.
    """
    return torch.sigmoid((delta.abs() - threshold) / (surrogate * UNITS))


def _events(delta: Tensor, threshold: int, surrogate: float | None) -> Tensor:
    """1 where |ΔY| > threshold, else 0, in delta's dtype; the gradient is that of soft_events, or zero without τ."""
    fired = (delta.abs() > threshold).to(delta.dtype)
    if not delta.requires_grad and not transformed():
        return fired
    if surrogate is None:
        return torch.where(torch.zeros_like(fired, dtype=torch.bool), delta, fired)
    soft = soft_events(delta, threshold, surrogate)
    return fired + (soft - soft.detach())


def event_synthesis(
    frames: Tensor,
    *,
    threshold: float = 10,
    clamp: int = 10,
    normalize: str = "clamp",
    polarity: str = "merged",
    carry: Tensor | None = None,
    surrogate: float | None = None,
    layout: str = "auto",
) -> Tensor:
    """Return event maps of video segments; arguments, result and formula as in `ief_kernels.event_synthesis`."""
    settings = check(frames, threshold, clamp, normalize, polarity, carry, surrogate, layout)
    y = luma(frames, settings.rgb)
    if carry is not None:
        y = torch.cat([luma(carry, settings.rgb).unsqueeze(-3), y], -3)
    delta = y[..., 1:, :, :] - y[..., :-1, :, :]
    events = _events(delta, settings.threshold, settings.surrogate)
    if settings.split:
        counts = torch.stack([(events * (delta > 0)).sum(-3), (events * (delta < 0)).sum(-3)], -3)
    else:
        counts = events.sum(-3)
    # Not clamp(), whose gradient at count = clamp is 1 in some versions of torch and 0 in others; it is 1 here.
    counts = torch.where(counts > settings.clamp, settings.clamp, counts).to(map_dtype(frames.dtype, normalize))
    if normalize == "none" or counts.numel() == 0:
        return counts
    if normalize == "segment":
        over = (-3, -2, -1) if settings.split else (-2, -1)
        return counts / counts.detach().amax(over, keepdim=True).clamp(min=1)
    if normalize == "batch":
        return counts / counts.detach().amax().clamp(min=1)
    # A tensor, because dividing by a number multiplies by its rounded inverse on a GPU.
    return counts / torch.full((), settings.clamp, dtype=counts.dtype, device=counts.device)
