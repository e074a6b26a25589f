"""Tables of results, and their forms: for the page, as CSV and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from iefvad.reproduce.outcomes import Summary
from iefvad.reproduce.published import Published
from iefvad.utils.csv_text import csv_text
from iefvad.utils.text import readable

Cell = Summary | Published | float | str | None


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        title: Its head.
        digits: Decimals of its figures.
        signed: Figures show their sign.
        least: Figures too small for these decimals show that they are smaller, as p values do.
    """

    title: str
    digits: int = 2
    signed: bool = False
    least: bool = False


@dataclass
class Grid:
    """A table.

    Attributes:
        name: Name of its files.
        head: Heads of the columns of words, on the left.
        columns: Columns of figures.
        rows: Words and figures of each row.
    """

    name: str
    head: Sequence[str]
    columns: Sequence[Column]
    rows: list[tuple[Sequence[str], Sequence[Cell]]] = field(default_factory=list)

    def add(self, words: Sequence[str], cells: Sequence[Cell]) -> None:
        """Append a row."""
        assert len(words) == len(self.head) and len(cells) == len(self.columns), (words, cells)
        self.rows.append((words, cells))

    def without_empty(self) -> Grid:
        """Return the table without columns that have no figure."""
        kept = [i for i in range(len(self.columns)) if any(cells[i] is not None for _, cells in self.rows)]
        grid = Grid(self.name, self.head, [self.columns[i] for i in kept])
        for words, cells in self.rows:
            grid.add(words, [cells[i] for i in kept])
        return grid

    def shown(self) -> list[dict[str, str | None]]:
        """Return the rows as `report.page.table` takes them."""
        return [
            {head: word or None for head, word in zip(self.head, words, strict=True)}
            | {c.title: text_of(cell, c) for c, cell in zip(self.columns, cells, strict=True)}
            for words, cells in self.rows
        ]

    def csv(self) -> str:
        """Return the table as CSV. A figure over seeds has columns for its deviation and the number of trainings."""
        heads, split = [*self.head], []
        for i, column in enumerate(self.columns):
            kinds = {type(cells[i]) for _, cells in self.rows}
            parts = ["deviation", "n"] if Summary in kinds else ["deviation"] if Published in kinds else []
            split.append(parts)
            heads += [column.title, *(f"{column.title}, {part}" for part in parts)]
        lines: list[Sequence[str]] = [heads]
        for words, cells in self.rows:
            line = list(words)
            for cell, parts in zip(cells, split, strict=True):
                if isinstance(cell, (Summary, Published)):
                    values = [cell.mean, cell.deviation, cell.n if isinstance(cell, Summary) else None]
                    line += [_plain(value) for value in values[: 1 + len(parts)]]
                else:
                    line += [cell if isinstance(cell, str) else _plain(cell), *[""] * len(parts)]
            lines.append(line)
        return csv_text(lines)

    def latex(self) -> str:
        """Return the table as LaTeX, for the package booktabs."""
        lines = [
            "% \\usepackage{booktabs}",
            "\\begin{tabular}{" + "l" * len(self.head) + "r" * len(self.columns) + "}",
            "\\toprule",
            " & ".join(tex(title) for title in (*self.head, *(c.title for c in self.columns))) + " \\\\",
            "\\midrule",
        ]
        for words, cells in self.rows:
            shown = [text_of(cell, c) or "–" for c, cell in zip(self.columns, cells, strict=True)]
            lines.append(" & ".join(map(tex, (*words, *shown))) + " \\\\")
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def text_of(cell: Cell, column: Column) -> str | None:
    """Return what a cell shows; None where it is empty."""
    if cell is None or isinstance(cell, str):
        return cell
    sign = "+" if column.signed else ""
    if isinstance(cell, (Summary, Published)):
        mean = f"{cell.mean:{sign}.{column.digits}f}"
        return mean if cell.deviation is None else f"{mean} ± {cell.deviation:.{column.digits}f}"
    if column.least and cell < 10.0**-column.digits:
        return f"<{10.0**-column.digits:.{column.digits}f}"
    return f"{cell:{sign}.{column.digits}f}"


def _plain(value: float | int | None) -> str:
    return "" if value is None else f"{value:.6g}"


_TEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "#": "\\#", "_": "\\_", "$": "\\$", "{": "\\{", "}": "\\}",
    "^": "\\^{}", "~": "\\~{}", "<": "$<$", "ν": "$\\nu$", "ε": "$\\varepsilon$", "λ": "$\\lambda$", "Δ": "$\\Delta$",
    "±": "$\\pm$", "−": "$-$", "–": "--",
}  # fmt: skip


def tex(text: str) -> str:
    """Return text for LaTeX."""
    return "".join(_TEX.get(letter, letter) for letter in readable(text))
