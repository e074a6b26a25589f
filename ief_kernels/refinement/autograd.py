"""Refinement as a pair of registered operators, and the autograd Function on top of them.

Saved for the backward pass: z, the weights, and z_k of every `checkpoint_every`-th step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._tensors import compute_dtype, refuse_double_backward
from ..dispatch import register_backend
from . import native, triton_launch
from .native import kept_steps

_KERNELS: dict[str, Any] = {"triton": triton_launch, "native": native}
_INPUTS = "Tensor w1, Tensor b1, Tensor w2, Tensor b2, float attenuation, int steps, int every, ScalarType dtype"

# torch's own matrix products serve every device, so there is nothing to be missing.
register_backend("refine", "native", lambda device, dtype, facts: None)

torch.library.define(
    "ief_kernels::refine_forward", f"(Tensor z, {_INPUTS}, str backend) -> (Tensor refined, Tensor saved)"
)
torch.library.define(
    "ief_kernels::refine_backward",
    f"(Tensor grad, Tensor z, Tensor saved, {_INPUTS}, bool with_weights, str backend)"
    " -> (Tensor z, Tensor w1, Tensor b1, Tensor w2, Tensor b2)",
)


@torch.library.impl("ief_kernels::refine_forward", "default")
def _forward(
    z: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    attenuation: float,
    steps: int,
    every: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _KERNELS[backend].forward(z, (w1, b1, w2, b2), attenuation, steps, every, dtype)


@torch.library.register_fake("ief_kernels::refine_forward")
def _forward_fake(
    z: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    attenuation: float,
    steps: int,
    every: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    rows = 1
    for size in z.shape[:-1]:
        rows = rows * size
    # What the kernels multiply is all they keep, unless states between the kept ones follow from them.
    kept_dtype = dtype if backend == "triton" and every == 1 else compute_dtype(z.dtype)
    saved = z.new_empty((len(kept_steps(steps, every)), rows, z.shape[-1]), dtype=kept_dtype)
    return z.new_empty(z.shape), saved


@torch.library.impl("ief_kernels::refine_backward", "default")
def _backward(
    grad: Tensor,
    z: Tensor,
    saved: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    attenuation: float,
    steps: int,
    every: int,
    dtype: torch.dtype,
    with_weights: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = (w1, b1, w2, b2)
    return _KERNELS[backend].backward(grad, z, saved, weights, attenuation, steps, every, dtype, with_weights)


@torch.library.register_fake("ief_kernels::refine_backward")
def _backward_fake(
    grad: Tensor,
    z: Tensor,
    saved: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    attenuation: float,
    steps: int,
    every: int,
    dtype: torch.dtype,
    with_weights: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (weight.new_empty(weight.shape if with_weights else (0,)) for weight in (w1, b1, w2, b2))
    return z.new_empty(z.shape), a, b, c, d


class _Gradient(torch.autograd.Function):
    """The backward operator, as a Function of its own so that a second derivative is refused instead of wrong."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        return torch.ops.ief_kernels.refine_backward(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        refuse_double_backward("refine")


class RefineFunction(torch.autograd.Function):
    """z_N; `dtype` is what the matrix products run in."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        attenuation: float,
        steps: int,
        every: int,
        dtype: torch.dtype,
        backend: str,
    ) -> Tensor:
        settings = (attenuation, steps, every, dtype)
        refined, saved = torch.ops.ief_kernels.refine_forward(z, w1, b1, w2, b2, *settings, backend)
        ctx.save_for_backward(z, saved, w1, b1, w2, b2)
        ctx.settings, ctx.backend = settings, backend
        return refined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = ctx.needs_input_grad[:5]
        gradients = _Gradient.apply(grad, *ctx.saved_tensors, *ctx.settings, any(wanted[1:]), ctx.backend)
        return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *(None,) * 5)
