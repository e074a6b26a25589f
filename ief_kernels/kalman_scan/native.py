"""The C++ kernels of the scan on CPU tensors (csrc/cpu/kalman_scan.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._tensors import FLOATS, address, cast, compute_dtype, useful_threads
from ..dispatch import native_check, register_backend
from .reference import DIFFUSE

register_backend("kalman_scan", "native", native_check(FLOATS))


def kept_states(steps: int) -> int:
    """Return how many states `forward` keeps in full precision of a half-precision sequence of `steps` steps.

    One per block of steps, from which `backward` computes the others again. Without a whole block there is none.
    """
    return max(steps - 1, 0) // int(_native.extension().scan_block)


class _Call:
    """Contiguous inputs, kept alive while the kernel runs, and what both kernels take."""

    def __init__(
        self,
        x: Tensor,
        var: Tensor,
        lengths: Tensor | None,
        q: Tensor,
        influence: Tensor | None,
        eps: float,
        s0: Tensor | None,
        p0: Tensor | None,
    ):
        lengths = None if lengths is None else cast(lengths, torch.int64)
        noise, per_dim = (q.item(), None) if q.numel() == 1 else (0.0, q)
        self.inputs = [
            None if tensor is None else tensor.contiguous() for tensor in (x, var, lengths, per_dim, influence, s0, p0)
        ]
        self.arguments = (
            str(x.dtype).removeprefix("torch."),
            [address(tensor) for tensor in self.inputs],
            x.shape,
            noise,
            eps,
            DIFFUSE,
            useful_threads(torch.get_num_threads(), x.numel()),
        )


def forward(
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    q: Tensor,
    influence: Tensor | None,
    eps: float,
    s0: Tensor | None,
    p0: Tensor | None,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the filter.

    Returns:
        Mean, variance and gain (B, T, D) in x's dtype, the state s and p (B, D) in the arithmetic's, and for half
        precision with `keep_states` (2, B, `kept_states(T)`, D) means and variances in float32. Otherwise the last
        tensor is empty: mean and variance are not rounded, or nobody asks for a gradient.
    """
    batch, steps, dim = x.shape
    arithmetic = compute_dtype(x.dtype)
    outputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(3)]
    outputs += [torch.empty((batch, dim), dtype=arithmetic) for _ in range(2)]
    keep = keep_states and x.dtype != arithmetic
    states = torch.empty((2, batch, kept_states(steps), dim) if keep else (0,), dtype=arithmetic)
    call = _Call(x, var, lengths, q, influence, eps, s0, p0)
    if batch and dim:
        kept = [states[0].data_ptr(), states[1].data_ptr()] if keep else [0, 0]
        _native.extension().scan_forward(*call.arguments, [tensor.data_ptr() for tensor in outputs] + kept)
    mean, variance, gain, s, p = outputs
    return mean, variance, gain, s, p, states


def backward(
    grads: tuple[Tensor | None, ...],
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    q: Tensor,
    influence: Tensor | None,
    eps: float,
    s0: Tensor | None,
    p0: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, var, q, influence, s0 and p0 (empty where absent).

    Args:
        grads: incoming gradients of mean, variance, gain, s and p; None where absent.
        mean: what `forward` returned; for half precision the means among the states that it kept.
        variance: as mean.
        x: what `forward` took, and so are the rest.
        var: (B, T, D).
        lengths: (B,), or None.
        q: process noise, (1,) or (D,).
        influence: 1/(ν+1), (1,), or None.
        eps: added to both variances.
        s0: initial mean (B, D), or None.
        p0: initial variance (B, D), or None.
    """
    batch, _, dim = x.shape
    call = _Call(x, var, lengths, q, influence, eps, s0, p0)
    incoming = [None if tensor is None else tensor.contiguous() for tensor in (mean, variance, *grads)]
    arithmetic = compute_dtype(x.dtype)
    grad_x, grad_var = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    grad_s0, grad_p0 = (torch.empty(0 if s0 is None else (batch, dim), dtype=arithmetic) for _ in range(2))
    grad_q = torch.zeros(dim, dtype=arithmetic)
    grad_influence = torch.zeros(1, dtype=arithmetic)
    if batch and dim:  # an empty tensor has no memory, its address is 0
        outgoing = (grad_x, grad_var, grad_s0, grad_p0, grad_q, grad_influence)
        _native.extension().scan_backward(
            *call.arguments, [address(tensor) for tensor in incoming], [tensor.data_ptr() for tensor in outgoing]
        )
    if q.numel() == 1 and dim != 1:
        grad_q = grad_q.sum(0, keepdim=True)
    if influence is None:
        grad_influence = grad_influence.new_empty(0)
    return grad_x, grad_var, grad_q, grad_influence, grad_s0, grad_p0
