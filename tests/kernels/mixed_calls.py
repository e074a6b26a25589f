"""Small calls of every operator on floating-point tensors, for tests of dtypes and devices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ief_kernels
from tests.helpers.kernel_checks import gradients, leaf

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PAIRS = list(product(DTYPES, DTYPES))


class Call(NamedTuple):
    """One operator.

    Attributes:
        op: name of the public function.
        make: gives its tensors that carry data, float64 leaves; carried states come last.
        run: calls it with these tensors and a backend, and returns all outputs.
        states: number of carried states.
        wide: number of outputs, the last ones, that are in the dtype of the arithmetic.
    """

    op: str
    make: Callable[[], list[Tensor]]
    run: Callable[[list[Tensor], str], list[Tensor]]
    states: int = 0
    wide: int = 0

    def dtype(self, tensors: list[Tensor]) -> torch.dtype:
        """The promoted dtype, written down without the package's own rule."""
        data, states = tensors[: len(tensors) - self.states], tensors[len(tensors) - self.states :]
        dtype = sum((torch.empty(0, dtype=tensor.dtype) for tensor in data), torch.empty(0, dtype=torch.float16)).dtype
        if all(tensor.dtype == torch.bfloat16 for tensor in data):
            dtype = torch.bfloat16
        return torch.float64 if torch.float64 in [state.dtype for state in states] else dtype


def fusion_tensors() -> list[Tensor]:
    return [leaf(2, 3, 5) for _ in range(4)]


def scan_tensors() -> list[Tensor]:
    return [leaf(2, 3, 5), leaf(2, 3, 5, low=0.2)]


def carried_tensors() -> list[Tensor]:
    return [*scan_tensors(), leaf(2, 5), leaf(2, 5, low=0.2)]


def refine_tensors() -> list[Tensor]:
    return [leaf(3, 5), leaf(2, 4, 5), leaf(2, 4), leaf(2, 5, 4), leaf(2, 5)]


def _scan(tensors: list[Tensor], backend: str, **options: Any) -> list[Tensor]:
    x, var, *state = tensors
    initial = (state[0], state[1]) if state else None
    found = ief_kernels.kalman_scan(x, var, process_noise=0.1, initial_state=initial, backend=backend, **options)
    return [found.mean, found.var, found.gain, *found.state]


def _low_rank(tensors: list[Tensor], backend: str) -> list[Tensor]:
    factors = torch.linspace(-0.5, 0.5, 20).view(2, 5, 2)
    lengths = torch.tensor([3, 1])
    return list(ief_kernels.low_rank_fusion(*tensors, *factors, lengths=lengths, backend=backend))


def _both(tensors: list[Tensor], backend: str) -> list[Tensor]:
    fusion, terms = ief_kernels.fusion_and_terms(*tensors, lengths=torch.tensor([3, 1]), backend=backend)
    return [*fusion, *terms]


CALLS = {
    "precision_fusion": Call(
        "precision_fusion", fusion_tensors, lambda t, backend: list(ief_kernels.precision_fusion(*t, backend=backend))
    ),
    "fusion_terms": Call(
        "fusion_terms", fusion_tensors, lambda t, backend: list(ief_kernels.fusion_terms(*t, backend=backend)), wide=4
    ),
    "fusion_and_terms": Call("fusion_and_terms", fusion_tensors, _both, wide=4),
    "low_rank_fusion": Call("low_rank_fusion", fusion_tensors, _low_rank),
    "scan": Call("kalman_scan", scan_tensors, _scan, wide=2),
    "robust scan": Call("kalman_scan", scan_tensors, lambda t, backend: _scan(t, backend, nu=4.0), wide=2),
    "carried scan": Call("kalman_scan", carried_tensors, _scan, states=2, wide=2),
    "refine": Call("refine", refine_tensors, lambda t, backend: [ief_kernels.refine(*t, backend=backend)]),
}


def mixtures(call: Call, first: torch.dtype, other: torch.dtype) -> list[list[Tensor]]:
    """The call's tensors in `first`, one of them (each in turn) in `other`."""
    torch.manual_seed(0)
    tensors = call.make()
    found = []
    for at in range(1, len(tensors)):
        dtypes = [other if index == at else first for index in range(len(tensors))]
        found.append([t.detach().to(d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)])
    return found


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def promoted(call: Call, tensors: list[Tensor]) -> list[Tensor]:
    """Leaves of the same values, converted beforehand: data to the promoted dtype, states to the arithmetic's."""
    dtype = call.dtype(tensors)
    data = len(tensors) - call.states
    dtypes = [dtype] * data + [wide_dtype(dtype)] * call.states
    return [t.detach().to(d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)]


def output_dtypes(call: Call, dtype: torch.dtype, count: int) -> list[torch.dtype]:
    return [dtype] * (count - call.wide) + [wide_dtype(dtype)] * call.wide


def assert_promoted(call: Call, mixed: list[Tensor], backend: str) -> None:
    """Check that a call on mixed dtypes is the call on tensors converted beforehand, gradients in each one's dtype."""
    same = promoted(call, mixed)
    got, want = call.run(mixed, backend), call.run(same, backend)
    assert [t.dtype for t in got] == output_dtypes(call, call.dtype(mixed), len(got))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    for tensor, a, b in zip(mixed, gradients(got, mixed), gradients(want, same), strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == tensor.dtype
            assert torch.equal(a, b.to(tensor.dtype))
