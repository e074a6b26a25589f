"""Mixed dtypes on the Triton backend: the promoted dtype decides whether it serves, and what it computes in."""

from __future__ import annotations

import pytest
import torch

from ief_kernels import BackendUnavailable
from tests.helpers.kernel_checks import gradients
from tests.kernels.mixed_calls import CALLS, PAIRS, mixtures, output_dtypes, promoted

SERVED = (torch.float16, torch.float32)  # float64 is not, and bfloat16 is left to GPUs


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("first", "other"), [pair for pair in PAIRS if pair[0] != pair[1]], ids=str)
def test_mixed_dtypes_are_promoted(name: str, first: torch.dtype, other: torch.dtype) -> None:
    call = CALLS[name]
    for mixed in mixtures(call, first, other)[:: 1 if call.states else 3]:
        dtype = call.dtype(mixed)
        if dtype not in SERVED:
            with pytest.raises(BackendUnavailable, match=f"does not take {dtype}|bfloat16 wrong"):
                call.run(mixed, "triton")
            assert call.run(mixed, "auto")[0].dtype == output_dtypes(call, dtype, 5)[0]
            continue
        same = promoted(call, mixed)
        got, want = call.run(mixed, "triton"), call.run(same, "triton")
        assert [t.dtype for t in got] == output_dtypes(call, dtype, len(got))
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
        for tensor, a, b in zip(mixed, gradients(got, mixed), gradients(want, same), strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert a.dtype == tensor.dtype
                assert torch.equal(a, b.to(tensor.dtype))
