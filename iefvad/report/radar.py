"""Radar plot of a metric per anomaly class, as in Figure 2 of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import MultipleLocator

from iefvad.report.drawing import WIDTH, colour, legend_below, line_style, shortened
from iefvad.scoring.tables import class_rows

_LEAST = 3  # classes; fewer have no area


def radar(
    metrics: Mapping[str, Mapping[str, Any]], key: str = "auc", *, tokens: Mapping[str, str] | None = None
) -> Figure | None:
    """Draw the classes around a circle and one closed line per model, half a page wide. The rim is 1.

    Args:
        metrics: Model → what `metrics.evaluate` returns; with several seeds, their means are drawn.
        key: "auc" or "ap".
        tokens: Palette tokens by name, where the names are not those of models.

    Returns:
        The figure; None with fewer than three classes that have a value.
    """
    rows = [row for row in class_rows(metrics, key) if any(row[model] is not None for model in metrics)]
    models = [model for model in metrics if any(row[model] is not None for row in rows)]
    if len(rows) < _LEAST:
        return None
    style = {model: line_style(model, (tokens or {}).get(model)) for model in models}
    angles = 2 * np.pi * np.arange(len(rows)) / len(rows)
    values = {m: np.array([np.nan if row[m] is None else float(row[m]) for row in rows]) for m in models}
    figure = Figure(figsize=(WIDTH / 2, 4.8), facecolor=colour("card"))
    figure.set_layout_engine("constrained", rect=(0.04, 0, 0.92, 1))  # it makes too little room for names at the sides
    FigureCanvasAgg(figure)
    ax = figure.add_subplot(projection="polar")
    assert isinstance(ax, PolarAxes)
    _circle(ax, float(min(np.nanmin(v) for v in values.values())))
    _names(
        ax,
        angles,
        [f"{shortened(row['class'], 22)} ({row['videos']})" for row in rows],
    )
    around = np.append(angles, 2 * np.pi)
    if key == "auc" and ax.get_ylim()[0] < 0.5:
        chance: dict[str, Any] = {"color": colour("muted"), "linewidth": 0.9, "linestyle": (0, (2, 3))}
        ax.plot(np.linspace(0, 2 * np.pi, 181), np.full(181, 0.5), **chance)
    for model in sorted(models, key=lambda m: m == "fusion"):  # the fusion lies on top
        closed = np.append(values[model], values[model][0])
        ax.plot(around, closed, **style[model], marker="o", markersize=2.5, clip_on=False)
        if model == "fusion":
            ax.fill(around, np.nan_to_num(closed, nan=ax.get_ylim()[0]), color=style[model]["color"], alpha=0.08)
    legend_below(figure, [Line2D([], [], **style[m]) for m in models], models)
    return figure


def _circle(ax: PolarAxes, least: float) -> None:
    """Set the radius: it ends at 1 and starts below the least value, at a multiple of 0.1."""
    start = max(0.0, np.floor((least - 0.05) * 10) / 10)
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    ax.set_ylim(start, 1)
    ax.yaxis.set_major_locator(MultipleLocator(0.1 if start >= 0.5 else 0.2))
    ax.set_facecolor(colour("card"))
    ax.grid(True, color=colour("grid"), linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines["polar"].set_color(colour("grid"))


def _names(ax: PolarAxes, angles: np.ndarray, names: list[str]) -> None:
    """Write each class outside the circle, aligned so that no name lies on the circle."""
    ax.set_xticks(angles, names)
    ax.set_rlabel_position(float(np.degrees(angles[1] / 2)))  # between two classes
    ax.tick_params(axis="y", colors=colour("muted"), labelsize=7.5)
    ax.tick_params(axis="x", labelsize=8, pad=-1)
    for angle, text in zip(angles, ax.get_xticklabels(), strict=True):
        side = np.sin(angle)  # clockwise from the top
        text.set_horizontalalignment("center" if abs(side) < 0.2 else "left" if side > 0 else "right")
        text.set_verticalalignment("center" if abs(side) > 0.35 else "bottom" if np.cos(angle) > 0 else "top")
        text.set_parse_math(False)
        text.set_color(colour("ink"))
