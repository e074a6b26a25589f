"""Mixed dtypes on the Triton backend: the promoted dtype decides whether it serves, and what it computes in."""

from __future__ import annotations

import pytest
import torch

from ief_kernels import BackendUnavailable, dispatch
from tests.kernels.mixed_calls import CALLS, PAIRS, assert_promoted, mixtures, output_dtypes

SERVED = (torch.float16, torch.float32)  # float64 is not, and bfloat16 is left to GPUs


NAMES = [name for name, call in CALLS.items() if "triton" in dispatch._checks[call.op]]


@pytest.mark.parametrize("name", NAMES)
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
        assert_promoted(call, mixed, "triton")
