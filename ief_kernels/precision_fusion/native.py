"""The C++ kernels of fusion and loss terms on CPU tensors (csrc/cpu/precision_fusion.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._tensors import FLOATS, address, compute_dtype, useful_threads
from ..dispatch import native_check, register_backend
from .reference import LOGVAR_LIMIT, SMALLEST_EPS

for _op in ("precision_fusion", "fusion_terms", "fusion_and_terms"):
    register_backend(_op, "native", native_check(FLOATS))


class _Call:
    """Contiguous inputs, kept alive while the kernel runs, and what both kernels take."""

    def __init__(self, tensors: tuple[Tensor, ...], c: tuple[Tensor, Tensor], lengths: Tensor | None, eps: float):
        first = tensors[0]
        self.dtype, self.arithmetic = first.dtype, compute_dtype(first.dtype)
        self.dim = first.shape[-1]
        self.rows = first.numel() // self.dim if self.dim else first[..., :0].shape[:-1].numel()
        self.inputs = [tensor.to(self.dtype).contiguous() for tensor in tensors]
        self.inputs += [scale.to(self.arithmetic).expand(self.dim).contiguous() for scale in c]
        self.lengths = None if lengths is None else lengths.to(torch.int64).contiguous()
        steps = first.shape[1] if lengths is not None else self.rows
        self.keywords = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "inputs": [*(tensor.data_ptr() for tensor in self.inputs), address(self.lengths)],
            "shape": (self.rows, steps, self.dim),
            "eps": max(eps, SMALLEST_EPS),
            "limit": LOGVAR_LIMIT[self.arithmetic],
            "threads": useful_threads(torch.get_num_threads(), first.numel()),
        }

    def new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def new_sums(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.arithmetic)


def forward(
    tensors: tuple[Tensor, ...],
    c: tuple[Tensor, Tensor],
    lengths: Tensor | None,
    eps: float,
    fuse: bool,
    with_terms: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return mean, var, w_img and w_evt (empty without `fuse`), and the four terms (empty without `with_terms`)."""
    shape = tensors[0].shape
    call = _Call(tensors, c, lengths, eps)
    fields = [call.new(*shape) if fuse else call.new(0) for _ in range(4)]
    terms = call.new_sums(4 if with_terms else 0)
    partial = torch.empty((call.rows if with_terms else 0, 4), dtype=torch.float64)
    if call.rows and call.dim:
        outputs = [*(field.data_ptr() if fuse else 0 for field in fields), partial.data_ptr(), terms.data_ptr()]
        _native.extension().fusion_forward(outputs=outputs, **call.keywords)
    else:
        terms.zero_()
    mean, var, w_img, w_evt = fields
    return mean, var, w_img, w_evt, terms


def backward(
    grads: tuple[Tensor | None, ...],
    tensors: tuple[Tensor, ...],
    c: tuple[Tensor, Tensor],
    lengths: Tensor | None,
    eps: float,
    with_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the four tensors and of both c (empty without `with_c`).

    Args:
        grads: incoming gradients of mean, var, w_img, w_evt and terms; None where absent.
        tensors: mu_img, logvar_img, mu_evt and logvar_evt.
        c: ν/(ν+1) of image and event, (1,) or (D,) each.
        lengths: (B,), or None.
        eps: added to each variance.
        with_c: whether the gradients of c are wanted.
    """
    shape = tensors[0].shape
    call = _Call(tensors, c, lengths, eps)
    *fields, terms = grads
    incoming = [None if grad is None else grad.to(call.dtype).contiguous() for grad in fields]
    incoming.append(None if terms is None else terms.to(call.arithmetic).contiguous())
    zeros = torch.zeros(call.dim, dtype=call.dtype)
    outgoing = [call.new(*shape) for _ in range(4)]
    partial = call.new_sums(_native.extension().fusion_blocks, 2, call.dim) if with_c else None
    sums = [call.new_sums(call.dim if with_c else 0) for _ in range(2)]
    if call.rows and call.dim:
        _native.extension().fusion_backward(
            incoming=[*(address(grad) for grad in incoming), zeros.data_ptr()],
            outgoing=[address(tensor) for tensor in (*outgoing, partial, *sums)],
            **call.keywords,
        )
    else:
        for total in sums:
            total.zero_()
    mu_img, logvar_img, mu_evt, logvar_evt = outgoing
    c_img, c_evt = (
        total.sum(0, keepdim=True) if with_c and scale.numel() == 1 else total
        for total, scale in zip(sums, c, strict=True)
    )
    return mu_img, logvar_img, mu_evt, logvar_evt, c_img, c_evt
