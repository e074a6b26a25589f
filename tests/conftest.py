"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")

_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real videos, annotations and features; the test is skipped where it is absent."""
    root = Path(os.environ.get("IEFVAD_TEST_DATA", _DATA))
    if not root.is_dir():
        pytest.skip("real test data are absent (set IEFVAD_TEST_DATA to their folder)")
    return root
