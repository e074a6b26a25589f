"""What an interrupted run has measured so far, so that `--resume` need not measure it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.ceilings import dtype_name
from bench.measure import Row
from bench.operators import Case

SAME = ("device", "versions", "native", "commit", "quick", "providers")
"""Entries that must agree for rows of two runs to belong together."""


def key(case: Case) -> str:
    """A case as one text."""
    return json.dumps({**asdict(case), "dtype": dtype_name(case.dtype)})


@dataclass
class Partial:
    """Rows as they come, in a file that is written after each case.

    Attributes:
        path: the file.
        about: what the rows depend on (`SAME`).
        cases: records of rows by case.
        samples: of the ceilings, as in `Ceilings.samples`.
    """

    path: Path
    about: dict[str, Any]
    cases: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def resume(self) -> str:
        """Take over what an earlier run left, if it was the same in all of `SAME`; return what was found."""
        if not self.path.exists():
            return "no interrupted run to resume; measuring everything"
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            other = [name for name in SAME if found["about"].get(name) != self.about.get(name)]
            cases, samples = found["cases"], found["samples"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{self.path} cannot be read; measuring everything"
        if other:
            return f"{self.path} is of another {' and '.join(other)}; measuring everything"
        self.cases, self.samples = cases, samples
        return f"{len(self.cases)} cases were measured before"

    def rows(self, case: Case) -> list[Row] | None:
        """Rows of a case that was measured before, else None."""
        records = self.cases.get(key(case))
        return None if records is None else [Row(**record) for record in records]

    def keep(self, case: Case, rows: Sequence[Row], samples: dict[str, list[float]]) -> None:
        """Add the rows of a case and write the file: beside its place, then renamed, so that a kill loses nothing."""
        self.cases[key(case)] = [row.record() for row in rows]
        self.samples = samples
        text = json.dumps({"about": self.about, "cases": self.cases, "samples": samples})
        beside = self.path.with_name(self.path.name + ".tmp")
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(self.path)
