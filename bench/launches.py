"""How many Triton kernels one call of each operator launches: the one place that says so.

`NOTES.md` shows this table, `python -m bench --matrix` counts the launches of real calls, and tests compare the three.
Kernels of torch itself (fills, sums of partial sums, conversions of dtypes) are not counted.
"""

from __future__ import annotations

from typing import NamedTuple


class Count(NamedTuple):
    """A number of launches.

    Attributes:
        fixed: whatever the call's size.
        per_step: for each of N refinement steps.
    """

    fixed: int
    per_step: int = 0

    def of(self, steps: int) -> int:
        """Return the number of launches of a call with so many refinement steps."""
        return self.fixed + self.per_step * steps

    def __str__(self) -> str:
        """Return it as NOTES writes it, such as ``2N``."""
        steps = "" if not self.per_step else "N" if self.per_step == 1 else f"{self.per_step}N"
        if not steps:
            return str(self.fixed)
        return steps if not self.fixed else f"{steps} {'+' if self.fixed > 0 else '−'} {abs(self.fixed)}"


class Launches(NamedTuple):
    """Launches of one kind of call, forward and backward."""

    forward: Count
    backward: Count


LAUNCHES = {
    "precision_fusion": Launches(Count(1), Count(1)),
    "precision_fusion, ν trained per dimension": Launches(Count(1), Count(2)),
    "fusion_terms": Launches(Count(1), Count(1)),
    "fusion_terms, ν trained per dimension": Launches(Count(1), Count(2)),
    "fusion_and_terms": Launches(Count(1), Count(1)),
    "fusion_and_terms, ν trained per dimension": Launches(Count(1), Count(2)),
    "fusion_and_terms, rows above 2048": Launches(Count(1), Count(2)),
    "kalman_scan": Launches(Count(1), Count(1)),
    "kalman_scan in chunks": Launches(Count(3), Count(3)),
    "refine": Launches(Count(0, 2), Count(8, 2)),
    "refine, N = 1": Launches(Count(2), Count(6)),
    "refine, gradient of z alone": Launches(Count(0, 2), Count(2, 2)),
    "refine, every second state kept": Launches(Count(0, 2), Count(0, 5)),
    "refine, up to 256 tokens": Launches(Count(1), Count(8, 2)),
    "refine, one step in 64 MiB": Launches(Count(0, 2), Count(0, 6)),
    "refine, the library's products": Launches(Count(0), Count(0)),
    "event_synthesis": Launches(Count(1), Count(1)),
    "event_synthesis, divided by its peak": Launches(Count(2), Count(1)),
}
"""By kind of call. N is even where every second state is kept, and at least 2 unless it is 1."""
