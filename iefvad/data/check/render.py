"""Writes the reports of the data check as text, Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from iefvad.data.check.findings import FileRow, Report, amount
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text
from iefvad.utils.text import few, readable

_MARKS = {"problem": "!", "note": "-", "good": "+"}
_WIDTH = 118
_COLUMNS = ("file", "what it is", "videos", "abnormal", "intervals", "frames", "abnormal frames", "share")


def as_text(reports: Sequence[Report], *, names: int = 5) -> str:
    """Return the reports as text of 118 columns, with at most `names` videos per finding (0: all)."""
    return "\n\n".join(_text(report, names) for report in reports) + "\n"


def as_markdown(reports: Sequence[Report]) -> str:
    """Return the reports as Markdown, with all videos of each finding."""
    lines = ["# Data check"]
    for report in reports:
        lines += ["", f"## {_md(report.name)}", "", *map(_md, report.verdict), ""]
        lines += ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * 2 + "--:|" * (len(_COLUMNS) - 2)]
        lines += ["| " + " | ".join(map(_md, _cells(row))) + " |" for row in report.files]
        lines += [""] + [f"- {split}: {_md(_classes(counts))}" for split, counts in report.classes.items()]
        for finding in report.findings:
            lines += [
                "",
                f"**{finding.level}:** {_md(finding.text)}."
                + (f" {_md(_sentence(finding.why))}" if finding.why else ""),
            ]
            if finding.names:
                shown = [f"- {_code(name)}" for name in finding.names]
                lines += ["", f"<details><summary>{len(shown)} named</summary>", "", *shown, "", "</details>"]
        if report.skipped:
            lines += ["", f"Not recognised: {', '.join(map(_md, report.skipped))}."]
    return "\n".join(lines) + "\n"


def as_json(reports: Sequence[Report]) -> str:
    """Return the reports as a JSON list."""
    return json.dumps([dataclasses.asdict(report) for report in reports], indent=2, ensure_ascii=False) + "\n"


def write_reports(path: Path, reports: Sequence[Report]) -> None:
    """Write the reports to a file: Markdown (.md), JSON (.json) or text (.txt), by its suffix.

    Raises:
        UserError: The file has another suffix, or it cannot be written.
    """
    suffix = path.suffix.lower()
    writers: dict[str, Callable[[Sequence[Report]], str]] = {
        ".md": as_markdown,
        ".json": as_json,
        ".txt": lambda given: as_text(given, names=0),
    }
    if suffix not in writers:
        raise UserError(f"--out {path}: the report is written as .md, .json or .txt; choose one of these endings")
    write_text(path, writers[suffix](reports))


def _text(report: Report, names: int) -> str:
    name = readable(report.name)
    lines = [name, "=" * len(name), *_wrap(" ".join(report.verdict), "")]
    lines += ["", *_table(report.files), ""]
    for split, counts in report.classes.items():
        lines += _wrap(f"{split}: {_classes(counts)}", "", "    ")
    counts = {level: sum(finding.level == level for finding in report.findings) for level in _MARKS}
    lines += [
        "",
        f"{amount(counts['problem'], 'problem')} (!), {amount(counts['note'], 'note')} (-),"
        f" {amount(counts['good'], 'check')} passed (+)",
    ]
    for finding in report.findings:
        lines += _wrap(f"{_MARKS[finding.level]} {finding.text}", "", "  ")
        if finding.names:
            lines += _wrap(few(finding.names, names), "      ", "      ")
        if finding.why:
            lines += _wrap(f"= {finding.why}", "    ", "      ")
    if report.skipped:
        lines += _wrap(f"not recognised: {few(report.skipped, 6)}", "", "    ")
    return "\n".join(lines)


def _table(rows: Sequence[FileRow]) -> list[str]:
    cells = [list(_COLUMNS), *[_cells(row) for row in rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(_COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _cells(row: FileRow) -> list[str]:
    numbers = (row.videos, row.abnormal, row.intervals, row.frames, row.abnormal_frames)
    fraction = f"{row.abnormal_frames / row.frames:.1%}" if row.frames and row.abnormal_frames is not None else ""
    return [readable(row.file), row.what, *("" if number is None else f"{number:,}" for number in numbers), fraction]


def _classes(counts: dict[str, int]) -> str:
    return ", ".join(f"{readable(kind)} {count:,}" for kind, count in counts.items())


def _md(text: str) -> str:
    """Return text for Markdown, so that no name becomes an element, a link or another cell."""
    return re.sub(r"([\\`|<\[&])", r"\\\1", readable(text))


def _code(name: str) -> str:
    """Return a name as code in Markdown. Its fence is longer than all in the name."""
    fence = "`" * (max((len(run) for run in re.findall("`+", name)), default=0) + 1)
    blank = " " if "`" in name else ""
    return f"{fence}{blank}{readable(name)}{blank}{fence}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _wrap(text: str, begin: str, rest: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=begin,
        subsequent_indent=begin if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
