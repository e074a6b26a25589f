"""Lines with error bars over the values of hyperparameters, one panel per hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iefvad.report.drawing import colour, label, legend_below, new_figure


@dataclass(frozen=True)
class Line:
    """One line: its name, its palette token, and per value a number and a deviation. NaN: no number."""

    name: str
    token: str
    values: Sequence[float]
    deviations: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One panel: its title, the names of the values on the x axis, and lines."""

    title: str
    values: Sequence[str]
    lines: Sequence[Line]


def sensitivity(panels: Sequence[Panel], axis: str) -> Figure | None:
    """Draw panels side by side that share the y axis.

    Args:
        panels: The panels, each with the same lines.
        axis: Title of the y axis.

    Returns:
        The figure; None without panels.
    """
    if not panels:
        return None
    figure, axes = new_figure(3.0, 1, len(panels))
    handles = {}
    for ax, panel in zip(axes, panels, strict=True):
        ax.axhline(0, color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 3)))
        for line in panel.lines:
            values = np.array(line.values, dtype=float)
            at = np.flatnonzero(~np.isnan(values))  # a value that was not measured does not break the line
            spread = np.array(line.deviations)[at] if len(line.deviations) else None
            style: dict[str, Any] = {"color": colour(line.token), "marker": "o", "markersize": 3.5, "capsize": 2.5}
            dashes = "-" if spread is not None else (0, (4, 2))
            handles[line.name] = ax.errorbar(at, values[at], yerr=spread, linestyle=dashes, linewidth=1.6, **style)
        ax.set_xticks(range(len(panel.values)), panel.values)
        ax.set_xlim(-0.3, len(panel.values) - 0.7)
        label(ax, panel.title, axis if ax is axes[0] else "")
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    legend_below(figure, list(handles.values()), list(handles))
    return figure
