"""What the tests of several operators share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ief_kernels import _native

needs_native = pytest.mark.skipif(not _native.available(), reason="the C++ extension is not built")
BACKENDS = ("reference", pytest.param("native", marks=needs_native))


def leaf(*shape: int, dtype: torch.dtype = torch.float64, low: float | None = None) -> Tensor:
    """A leaf of normal numbers, or of uniform ones in [low, low + 1)."""
    values = torch.randn(shape, dtype=torch.float64) if low is None else torch.rand(shape, dtype=torch.float64) + low
    return values.to(dtype).requires_grad_()


def copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.detach().to(dtype).requires_grad_(tensor.requires_grad) for tensor in tensors]


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 1) -> list[Tensor | None]:
    """Gradients of a random weighting of all outputs (the weights depend on shapes and seed alone)."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) * o).sum().double() for o in outputs
    )
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
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def instruction_set(name: str) -> Iterator[bool]:
    """Runs the C++ kernels of one instruction set; gives False where this processor or build has none."""
    extension = _native.extension()
    before = extension.isa()
    try:
        yield extension.set_isa(name)
    finally:
        extension.set_isa(before)
