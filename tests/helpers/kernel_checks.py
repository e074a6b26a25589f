"""What the tests of several operators share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ief_kernels import _native, _tensors

needs_native = pytest.mark.skipif(not _native.available(), reason="the C++ extension is not built")
BACKENDS = ("reference", pytest.param("native", marks=needs_native))


# Largest error in units in the last place. exp and log: what NumPy documents for its vectorised float32 functions, on
# which triton's interpreter runs; torch, CUDA and csrc/common/vector_exp.h stay below. Division and square root: what
# CUDA documents for its fast forms; processors round correctly.
EXP_ULPS, DIVISION_ULPS = 4, 2


def tolerance(
    dtype: torch.dtype, *, exps: int = 0, exponent: float = 0.0, divisions: int = 0, roundings: float = 0
) -> float:
    """Bound the relative error of a formula, whatever processor and library computes it.

    First order in u, half the distance from 1 to the next number (2^-24 in float32). A unit in the last place is 2·u.

    Args:
        dtype: in which the formula is computed.
        exps: number of exponentials (or logarithms) whose errors reach the result undamped.
        exponent: largest argument of an exponential; a rounding of it is u·exponent in the result.
        divisions: number of divisions and square roots on the way.
        roundings: number of other roundings on the way: products, sums, the result's own.
    """
    unit = torch.finfo(dtype).eps / 2
    return unit * (exps * (2 * EXP_ULPS + exponent) + divisions * 2 * DIVISION_ULPS + roundings)


# Fusion: var and the weights hang on two variances c·exp(logvar) + eps with |logvar| below 5 in these tests, and on
# 1/(a_i + a_e); a gradient multiplies about six such numbers. Errors of the terms of a sum are independent, so that it
# errs by as much of its size as they do.
FUSION_FLOAT32 = tolerance(torch.float32, exps=2, exponent=5, divisions=2, roundings=20)
# Half precision: outputs and gradients are rounded once or twice, which hides everything else.
FUSION_RELATIVE = {
    torch.float32: FUSION_FLOAT32,
    torch.float16: tolerance(torch.float16, roundings=4),
    torch.bfloat16: tolerance(torch.bfloat16, roundings=4),
}


# Low-rank fusion: as the fusion, then sums over D of four products each (T and b), an inverse of 2r columns, and sums
# over 2r. The tests' factors have VᵀV below 4, so T's eigenvalues lie in [1, 5]: the relative error of the inverse is
# at most 5 times that of T and of elimination. Gradients take the inverse three times.
def low_rank_tolerance(dtype: torch.dtype, dim: int, rank: int) -> float:
    """Bound the relative error of low-rank fusion and its gradients in a dtype."""
    if dtype in (torch.float16, torch.bfloat16):
        return FUSION_RELATIVE[dtype]
    sums = 4 + max(dim, 2).bit_length() / 2 + 2 * rank
    return tolerance(dtype, exps=2, exponent=5, divisions=4, roundings=20 + 3 * 5 * sums)


# The scan: a step costs a division and about five roundings in each of s and p, and the gain, about a tenth and more in
# these tests, makes later steps forget an error after about ten. Half precision rounds outputs, and gradients twice.
SCAN_RELATIVE = {
    torch.float32: tolerance(torch.float32, divisions=10, roundings=50),
    torch.float16: tolerance(torch.float16, roundings=4),
    torch.bfloat16: tolerance(torch.bfloat16, roundings=4),
}


def norm_tolerance(relative: float, dim: int) -> float:
    """Bound the error of the norm term, a difference of two norms near sqrt(D) that are themselves sums of D squares.

    A sum in a tree of float32 rounds log2(D) times, the square root halves the error and rounds once.
    """
    norms = 2 * dim**0.5 * tolerance(torch.float32, divisions=1, roundings=max(dim, 2).bit_length() / 2)
    return max(relative, norms)


def surrogate_tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """Bound (relative, absolute) the error of event synthesis's surrogate gradient on either side of a comparison.

    The slope σ(x)·(1 − σ(x))/τ hangs on exp(−|x|), |x| below 17 in these tests. The reference rounds σ near 1, which is
    absolute: u times weights of up to 2, over τ = 2 or 3, of two differences. Half precision rounds the gradient.
    """
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    relative = tolerance(arithmetic, exps=2, exponent=17, divisions=4, roundings=16)
    if dtype in (torch.float16, torch.bfloat16):
        relative += tolerance(dtype, roundings=2)
    return relative, tolerance(arithmetic, roundings=4) + (torch.finfo(dtype).tiny if dtype == torch.float16 else 0.0)


def leaf(*shape: int, dtype: torch.dtype = torch.float64, low: float | None = None) -> Tensor:
    """A leaf of normal numbers, or of uniform ones in [low, low + 1)."""
    values = torch.randn(shape, dtype=torch.float64) if low is None else torch.rand(shape, dtype=torch.float64) + low
    return values.to(dtype).requires_grad_()


def copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.detach().to(dtype).requires_grad_(tensor.requires_grad) for tensor in tensors]


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 1, rounded: torch.dtype = torch.float64
) -> list[Tensor | None]:
    """Gradients of a random weighting of all outputs (the weights depend on shapes and seed alone).

    Where the gradients of outputs in half precision are compared with wide ones, `rounded` is the narrow dtype: both
    are then asked for the same weighting.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(rounded).to(o.dtype) for o in outputs]
    total = sum((weight * output).sum().double() for weight, output in zip(weights, outputs, strict=True))
    return list(torch.autograd.grad(total, list(inputs), allow_unused=True))


def assert_near(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Largest error at most `relative` times the largest expected value (at least 1)."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    error = (actual.detach().double() - expected.detach().double()).abs().max().item()
    scale = max(1.0, expected.detach().abs().max().item())
    assert error <= relative * scale, f"error {error:.3g} against {relative:.3g} times {scale:.3g}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads, also for tensors that are too small to gain from them."""
    before, elements = torch.get_num_threads(), _tensors.ELEMENTS_PER_THREAD
    torch.set_num_threads(count)
    _tensors.ELEMENTS_PER_THREAD = 1
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _tensors.ELEMENTS_PER_THREAD = elements


@contextmanager
def instruction_set(name: str) -> Iterator[bool]:
    """Runs the C++ kernels of one instruction set; gives False where this processor or build has none."""
    extension = _native.extension()
    before = extension.isa()
    try:
        yield extension.set_isa(name)
    finally:
        extension.set_isa(before)
