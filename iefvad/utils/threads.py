"""CPU threads: how many this process may use, how they wait for each other, and what `--threads` does.

This module does not import torch, because OpenMP reads the variables that `prepare` sets when torch is loaded.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from iefvad.utils.errors import UserError

BRIEF = {"GOMP_SPINCOUNT": "1500", "KMP_BLOCKTIME": "0"}
"""How long a thread that waits for the others stays awake: libgomp (torch on Linux) and libomp (macOS, Intel).

libgomp's default is 300,000 turns, several milliseconds. On a busy machine the others are not running meanwhile, and
the waiting thread keeps them from running. 1500 turns are 20 to 80 µs, about as long as the gap between two parallel
loops of an idle machine. `bench/NOTES.md` has the measurements.
"""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

MOST = 1024
"""Maximum number of threads that a user may ask for."""

_chosen: int | None = None


def prepare() -> None:
    """Set how threads wait and, under a CPU quota, their number, for this process and its children.

    Variables that the user set stay as they are. Where torch is already loaded it is too late, and nothing is changed.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _WAITING):
        os.environ.update(BRIEF)
    # torch sees which CPUs this process may run on, but not how much time on them a container may use.
    if not any(name in os.environ for name in _NUMBERS) and cpus() < _affinity():
        os.environ["OMP_NUM_THREADS"] = str(cpus())


def use_threads(count: int) -> None:
    """Compute with this number of CPU threads, in this process and in the children it starts from now on.

    Raises:
        UserError: the number is below 1.
    """
    global _chosen
    if count < 1:
        raise UserError(f"--threads must be at least 1, not {count}: leave it out to use all CPUs.")
    if count > MOST:
        raise UserError(f"--threads must be at most {MOST}, not {count}: leave it out to use all CPUs.")
    _chosen = count
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "MKL_NUM_THREADS" in os.environ:  # it would win over the other
        os.environ["MKL_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def chosen() -> int | None:
    """Return the number that `use_threads` was given last, or None."""
    return _chosen


def threads() -> int:
    """Return the number of threads to divide work among: the chosen one, otherwise that of `cpus`."""
    return _chosen or cpus()


def cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity, and at most its CPU quota, rounded up."""
    quota = cpu_quota()
    return _affinity() if quota is None else max(1, min(_affinity(), math.ceil(quota)))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many CPUs' time the control groups of this process grant it, or None without a limit.

    Args:
        root: Folder that contains `proc` and `sys`.
    """
    found = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process' control groups for CPU time, with those they are in (versions 1 and 2)."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / ("cpu" if controllers else "")
        # In a container the path may be that of the host; then only its last folders exist here, or the top alone.
        folder = top / path.lstrip("/")
        yield from (place for place in (folder, *folder.parents) if place == top or top in place.parents)


def _quota(folder: Path) -> float | None:
    try:
        if (limit := folder / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
