"""Runs of true values."""

from __future__ import annotations

import numpy as np
import pytest

from iefvad.utils.intervals import runs


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float64])
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([], []),
        ([0], []),
        ([1], [(0, 1)]),
        ([1, 1, 0, 1], [(0, 2), (3, 4)]),
        ([0, 0, 1], [(2, 3)]),
        ([0, 1, 1, 0, 0, 1, 0], [(1, 3), (5, 6)]),
    ],
)
def test_runs(mask: list[int], expected: list[tuple[int, int]], dtype: type) -> None:
    assert runs(np.array(mask, dtype)) == expected
