"""Runs the files of `interpreter/` in a process of their own: triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
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


@pytest.fixture(scope="module")
def done(request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    """Every file that is asked for, in one process of one thread; its output has a line per test."""
    if reason := why_not():
        pytest.skip(f"the interpreter of triton {version()} does not run with NumPy {numpy.__version__}: {reason}")
    asked = [str(FOLDER / name) for name in NAMES if any(f"[{name}]" in item.nodeid for item in request.session.items)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rpfE", "-o", "addopts=", "-p", "no:cacheprovider", *asked],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[2],
        capture_output=True,
        text=True,
    )


# One short file runs by default too, because kernels that hide NaN look right in every other way.
@pytest.mark.parametrize(
    "name", [name if name == "test_not_finite.py" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_interpreted(name: str, done: subprocess.CompletedProcess[str]) -> None:
    ended = [line.split()[0] for line in done.stdout.splitlines() if re.match(rf"[A-Z]+ \S*/{name}\b", line)]
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert ended and set(ended) == {"PASSED"}, done.stdout + done.stderr
