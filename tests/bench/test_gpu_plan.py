"""The plan of `bench/gpu.sh`, which a dry run prints, and the count behind it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def dry_run(*arguments: str, python: str = "true") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "bench/gpu.sh", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
    )


def test_the_plan_fits_and_checks_before_it_measures() -> None:
    done = dry_run("--dry-run")
    assert done.returncode == 0, done.stderr
    plan = re.findall(r"^(\S+) +about +(\d+) s, at most +(\d+) s: (.*)$", done.stdout, flags=re.M)
    names = [name for name, *_ in plan]
    assert names.index("selftest") < names.index("warmup") < names.index("tests") < names.index("bench")
    assert sum(int(expected) for _, expected, *_ in plan) <= 525
    assert all(int(expected) < int(most) for _, expected, most, _ in plan)
    for _, _, _, command in plan:  # what it would run exists
        if module := re.search(r" -m (ief_kernels\.\w+|bench(?= ))", command):
            assert importlib.util.find_spec(module[1]) is not None


def test_another_argument_is_refused() -> None:
    done = dry_run("--dry")
    assert done.returncode == 2 and "usage" in done.stderr and done.stdout == ""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_compilations_of_the_warm_up_are_counted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_plan", "--steps", "warmup", "--processes", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"warmup +(\d+) kernels, \d+ s of one core: about \d+ s with 12 processes\n", done.stdout)
    assert found and int(found[1]) >= 25
