"""Iterative residual refinement: z_{k+1} = z_k − attenuation·(W2_k·relu(W1_k·z_k + b1_k) + b2_k).

The source is ``docs/specification.md#refinement`` (paper, section 3.5).
"""

from __future__ import annotations

from torch import Tensor

from .. import _arguments
from .._autograd import gradients_wanted, run
from .._tensors import cast, promoted_dtype, require_float, require_same_device
from ..dispatch import choose
from . import reference
from .autograd import RefineFunction
from .reference import call_dtypes, step_count

__all__ = ["refine"]


def _check(z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
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
    require_same_device({"z": z, "w1": w1, "b1": b1, "w2": w2, "b2": b2})


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
        w1: (N, H, D), weights of each block's first layer; of one of these dtypes, like the rest.
        b1: (N, H), biases of the first layer.
        w2: (N, D, H), weights of the second layer.
        b2: (N, D), biases of the second layer.
        attenuation: fraction of each block's output that is subtracted.
        steps: N; None takes the leading dimension.
        checkpoint_every: k ≥ 1; training keeps z of every k-th step and computes the rest again (`reference` ignores
            it).
        backend: "auto", "triton", "native" or "reference".

    Returns:
        z_N, of z's shape and the promoted dtype of all five tensors; z in that dtype for N = 0. Under `torch.autocast`
        the matrix products run in its dtype, and z keeps its own. Autocast leaves float64 alone: where a tensor is
        float64, everything is.

    Raises:
        TypeError: an input has another dtype.
        ValueError: an input has another shape or is on another device, `steps` disagrees with the weights, or a number
            lies outside its range or is not finite.
        BackendUnavailable: the backend asked for cannot serve the call.
    """
    _check(z, w1, b1, w2, b2)
    checkpoint_every = _arguments.integer("checkpoint_every", checkpoint_every, 1)
    attenuation = _arguments.finite("attenuation", attenuation)
    count = step_count(w1, steps)
    dtype, inside = call_dtypes(z, w1, b1, w2, b2)
    choice = choose("refine", backend, z.device, dtype)
    if count == 0:
        return z.to(dtype)
    if choice.backend == "reference":
        return reference.refine(z, w1, b1, w2, b2, attenuation=attenuation, steps=steps)
    wanted = gradients_wanted(z, w1, b1, w2, b2)
    every = min(checkpoint_every, count) if wanted else count
    if inside == promoted_dtype(z, w1, b1, w2, b2):  # else autocast is on, and the kernels convert the weights
        w1, b1, w2, b2 = (cast(weight, dtype) for weight in (w1, b1, w2, b2))
    settings = (attenuation, count, every, inside, choice.backend)
    refined: Tensor = run("refine", RefineFunction, wanted, cast(z, dtype), w1, b1, w2, b2, *settings)
    return refined
