"""What all plots share: figures in the colours of the pages, axes, legends and the style of each model's line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from iefvad.report.style import OTHERS, PALETTE, token_of
from iefvad.utils.text import readable

WIDTH = 10.0  # inches; at 1000 px on the page a font of 9 pt reads as 12 px

_DASHES: dict[str, Any] = {"fusion": "-", "image": (0, (5, 1.6)), "event": (0, (5, 1.4, 1.2, 1.4))}
_OTHER_DASHES: tuple[Any, ...] = ((0, (1.5, 1.3)), (0, (7, 1.2)), (0, (3, 1.2, 1.2, 1.2, 1.2, 1.2)), "-")


def colour(token: str) -> str:
    """Return the light colour of a palette token."""
    return PALETTE[token][0]


def new_figure(height: float, rows: int = 1, columns: int = 1, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """Make a figure, height and width in inches, and its dressed axes row by row."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=colour("card"))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes:
        dress(ax)
    return figure, axes


def dress(ax: Axes) -> None:
    """Give axes the look of the pages: a light grid, and lines at the left and below."""
    ax.set_facecolor(colour("card"))
    ax.grid(True, color=colour("grid"), linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(colors=colour("muted"), labelsize=8.5, length=0, pad=5)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colour("grid"))


def label(ax: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Write the titles of the axes and of the plot."""
    x, y, title = map(readable, (x, y, title))
    ax.set_xlabel(x, fontsize=9, color=colour("muted"), parse_math=False)
    ax.set_ylabel(y, fontsize=9, color=colour("muted"), parse_math=False)
    if title:
        ax.set_title(title, fontsize=10, color=colour("ink"), loc="left", fontweight="bold", parse_math=False)


def legend(ax: Axes, handles: Sequence[Any], names: Sequence[str], **where: Any) -> None:
    """Draw a legend inside the axes, at a place that no curve reaches. Names are shown as they are."""
    _named(ax.legend(handles, ["x"] * len(handles), **_look(), **where), names)


def legend_below(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Draw a legend below the axes of a figure, so that it covers no curve. It has as many columns as fit."""
    letters = figure.get_size_inches()[0] * 14  # of 8.5 pt, rather wide ones
    columns = max(1, min(len(names), int(letters // (max(map(len, names), default=0) + 7))))
    columns = math.ceil(len(names) / math.ceil(len(names) / columns)) if names else 1  # rows of equal length
    spacing: dict[str, Any] = {"handlelength": 2.2, "columnspacing": 1.4, "borderaxespad": 0.3}
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, **spacing}
    _named(figure.legend(handles, ["x"] * len(handles), **_look(), **where), names)


def _look() -> dict[str, Any]:
    return {"fontsize": 8.5, "frameon": False, "labelcolor": colour("ink")}


def _named(drawn: Legend, names: Sequence[str]) -> None:
    # First other labels: matplotlib drops labels that begin with "_" and reads "$" as mathematics.
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(readable(name))


def shortened(name: str, letters: int) -> str:
    """Return a name as it may be shown, cut to a number of letters."""
    name = readable(name)
    return name if len(name) <= letters else name[: letters - 1] + "…"


def in_lines(name: str, letters: int, lines: int = 3) -> str:
    """Break a name such as RoadAccidents into lines: at spaces, and where a small letter comes before a large one.

    Args:
        name: The name.
        letters: Maximum length of a line. Longer words are broken too.
        lines: Maximum number of lines; the rest is cut.
    """
    words = re.sub(r"(?<=[a-z0-9_])(?=[A-Z])", "\n", readable(name)).replace(" ", " \n").split("\n")
    pieces = [word[i : i + letters] for word in words for i in range(0, max(len(word), 1), letters)]
    found = [""]
    for piece in pieces:
        if len(found[-1] + piece.rstrip()) <= letters:
            found[-1] += piece
        else:
            found.append(piece)
    if len(found) > lines:
        found = [*found[: lines - 1], shortened("".join(found[lines - 1 :]), letters)]
    return "\n".join(line.strip() for line in found)


def line_style(model: str, token: str | None = None) -> dict[str, Any]:
    """Return colour, dashes and width of a model's line: always the same for the same name, or those of a token."""
    token = token or token_of(model)
    dashes = _OTHER_DASHES[OTHERS.index(token) % len(_OTHER_DASHES)] if token in OTHERS else _DASHES[token]
    return {"color": colour(token), "linestyle": dashes, "linewidth": 2.2 if model == "fusion" else 1.5}
