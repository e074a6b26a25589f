"""Was the machine quiet? Times of a busy machine decide nothing, so a run on one gives no verdict.

With two threads on two CPUs, one other process that computes makes every parallel loop wait for a thread that is not
running. Code of many small loops loses far more by it than code of few, so that even ratios are wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iefvad.utils.threads import cpus

STATUS = 3
"""Exit status of a run that ended, but on a busy machine."""

_OTHERS = 0.125  # fraction of the CPUs that other processes may use
_TIME = 0.1  # fraction of the measured time in which they may use more
_STALLED = 1.15  # wall time of a loop by its CPU time
_SCATTER = 0.35  # distance of the quartiles by the median, in the median over the rows
_LEAST = 5  # runs that quartiles need to say something


@dataclass
class Quiet:
    """Watches a measurement from its beginning, lap by lap.

    Attributes:
        laps: Seconds of each lap, and the number of CPUs that other processes used in it; None where it is unknown.
        stalls: Wall time of a loop by its CPU time, measured between laps. 1 on a quiet machine.
        scatter: Median over rows of the distance of their quartiles by the median; None without rows.
    """

    laps: list[tuple[float, float | None]] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    scatter: float | None = None

    def __post_init__(self) -> None:
        """Start the first lap."""
        self._mark = _now()

    def lap(self) -> None:
        """End a lap and start the next one."""
        before, now = self._mark, _now()
        seconds = now[0] - before[0]
        others = None
        if before[1] is not None and now[1] is not None and now[1] > before[1] and seconds > 0:
            others = max(0.0, (now[1] - before[1]) - (now[2] - before[2])) / seconds
        self.laps.append((seconds, others))
        self.stalls.append(stall())
        self._mark = _now()

    def judge(self, spreads: Iterable[tuple[int, float]]) -> None:
        """Take the results into account.

        Args:
            spreads: Number of runs, and distance of the quartiles by the median, one per row.
        """
        told = sorted(spread for runs, spread in spreads if runs >= _LEAST)
        self.scatter = told[len(told) // 2] if told else None

    def reasons(self) -> list[str]:
        """Say why the machine was busy; nothing where it was quiet."""
        limit = max(0.2, _OTHERS * cpus())
        known = [(seconds, others) for seconds, others in self.laps if others is not None]
        total = sum(seconds for seconds, _ in known)
        disturbed = sum(seconds for seconds, others in known if others > limit)
        found = []
        if total and disturbed > _TIME * total:
            mean = sum(seconds * others for seconds, others in known) / total
            found.append(
                f"other processes used {mean:.2g} of {cpus()} CPUs on average, and more than {limit:.2g} in"
                f" {disturbed / total:.0%} of the time"
            )
        if self.stalls and (typical := sorted(self.stalls)[len(self.stalls) // 2]) > _STALLED:
            found.append(f"a loop took {typical:.2g} times its CPU time")
        if self.scatter is not None and self.scatter > _SCATTER:
            found.append(f"half of the rows scatter by more than {self.scatter:.0%} between their quartiles")
        return found

    def record(self) -> dict[str, Any]:
        """Return what is kept with the results."""
        known = [(seconds, others) for seconds, others in self.laps if others is not None]
        total = sum(seconds for seconds, _ in known)
        mean = sum(seconds * others for seconds, others in known) / total if total else None
        return {
            "busy": self.reasons(),
            "other_cpus": None if mean is None else round(mean, 3),
            "stall": round(max(self.stalls), 3) if self.stalls else None,
            "scatter": None if self.scatter is None else round(self.scatter, 3),
        }


def stall(seconds: float = 0.02) -> float:
    """Return wall time by CPU time of a loop that only computes: above 1 where the thread had to wait for a CPU."""
    wall, used = time.perf_counter(), time.thread_time()
    until = used + seconds
    while time.thread_time() < until:
        pass
    return (time.perf_counter() - wall) / max(time.thread_time() - used, 1e-9)


def _now() -> tuple[float, float | None, float]:
    """Wall time, CPU time of all processes on the CPUs of this one, and CPU time of this one and its children."""
    return time.perf_counter(), _all_seconds(), _own_seconds()


def _all_seconds(path: Path = Path("/proc/stat")) -> float | None:
    """Seconds that our CPUs were in use, by whomever, or taken away by the host; None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in lines:
        name, *values = line.split()
        if name in ours and len(values) >= 8:
            user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, values[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def _own_seconds() -> float:
    """CPU time of this process and of its children, those that still run included."""
    total = sum(os.times()[:4])
    parents: dict[int, list[tuple[int, int]]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents.setdefault(int(fields[1]), []).append((int(entry.parent.name), sum(map(int, fields[11:15]))))
    left = [os.getpid()]
    while left:
        for child, ticks in parents.pop(left.pop(), ()):
            total += ticks / os.sysconf("SC_CLK_TCK")
            left.append(child)
    return total
