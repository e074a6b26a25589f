"""Runs each file of `interpreter/` in a process of its own: triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "interpreter"
NAMES = sorted(path.name for path in FOLDER.glob("test_*.py"))

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(name: str) -> subprocess.CompletedProcess[str]:
    """Run one file; with one thread each, as two processes run side by side."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", str(FOLDER / name)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> dict[str, Future[subprocess.CompletedProcess[str]]]:
    """Every file that is asked for, two at a time."""
    asked = [name for name in NAMES if any(f"[{name}]" in item.nodeid for item in request.session.items)]
    pool = ThreadPoolExecutor(2)
    request.addfinalizer(lambda: pool.shutdown(cancel_futures=True))
    return {name: pool.submit(run, name) for name in asked}


@pytest.mark.parametrize("name", NAMES)
def test_interpreted(name: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    found = runs[name].result()
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout, found.stdout
