"""What a check found, and the report of one data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["problem", "note", "good"]


@dataclass(frozen=True)
class Finding:
    """One thing found: `text` says what, `why` explains it, `names` are the videos (or values) it is about.

    A "problem" changes results or stops work; a "note" is to be known; "good" is a check that passed.
    """

    level: Level
    text: str
    names: tuple[str, ...] = ()
    why: str = ""


@dataclass
class FileRow:
    """One line of the table of files; None where the file does not tell."""

    file: str
    what: str
    videos: int | None = None
    abnormal: int | None = None
    intervals: int | None = None
    frames: int | None = None
    abnormal_frames: int | None = None


@dataclass
class Report:
    """All about one data set: its files, the classes of its splits, a `verdict` in a few sentences, and the findings.

    Findings come problems first; `skipped` files were not recognised, `unreadable` ones (label → reason) look damaged.
    """

    name: str
    files: list[FileRow] = field(default_factory=list)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> list[Finding]:
        """The findings that change results or stop work."""
        return [finding for finding in self.findings if finding.level == "problem"]


def listed(labels: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]


def amount(count: int, thing: str) -> str:
    """`1 video`, `1,234 videos`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


class Findings:
    """Collects findings; those that differ only in the file they are about become one."""

    def __init__(self) -> None:
        self._found: dict[tuple[Level, str, tuple[str, ...], str], list[str]] = {}

    def add(
        self,
        level: Level,
        text: str,
        file: str = "",
        *,
        names: Iterable[str] = (),
        why: str = "",
    ) -> None:
        """Add one. `{files}` in `text` stands for the files it is about, and `[has/have]` agrees with their number."""
        files = self._found.setdefault((level, text, tuple(names), why), [])
        if file and file not in files:
            files.append(file)

    def all(self) -> list[Finding]:
        """Problems, then notes, then what is good, each in the order of its finding."""
        order = {"problem": 0, "note": 1, "good": 2}
        made = []
        for (level, text, names, why), files in sorted(self._found.items(), key=lambda item: order[item[0][0]]):
            text = re.sub(r"\[(\w+)/(\w+)\]", r"\2" if len(files) > 1 else r"\1", text)
            made.append(Finding(level, text.replace("{files}", listed(files) if files else ""), names, why))
        return made
