from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The CUDA device; the CPU in triton's interpreter; the test is skipped where there is neither."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("needs a CUDA device")


@pytest.fixture
def cuda() -> torch.device:
    """A real CUDA device, for what the interpreter cannot do: compilation, graphs, a second device."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory holds NaN, so that a kernel that forgets an element fails."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)
