"""Uninitialised memory holds NaN in these tests, so that a kernel that forgets an element fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def poisoned_memory() -> Iterator[None]:
    # In deterministic mode torch.empty and its kin are filled with NaN.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
