"""Refinement as a pair of registered operators, and the autograd Function on top of them.

Saved for the backward pass: z, the weights, and z_k of every `checkpoint_every`-th step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands
from .._autograd import call, gradient, only_wanted, register_operator
from .._tensors import FLOATS, compute_dtype
from . import native, triton_launch
from .native import kept_steps

_KERNELS: dict[str, Any] = {"triton": triton_launch, "native": native}
_INPUTS = "Tensor w1, Tensor b1, Tensor w2, Tensor b2, float attenuation, int steps, int every, ScalarType dtype"


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
    weights = (w1, b1, w2, b2)
    found: tuple[Tensor, Tensor] = _KERNELS[backend].forward(z, weights, attenuation, steps, every, dtype)
    return found


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
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _KERNELS[backend].backward(
        grad, z, saved, weights, attenuation, steps, every, dtype, with_weights
    )
    return found


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
    grad_w1, grad_b1, grad_w2, grad_b2 = (
        weight.new_empty(weight.shape if with_weights else (0,)) for weight in (w1, b1, w2, b2)
    )
    return z.new_empty(z.shape), grad_w1, grad_b1, grad_w2, grad_b2


def _check_forward(
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
) -> None:
    _operands.require_first("z", z, FLOATS, range(1, 65))
    for name, weight, dims in (("w1", w1, 3), ("b1", b1, 2), ("w2", w2, 3), ("b2", b2, 2)):
        _operands.require_first(name, weight, FLOATS, range(dims, dims + 1))  # kernels convert them
    blocks, hidden, dim = w1.shape
    _operands.require(
        z.device,
        (
            ("w1", w1, (blocks, hidden, z.shape[-1]), w1.dtype),
            ("b1", b1, (blocks, hidden), b1.dtype),
            ("w2", w2, (blocks, dim, hidden), w2.dtype),
            ("b2", b2, (blocks, dim), b2.dtype),
        ),
    )
    _operands.require_number("steps", steps, 0)
    _operands.require_number("every", every, 1)
    if blocks not in (1, steps):
        raise ValueError(f"w1 must have 1 or {steps} blocks, got {blocks}")
    if dtype not in FLOATS:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    _operands.require_number("attenuation", attenuation, float("-inf"))
    _operands.require_backend("refine", backend, _KERNELS, z)


def _check_backward(
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
) -> None:
    _check_forward(z, w1, b1, w2, b2, attenuation, steps, every, dtype, backend)
    _operands.require_first("grad", grad, FLOATS, range(z.dim(), z.dim() + 1))
    _operands.require_first("saved", saved, FLOATS, range(3, 4))
    rows = 1
    for size in z.shape[:-1]:
        rows = rows * size
    shape = (len(range(every, steps, every)), rows, z.shape[-1])
    _operands.require(z.device, (("grad", grad, z.shape, grad.dtype), ("saved", saved, shape, saved.dtype)))


register_operator(
    "refine_forward",
    f"(Tensor z, {_INPUTS}, str backend) -> (Tensor refined, Tensor saved)",
    _forward,
    _forward_fake,
    _check_forward,
)
register_operator(
    "refine_backward",
    f"(Tensor grad, Tensor z, Tensor saved, {_INPUTS}, bool with_weights, str backend)"
    " -> (Tensor grad_z, Tensor grad_w1, Tensor grad_b1, Tensor grad_w2, Tensor grad_b2)",
    _backward,
    _backward_fake,
    _check_backward,
)


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
        straight: bool,
    ) -> Tensor:
        """Run the forward operator and keep what the backward pass needs."""
        settings = (attenuation, steps, every, dtype)
        refined, saved = call(straight, "refine_forward", z, w1, b1, w2, b2, *settings, backend)
        ctx.save_for_backward(z, saved, w1, b1, w2, b2)
        ctx.settings, ctx.backend, ctx.straight = settings, backend, straight
        found: Tensor = refined
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Run the backward operator."""
        with_weights = any(ctx.needs_input_grad[1:5])
        gradients = gradient(ctx, "refine", (grad,), *ctx.saved_tensors, *ctx.settings, with_weights, ctx.backend)
        return only_wanted((*gradients, *(None,) * 6), ctx)
