"""CSV as spreadsheets may open it: no cell of a name becomes a formula, and reading gives the names back.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@`. So such a cell is written with an apostrophe before it.
Numbers stay numbers. All CSV files of the package are written by `csv_text` or `csv_line`, and read by `CsvRows`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Signs that begin a formula, with those of full width, after blanks, quotes, and characters that are not shown; and the
# control characters that some programs strip. https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile(
    "[\t\r\n]|[\\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff'\"\u2018\u2019\u201c\u201d]*"
    "[=+\\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212]"
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)", re.ASCII)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV, one line per row. None is an empty cell, and a float has all its digits."""
    return "".join(map(csv_line, rows))


def csv_line(row: Sequence[Any]) -> str:
    """Return one row as a line of CSV, with its line break."""
    text = io.StringIO()
    # With this end of line, cells with either line break are quoted.
    csv.writer(text, lineterminator="\r\n").writerow([_written(cell) for cell in row])
    return text.getvalue().removesuffix("\r\n") + "\n"


class CsvRows:
    """Reads the rows of a CSV file, with the cells as they were before `csv_line` wrote them. Raises `csv.Error`.

    Args:
        lines: Lines of text, such as a file that was opened with `newline=""`.
        strict: Refuse quotes that do not match.
    """

    def __init__(self, lines: Iterable[str], *, strict: bool = False) -> None:
        self._reader = csv.reader(lines, strict=strict)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        return list(map(original, next(self._reader)))

    @property
    def line(self) -> int:
        """Number of the last line that was read, from 1."""
        return self._reader.line_num


def harmless(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: with an apostrophe before it where it is needed."""
    return f"'{cell}" if _is_formula(cell) else cell


def original(cell: str) -> str:
    """Return a cell as it was before `harmless`."""
    return cell[1:] if cell[:1] == "'" and _is_formula(cell[1:]) else cell


def _is_formula(cell: str) -> bool:
    return _FORMULA.match(cell) is not None and _NUMBER.fullmatch(cell) is None


def _written(cell: Any) -> Any:
    return harmless(cell) if isinstance(cell, str) else cell
