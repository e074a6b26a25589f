"""The C++ kernels of low-rank fusion on CPU tensors (csrc/cpu/low_rank_fusion.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native
from .._tensors import FLOATS, address, cast
from ..dispatch import Facts, native_check, register_backend
from ..precision_fusion.native import _Call

MOST_COLUMNS = 16  # kMostColumns of csrc/cpu/low_rank_fusion.h
GROUP = 4  # columns that the kernels take at a time
LANES = 16  # rows of a factor are filled up to a multiple of the longest vector

_usual = native_check(FLOATS)


def _check(device: torch.device, dtype: torch.dtype, facts: Facts) -> str | None:
    rank = facts.get("rank", 0)
    if rank > MOST_COLUMNS:
        return f"its kernel takes a rank of at most {MOST_COLUMNS}, not {rank}"
    return _usual(device, dtype, facts)


register_backend("low_rank_fusion", "native", _check)


class _LowRankCall(_Call):
    """Contiguous inputs, kept alive while the kernel runs; the factors lie column by column, filled up with zeros."""

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        factors: tuple[Tensor, Tensor],
        c: tuple[Tensor | float, Tensor | float],
        lengths: Tensor | None,
        eps: float,
    ):
        super().__init__(tensors, c, lengths, eps)
        self.rank = factors[0].shape[1]
        columns, width = -(-self.rank // GROUP) * GROUP, -(-self.dim // LANES) * LANES
        self.columns = self.new(2 * columns * width).zero_().view(2, columns, width)
        for own, factor in zip(self.columns, factors, strict=True):
            own[: self.rank, : self.dim] = factor.T
        self.factors = (address(self.columns), columns, width)

    def transposed(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return (2, columns, width) as the gradients of both factors."""
        image, event = (own[: self.rank, : self.dim].T.contiguous() for own in grad)
        return image, event


def forward(
    tensors: tuple[Tensor, ...],
    factors: tuple[Tensor, Tensor],
    c: tuple[Tensor | float, Tensor | float],
    lengths: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, var, w_img and w_evt."""
    call = _LowRankCall(tensors, factors, c, lengths, eps)
    mean, var, w_img, w_evt = fields = call.outputs()
    if call.rows and call.dim:  # an empty tensor has no memory, its address is 0
        _native.extension().low_rank_forward(*call.arguments, call.factors, [field.data_ptr() for field in fields])
    return mean, var, w_img, w_evt


def backward(
    grads: tuple[Tensor | None, ...],
    tensors: tuple[Tensor, ...],
    factors: tuple[Tensor, Tensor],
    c: tuple[Tensor | float, Tensor | float],
    lengths: Tensor | None,
    eps: float,
    with_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the four tensors, of both factors and of both c (empty without `with_c`).

    Args:
        grads: incoming gradients of mean, var, w_img and w_evt; None where absent.
        tensors: mu_img, logvar_img, mu_evt and logvar_evt.
        factors: (D, r) of image and event, in the dtype of the arithmetic.
        c: ν/(ν+1) of image and event: (1,) or (D,), or a number.
        lengths: (B,), or None.
        eps: added to each variance.
        with_c: whether the gradients of c are wanted.
    """
    call = _LowRankCall(tensors, factors, c, lengths, eps)
    incoming = [None if grad is None else cast(grad, call.dtype).contiguous() for grad in grads]
    outgoing = call.outputs()
    columns = torch.zeros_like(call.columns)
    sums = [call.new(call.dim if with_c else 0).zero_() for _ in range(2)]
    if call.rows and call.dim:
        _native.extension().low_rank_backward(
            *call.arguments,
            call.factors,
            [address(grad) for grad in incoming],
            [tensor.data_ptr() for tensor in (*outgoing, columns, *sums)],
        )
    if with_c:
        one = [not isinstance(factor, Tensor) or factor.numel() == 1 for factor in c]
        sums = [total.sum(0, keepdim=True) if alone else total for total, alone in zip(sums, one, strict=True)]
    mu_img, logvar_img, mu_evt, logvar_evt = outgoing
    return mu_img, logvar_img, mu_evt, logvar_evt, *call.transposed(columns), sums[0], sums[1]
