"""event_synthesis as registered operators, and the autograd Function on top of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands
from .._autograd import call, gradient, register_operator
from . import native, triton_launch
from .arguments import DTYPES, NORMALIZE, Settings, map_dtype, map_shape

_KERNELS: dict[str, Any] = {"triton": triton_launch, "native": native}


def _forward(
    frames: Tensor,
    carry: Tensor | None,
    rgb: bool,
    threshold: int,
    clamp: int,
    normalize: str,
    split: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _KERNELS[backend].forward(frames, carry, rgb, threshold, clamp, normalize, split)
    return found


def _forward_fake(
    frames: Tensor,
    carry: Tensor | None,
    rgb: bool,
    threshold: int,
    clamp: int,
    normalize: str,
    split: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = map_dtype(frames.dtype, normalize)
    segments = 1
    if normalize == "segment":
        for size in frames.shape[: -4 if rgb else -3]:
            segments *= size
    maps = frames.new_empty(map_shape(frames, rgb, split), dtype=dtype)
    return maps, frames.new_empty((segments,), dtype=torch.float32 if dtype == torch.uint8 else dtype)


def _backward(
    grad: Tensor,
    frames: Tensor,
    carry: Tensor | None,
    scale: Tensor,
    rgb: bool,
    threshold: int,
    clamp: int,
    split: bool,
    surrogate: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _KERNELS[backend].backward(
        grad, frames, carry, scale, rgb, threshold, clamp, split, surrogate
    )
    return found


def _backward_fake(
    grad: Tensor,
    frames: Tensor,
    carry: Tensor | None,
    scale: Tensor,
    rgb: bool,
    threshold: int,
    clamp: int,
    split: bool,
    surrogate: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return frames.new_empty(frames.shape), frames.new_empty(carry.shape if carry is not None else (0,))


def _check_forward(
    frames: Tensor,
    carry: Tensor | None,
    rgb: bool,
    threshold: int,
    clamp: int,
    normalize: str,
    split: bool,
    backend: str,
) -> None:
    _operands.require_first("frames", frames, DTYPES, range(4 if rgb else 3, 65))
    if rgb and frames.shape[-1] != 3:
        raise ValueError(f"frames must be (..., S, H, W, 3), got {tuple(frames.shape)}")
    at = frames.dim() - (4 if rgb else 3)
    _operands.require(frames.device, [("carry", carry, (*frames.shape[:at], *frames.shape[at + 1 :]), frames.dtype)])
    _operands.require_number("threshold", threshold, 0, 2**31 - 1)
    _operands.require_number("clamp", clamp, 1, 255)
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(NORMALIZE)}, got {normalize!r}")
    _operands.require_backend("event_synthesis", backend, _KERNELS, frames)


def _check_backward(
    grad: Tensor,
    frames: Tensor,
    carry: Tensor | None,
    scale: Tensor,
    rgb: bool,
    threshold: int,
    clamp: int,
    split: bool,
    surrogate: float,
    backend: str,
) -> None:
    _operands.require_first("frames", frames, DTYPES[1:], range(4 if rgb else 3, 65))  # not of bytes
    _check_forward(frames, carry, rgb, threshold, clamp, "clamp", split, backend)
    dtype = map_dtype(frames.dtype, "clamp")
    segments = 1
    for size in frames.shape[: -4 if rgb else -3]:
        segments *= size
    _operands.require(
        frames.device,
        (
            ("grad", grad, tuple(map_shape(frames, rgb, split)), dtype),
            ("scale", scale, (1,) if scale.shape == (1,) else (segments,), dtype),
        ),
    )
    if not surrogate > 0:
        raise ValueError(f"surrogate must be positive, got {surrogate}")
    _operands.require_number("surrogate", surrogate, 0)


register_operator(
    "event_synthesis_forward",
    "(Tensor frames, Tensor? carry, bool rgb, int threshold, int clamp, str normalize, bool split, str backend)"
    " -> (Tensor maps, Tensor scale)",
    _forward,
    _forward_fake,
    _check_forward,
)
register_operator(
    "event_synthesis_backward",
    "(Tensor grad, Tensor frames, Tensor? carry, Tensor scale, bool rgb, int threshold, int clamp, bool split,"
    " float surrogate, str backend) -> (Tensor grad_frames, Tensor grad_carry)",
    _backward,
    _backward_fake,
    _check_backward,
)


class EventSynthesis(torch.autograd.Function):
    """Event maps of floating-point frames, with the surrogate gradient (zeros without a surrogate)."""

    @staticmethod
    def forward(
        ctx: Any, frames: Tensor, carry: Tensor | None, settings: Settings, backend: str, straight: bool
    ) -> Tensor:
        """Run the forward operator and keep what the backward pass needs."""
        s = settings
        arguments = (frames, carry, s.rgb, s.threshold, s.clamp, s.normalize, s.split, backend)
        maps, scale = call(straight, "event_synthesis_forward", *arguments)
        ctx.save_for_backward(frames, carry, scale)
        ctx.settings, ctx.backend, ctx.straight = settings, backend, straight
        found: Tensor = maps
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Run the backward operator."""
        frames, carry, scale = ctx.saved_tensors
        s: Settings = ctx.settings
        if s.surrogate is None:
            grad_frames = torch.zeros_like(frames)
            grad_carry = None if carry is None else torch.zeros_like(carry)
        else:
            settings = (s.rgb, s.threshold, s.clamp, s.split, s.surrogate)
            grad_frames, grad_carry = gradient(
                ctx, "event_synthesis", (grad,), frames, carry, scale, *settings, ctx.backend
            )
        return (
            grad_frames if ctx.needs_input_grad[0] else None,
            grad_carry if carry is not None and ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )
