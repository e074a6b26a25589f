"""The page of a sweep: tables, tests and plots of each setting, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iefvad.report.error_bars import Panel, error_bars
from iefvad.report.images import inline_svg
from iefvad.report.page import Cell, Column, Table, flatten, table, write_page


@dataclass(frozen=True)
class MeanCell:
    """A cell with a mean: its text, and whether it is marked as the best."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class SettingPart:
    """What the page shows of one setting.

    Attributes:
        title: The setting.
        rows: Rows of the main table by column; text, numbers and `MeanCell`.
        panels: Panels of the plot.
        tests: Rows of the table of tests.
        classes: Rows of the table by anomaly class.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    panels: Sequence[Panel]
    tests: Sequence[Mapping[str, Any]] = ()
    classes: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class SweepPage:
    """The content of the page.

    Attributes:
        title: Its title.
        lead: The sentence below.
        tiles: Large numbers with captions.
        parts: One part per setting.
        notes: What a reader must know.
        failed: Rows of the table of failed trainings.
        settings: The base settings.
    """

    title: str
    lead: str
    tiles: Sequence[tuple[str, str]]
    parts: Sequence[SettingPart]
    notes: Sequence[str] = ()
    failed: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_sweep_page(path: Path, page: SweepPage) -> None:
    """Write the page: self-contained, light and dark. All text is escaped. Equal content gives equal bytes.

    Raises:
        UserError: the file cannot be written.
    """
    parts = []
    for number, part in enumerate(page.parts):
        figure = error_bars(part.panels, part.title)
        parts.append(
            {
                "anchor": f"setting{number}",
                "title": part.title,
                "table": means_table(part.rows),
                "svg": figure and inline_svg(figure, f"Metrics over the values of {part.title}", f"bars{number}"),
                "tests": table(part.tests) if part.tests else None,
                "classes": means_table(part.classes) if part.classes else None,
            }
        )
    write_page(
        path,
        "sweep.html",
        title=page.title,
        lead=page.lead,
        tiles=page.tiles,
        contents=[
            *((part["anchor"], part["title"], True) for part in parts),
            ("failed", "Failed", bool(page.failed)),
            ("settings", "Base settings", True),
        ],
        shown=parts,
        notes=page.notes,
        failed=table(page.failed) if page.failed else None,
        settings=list(flatten(page.settings)),
    )


def means_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Arrange rows whose cells are text, numbers or `MeanCell`. The first column is text."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    body = []
    for row in rows:
        cells = []
        for place, key in enumerate(keys):
            value = row.get(key)
            best = isinstance(value, MeanCell) and value.best
            text = value.text if isinstance(value, MeanCell) else "-" if value is None else str(value)
            cells.append(Cell(text, "best" if best else "" if place else "text", ""))
        body.append(cells)
    return Table([Column(key, "" if place else "text") for place, key in enumerate(keys)], body)
