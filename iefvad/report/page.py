"""Self-contained HTML pages from the templates beside this file. All text is escaped, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from iefvad.report.style import PALETTE, token_of
from iefvad.scoring.seeds import Spread
from iefvad.scoring.tables import cell
from iefvad.utils.files import write_text
from iefvad.utils.text import visible


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("iefvad.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: str | Path, template: str, **context: Any) -> None:
    """Write a page that one file holds: style and pictures are in it, and nothing is asked of the network.

    Args:
        path: The HTML file.
        template: Name of a file in `iefvad/report/templates/`.
        context: What the template names. Text is escaped; `Markup` (inline SVG) is not.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(Path(path), render(template, **context))


def render(template: str, **context: Any) -> str:
    """Return the text of a page, as `write_page` writes it."""
    return _environment().get_template(template).render(palette=PALETTE, **context)


def _visible(value: Any) -> Any:
    """Show what is not visible, such as a change of the direction of text, as `visible` does."""
    if isinstance(value, Markup) or not isinstance(value, (str, Path)):
        return value
    return visible(str(value))


class Link(str):
    """Text of a table cell that is a link.

    Attributes:
        href: Its address, percent-encoded.
    """

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        """Make a link of a text."""
        link = super().__new__(cls, text)
        link.href = href
        return link


class Column(NamedTuple):
    """Head of a column: its title and its CSS class."""

    title: str
    kind: str


class Cell(NamedTuple):
    """Cell of a table: its text, its CSS class, the palette token of the mark before it, a small note, an address."""

    text: str
    kind: str
    token: str
    note: str = ""
    href: str = ""


@dataclass(frozen=True)
class Table:
    """A table as the macro `parts.table` shows it. Without columns it shows nothing."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @property
    def dense(self) -> bool:
        """Whether the table has so many columns that they lie closer."""
        return len(self.columns) > 6


def table(
    rows: Sequence[Mapping[str, Any]],
    *,
    models: Sequence[str] | Mapping[str, str] = (),
    best: Callable[[str], str | None] | None = None,
    across: Sequence[str] = (),
) -> Table:
    """Arrange rows as a table.

    Args:
        rows: Values by column title. Columns are all keys in order of appearance, without those that are always None.
        models: Where the first column names one of these, the cell gets the model's colour, or that of the palette
            token which a mapping names.
        best: From a column's title to "max", "min" or None: which of its numbers is bold.
        across: Columns that are compared within each row. The largest number of a row is bold.

    Returns:
        The table. Floats have four decimals. The deviation of a `Spread` is a small note beside its mean.
    """
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if any(row.get(key) is not None for row in rows)
    ]
    columns = {key: [row.get(key) for row in rows] for key in keys}
    wordy = {key for key in keys if any(_is_word(value) for value in columns[key])}
    winners = {key: _winner(columns[key], best(key)) if best and len(rows) > 1 else None for key in keys}
    body = []
    for row in rows:
        champion = _winner([row.get(key) for key in across], "max") if len(across) > 1 else None
        cells = []
        for number, key in enumerate(keys):
            value = row.get(key)
            spread = isinstance(value, Spread) and value.std is not None
            text, _, note = cell(value).partition(" ± ") if spread else (cell(value), "", "")
            bold = text != "-" and (text == winners[key] or (key in across and text == champion))
            token = ""
            if number == 0 and value in models:
                token = models[str(value)] if isinstance(models, Mapping) else token_of(str(value))
            kind = "text" if key in wordy else "best" if bold else ""
            href = value.href if isinstance(value, Link) else ""
            cells.append(Cell(text, kind, token, note and f"± {note}", href))
        body.append(cells)
    return Table([Column(key, "text" if key in wordy else "") for key in keys], body)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and not value[:1].isdigit() and value[:1] not in ("+", "-", "<")


def _winner(values: Sequence[Any], rule: str | None) -> str | None:
    numbers = [float(v) for v in values if isinstance(v, (float, Spread))]
    if rule is None or not numbers:
        return None
    return cell(max(numbers) if rule == "max" else min(numbers))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the keys and values of nested settings, keys joined by dots."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
