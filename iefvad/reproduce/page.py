"""The page of reproduced tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iefvad.report.images import inline_svg
from iefvad.report.page import table, write_page
from iefvad.reproduce.sections import Part


@dataclass
class Header:
    """What stands above and below the sections.

    Attributes:
        data: Name of the data.
        lead: What was trained.
        notes: What a reader must know before comparing.
        settings: Settings that differ from the protocol.
        made: When and where, as `made_here` describes it.
    """

    data: str
    lead: str
    notes: list[str] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)


def write_results_page(path: Path, header: Header, parts: Sequence[Part]) -> None:
    """Write the page: self-contained HTML, light and dark. Links lead to the files of tables and figures beside it.

    Args:
        path: The HTML file.
        header: What stands above and below the sections.
        parts: The sections.

    Raises:
        UserError: the file cannot be written.
    """
    write_page(
        path,
        "reproduce.html",
        title=f"The paper's tables on {header.data}",
        header=header,
        lead=header.lead,
        parts=[_shown(part) for part in parts],
        contents=[*((part.name, part.title.partition(":")[0], True) for part in parts), ("run", "Run", True)],
    )


def _shown(part: Part) -> dict[str, object]:
    return {
        "name": part.name,
        "title": part.title,
        "about": part.about,
        "grids": [{"name": grid.name, "table": table(grid.shown())} for grid in part.grids],
        "figures": [
            {"name": name, "svg": inline_svg(figure, alt, name), "half": figure.get_size_inches()[0] < 8}
            for name, (figure, alt) in part.figures.items()
        ],
        "findings": part.findings,
        "reference": [table(grid.shown()) for grid in part.reference],
    }
