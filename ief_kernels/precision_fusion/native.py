"""The C++ kernels of fusion and loss terms on CPU tensors (csrc/cpu/precision_fusion.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._tensors import FLOATS, address, cast, compute_dtype, useful_threads
from ..dispatch import native_check, register_backend
from .reference import LOGVAR_LIMIT, SMALLEST_EPS

for _op in ("precision_fusion", "fusion_terms", "fusion_and_terms"):
    register_backend(_op, "native", native_check(FLOATS))


class _Call:
    """Contiguous inputs, kept alive while the kernel runs, and what both kernels take."""

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        c: tuple[Tensor | float, Tensor | float],
        lengths: Tensor | None,
        eps: float,
    ):
        first = tensors[0]
        shape, self.dtype = first.shape, first.dtype
        self.arithmetic = compute_dtype(self.dtype)
        self.dim = shape[-1]
        self.rows = first.numel() // self.dim if self.dim else shape[:-1].numel()
        self.tensors = [cast(tensor, self.dtype).contiguous() for tensor in tensors]
        self.inputs: list[Tensor | None] = [*self.tensors]
        factors = [0.0, 0.0]  # where c is one number
        for k, factor in enumerate(c):
            if isinstance(factor, Tensor) and factor.numel() != 1:
                self.inputs.append(cast(factor, self.arithmetic).contiguous())
            else:
                self.inputs.append(None)
                factors[k] = factor.item() if isinstance(factor, Tensor) else factor
        self.inputs.append(None if lengths is None else cast(lengths, torch.int64).contiguous())
        self.arguments = (
            str(self.dtype).removeprefix("torch."),
            [address(tensor) for tensor in self.inputs],
            (self.rows, self.rows if lengths is None else shape[1], self.dim),
            factors,
            max(eps, SMALLEST_EPS),
            LOGVAR_LIMIT[self.arithmetic],
            useful_threads(torch.get_num_threads(), first.numel()),
        )

    def outputs(self) -> list[Tensor]:
        """Return an empty tensor like each of the four."""
        return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in self.tensors]

    def new(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.arithmetic)


def forward(
    tensors: tuple[Tensor, ...],
    c: tuple[Tensor | float, Tensor | float],
    lengths: Tensor | None,
    eps: float,
    fuse: bool,
    with_terms: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return mean, var, w_img and w_evt (empty without `fuse`), and the four terms (empty without `with_terms`)."""
    call = _Call(tensors, c, lengths, eps)
    fields = call.outputs() if fuse else [torch.empty(0, dtype=call.dtype) for _ in range(4)]
    terms = call.new(4 if with_terms else 0)
    if call.rows and call.dim:  # an empty tensor has no memory, its address is 0
        outputs = [field.data_ptr() for field in (*fields, terms)]
        _native.extension().fusion_forward(*call.arguments, outputs)
    else:
        terms.zero_()
    mean, var, w_img, w_evt = fields
    return mean, var, w_img, w_evt, terms


def backward(
    grads: tuple[Tensor | None, ...],
    tensors: tuple[Tensor, ...],
    c: tuple[Tensor | float, Tensor | float],
    lengths: Tensor | None,
    eps: float,
    with_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the four tensors and of both c (empty without `with_c`).

    Args:
        grads: incoming gradients of mean, var, w_img, w_evt and terms; None where absent.
        tensors: mu_img, logvar_img, mu_evt and logvar_evt.
        c: ν/(ν+1) of image and event: (1,) or (D,), or a number.
        lengths: (B,), or None.
        eps: added to each variance.
        with_c: whether the gradients of c are wanted.
    """
    call = _Call(tensors, c, lengths, eps)
    dtypes = (call.dtype,) * 4 + (call.arithmetic,)
    incoming = [
        None if grad is None else cast(grad, dtype).contiguous() for grad, dtype in zip(grads, dtypes, strict=True)
    ]
    outgoing = call.outputs()
    sums = [call.new(call.dim if with_c else 0) for _ in range(2)]
    if call.rows and call.dim:
        _native.extension().fusion_backward(
            *call.arguments, [address(grad) for grad in incoming], [tensor.data_ptr() for tensor in (*outgoing, *sums)]
        )
    else:
        for total in sums:
            total.zero_()
    if with_c:
        one = [not isinstance(factor, Tensor) or factor.numel() == 1 for factor in c]
        sums = [total.sum(0, keepdim=True) if alone else total for total, alone in zip(sums, one, strict=True)]
    mu_img, logvar_img, mu_evt, logvar_evt = outgoing
    return mu_img, logvar_img, mu_evt, logvar_evt, sums[0], sums[1]
