"""What checks found, and the report of one data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["problem", "note", "good"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: "problem" changes results or stops work, "note" is worth knowing, "good" is a check that passed.
        text: What was found.
        names: The videos (or values) that it is about.
        why: Explanation and remedy.
    """

    level: Level
    text: str
    names: tuple[str, ...] = ()
    why: str = ""


@dataclass
class FileRow:
    """One row of the table of files. Numbers are None if the file does not tell them.

    Attributes:
        file: Name of the file.
        what: Kind of file.
        videos: Number of videos.
        abnormal: Number of abnormal videos.
        intervals: Number of abnormal intervals.
        frames: Number of frames.
        abnormal_frames: Number of abnormal frames.
    """

    file: str
    what: str
    videos: int | None = None
    abnormal: int | None = None
    intervals: int | None = None
    frames: int | None = None
    abnormal_frames: int | None = None


@dataclass
class Report:
    """The report of one data set.

    Attributes:
        name: Name of the data set.
        files: Table of the files.
        classes: Number of videos per class, for each split.
        verdict: The result in a few sentences.
        findings: All findings, problems first.
        skipped: Files that were not recognised.
        unreadable: {file: reason} of the files that look damaged.
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
        """Return the findings that change results or stop work."""
        return [finding for finding in self.findings if finding.level == "problem"]


def listed(labels: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return labels[0] if len(labels) == 1 else ", ".join(labels[:-1]) + " and " + labels[-1]


def amount(count: int, thing: str) -> str:
    """Return `1 video` or `1,234 videos`."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


class Findings:
    """Collects findings. Findings that differ only in their file become one."""

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
        """Add a finding.

        Args:
            level: Level of the finding.
            text: What was found. `{files}` stands for the files, and `[has/have]` agrees with their number.
            file: The file that it is about.
            names: The videos (or values) that it is about.
            why: Explanation and remedy.
        """
        files = self._found.setdefault((level, text, tuple(names), why), [])
        if file and file not in files:
            files.append(file)

    def all(self) -> list[Finding]:
        """Return problems, then notes, then passed checks, each in the order in which they were added."""
        order = {"problem": 0, "note": 1, "good": 2}
        made = []
        for (level, text, names, why), files in sorted(self._found.items(), key=lambda item: order[item[0][0]]):
            text = re.sub(r"\[(\w+)/(\w+)\]", r"\2" if len(files) > 1 else r"\1", text)
            made.append(Finding(level, text.replace("{files}", listed(files) if files else ""), names, why))
        return made
