"""Iterative residual refinement in plain eager PyTorch: the specification in code.

The formula is that of ``docs/specification.md#refinement``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from .. import _arguments
from .._tensors import promoted_dtype


def call_dtypes(z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype of the result and that of the matrix products.

    Both are the promoted dtype of all tensors. Under `torch.autocast`, which leaves float64 alone, the products have
    autocast's dtype and z keeps its own.
    """
    dtype = promoted_dtype(z, w1, b1, w2, b2)
    device = z.device.type
    if dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return dtype, dtype
    return z.dtype, torch.get_autocast_dtype(device)


def step_count(w1: Tensor, steps: int | None) -> int:
    """Return the number of steps: w1's leading dimension, or `steps` if that dimension is 1 (shared weights).

    Raises:
        ValueError: `steps` is negative or disagrees with the leading dimension.
    """
    blocks = w1.shape[0]
    if steps is None:
        return blocks
    steps = _arguments.integer("steps", steps, 0)
    if blocks not in (1, steps):
        raise ValueError(f"steps={steps} disagrees with the {blocks} blocks of the weights")
    return steps


def refine(
    z: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    attenuation: float = 0.5,
    steps: int | None = None,
) -> Tensor:
    """Refine z; arguments and result as in `ief_kernels.refine`.

    z_{k+1} = z_k − attenuation·(W2_k·relu(W1_k·z_k + b1_k) + b2_k) for k = 0..N−1 (paper, section 3.5).
    """
    attenuation = _arguments.finite("attenuation", attenuation)
    dtype, inside = call_dtypes(z, w1, b1, w2, b2)
    z = z.to(dtype)
    w1, b1, w2, b2 = (weight.to(inside) for weight in (w1, b1, w2, b2))
    shared = w1.shape[0] == 1
    for step in range(step_count(w1, steps)):
        k = 0 if shared else step
        hidden = linear(z, w1[k], b1[k]).relu()
        z = z - attenuation * linear(hidden, w2[k], b2[k])
    return z.to(dtype)
