"""Runs each file of `interpreter/` in a process of its own: triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from ief_kernels._spills import version

FOLDER = Path(__file__).resolve().parent / "interpreter"
NAMES = sorted(path.name for path in FOLDER.glob("test_*.py"))

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def why_not() -> str | None:
    """The error of the simplest loop in this triton's interpreter with this NumPy, None where it runs."""
    if [int(part) for part in version().split(".") if part.isdigit()] >= [3, 8]:
        return None
    found = subprocess.run(
        [sys.executable, str(FOLDER / "scalar_loop.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    return found.stderr.strip().splitlines()[-1] if found.returncode else None


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
    if reason := why_not():
        pytest.skip(f"the interpreter of triton {version()} does not run with NumPy {numpy.__version__}: {reason}")
    asked = [name for name in NAMES if any(f"[{name}]" in item.nodeid for item in request.session.items)]
    pool = ThreadPoolExecutor(2)
    request.addfinalizer(lambda: pool.shutdown(cancel_futures=True))
    return {name: pool.submit(run, name) for name in asked}


# One short file runs by default too, because kernels that hide NaN look right in every other way.
@pytest.mark.parametrize(
    "name", [name if name == "test_not_finite.py" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_interpreted(name: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    found = runs[name].result()
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout, found.stdout
