"""The C++ kernels of the scan on CPU tensors (csrc/cpu/kalman_scan.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._tensors import FLOATS, useful_threads
from ..dispatch import native_check, register_backend
from .reference import DIFFUSE

register_backend("kalman_scan", "native", native_check(FLOATS))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
        lengths = None if lengths is None else lengths.to(torch.int64)
        q = q.expand(x.shape[2])
        self.inputs = [
            None if tensor is None else tensor.contiguous() for tensor in (x, var, lengths, q, influence, s0, p0)
        ]
        self.keywords = {
            "wide": x.dtype == torch.float64,
            "inputs": [_address(tensor) for tensor in self.inputs],
            "shape": tuple(x.shape),
            "eps": eps,
            "diffuse": DIFFUSE,
            "threads": useful_threads(_native.threads(), x.numel()),
        }


def forward(
    x: Tensor,
    var: Tensor,
    lengths: Tensor | None,
    q: Tensor,
    influence: Tensor | None,
    eps: float,
    s0: Tensor | None,
    p0: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, gain, (B, T, D), and the state s, p, (B, D); float32 or float64 throughout."""
    batch, _, dim = x.shape
    outputs = [torch.empty(x.shape, dtype=x.dtype) for _ in range(3)]
    outputs += [torch.empty((batch, dim), dtype=x.dtype) for _ in range(2)]
    call = _Call(x, var, lengths, q, influence, eps, s0, p0)
    if batch and dim:
        _native.extension().scan_forward(outputs=[tensor.data_ptr() for tensor in outputs], **call.keywords)
    mean, variance, gain, s, p = outputs
    return mean, variance, gain, s, p


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
    """Gradients of x, var, q, influence, s0, p0 (empty where absent); `grads`: mean, var, gain, s, p."""
    batch, _, dim = x.shape
    call = _Call(x, var, lengths, q, influence, eps, s0, p0)
    incoming = [mean.contiguous(), variance.contiguous()]
    optional = [None if grad is None else grad.contiguous() for grad in grads]
    to_x, to_var = (torch.empty(x.shape, dtype=x.dtype) for _ in range(2))
    to_s, to_p = (torch.empty((0,) if s0 is None else (batch, dim), dtype=x.dtype) for _ in range(2))
    to_q = torch.zeros(dim, dtype=x.dtype)
    to_influence = torch.zeros(1, dtype=x.dtype)
    partial = torch.empty((2, batch, dim), dtype=torch.float64)
    if batch and dim:
        outgoing = [to_x, to_var, None if s0 is None else to_s, None if s0 is None else to_p, partial, to_q]
        _native.extension().scan_backward(
            incoming=[_address(tensor) for tensor in (*incoming, *optional)],
            outgoing=[_address(tensor) for tensor in (*outgoing, to_influence)],
            **call.keywords,
        )
    if q.numel() == 1 and dim != 1:
        to_q = to_q.sum(0, keepdim=True)
    return to_x, to_var, to_q, to_influence if influence is not None else to_influence[:0].clone(), to_s, to_p
