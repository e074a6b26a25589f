"""Iterative residual refinement: z_{k+1} = z_k − attenuation·(W2_k·relu(W1_k·z_k + b1_k) + b2_k).

The source is ``docs/specification.md#refinement`` (paper, section 3.5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._tensors import require_float
from ..dispatch import choose
from . import reference
from .autograd import RefineFunction
from .reference import step_count

__all__ = ["refine"]


def _product_dtype(z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> torch.dtype:
    """The dtype of the matrix products: autocast's where it is on (it leaves float64 alone), else the tensors' own."""
    device = z.device.type
    if torch.is_autocast_enabled(device) and z.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    for name, tensor in {"w1": w1, "b1": b1, "w2": w2, "b2": b2}.items():
        if tensor.dtype != z.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, but z is {z.dtype}; outside torch.autocast they must agree")
    return z.dtype


def _check(z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, checkpoint_every: int) -> None:
    require_float(z=z, w1=w1, b1=b1, w2=w2, b2=b2)
    if z.dim() == 0:
        raise ValueError("z must have at least one dimension")
    if w1.dim() != 3:
        raise ValueError(f"w1 must be (N, H, D), got {tuple(w1.shape)}")
    blocks, hidden, dim = w1.shape
    if z.shape[-1] != dim:
        raise ValueError(f"z has {z.shape[-1]} features, but w1 takes {dim}")
    expected = {"b1": (b1, (blocks, hidden)), "w2": (w2, (blocks, dim, hidden)), "b2": (b2, (blocks, dim))}
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape} to match w1, got {tuple(tensor.shape)}")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")


def refine(
    z: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    attenuation: float = 0.5,
    steps: int | None = None,
    checkpoint_every: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Refine z by N residual blocks.

    With a leading dimension of 1 and `steps=N` one block serves all steps.

    Args:
        z: (..., D); float16, bfloat16, float32 or float64.
        w1: (N, H, D), weights of each block's first layer, of z's dtype outside `torch.autocast`.
        b1: (N, H), biases of the first layer.
        w2: (N, D, H), weights of the second layer.
        b2: (N, D), biases of the second layer.
        attenuation: fraction of each block's output that is subtracted.
        steps: N; None takes the leading dimension.
        checkpoint_every: k ≥ 1; training keeps z of every k-th step and computes the rest again (`reference` ignores
            it).
        backend: "auto", "triton", "native" or "reference".

    Returns:
        z_N, of z's shape; z itself for N = 0. Under `torch.autocast` the matrix products run in its dtype, and z keeps
        its own.

    Raises:
        TypeError: an input has another dtype.
        ValueError: an input has another shape, or `steps` disagrees with the weights.
        BackendUnavailable: the backend asked for cannot serve the call.
    """
    _check(z, w1, b1, w2, b2, checkpoint_every)
    count = step_count(w1, steps)
    dtype = _product_dtype(z, w1, b1, w2, b2)
    choice = choose("refine", backend, z.device, z.dtype)
    if count == 0:
        return z
    if choice.backend == "reference":
        return reference.refine(z, w1, b1, w2, b2, attenuation=attenuation, steps=steps)
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (z, w1, b1, w2, b2))
    every = min(checkpoint_every, count) if trains else count
    refined: Tensor = RefineFunction.apply(z, w1, b1, w2, b2, attenuation, count, every, dtype, choice.backend)
    return refined
