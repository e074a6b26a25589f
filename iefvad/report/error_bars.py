"""Means with error bars over the values of a setting, one panel per metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iefvad.report.drawing import WIDTH, colour, label, new_figure
from iefvad.utils.text import readable


@dataclass(frozen=True)
class Panel:
    """One metric over the values of a setting.

    Attributes:
        title: Name of the metric.
        samples: Value → results of all replicates, in the order of the axis.
        base: The value whose mean is drawn as a dashed line; None for none.
    """

    title: str
    samples: Mapping[str, Sequence[float]]
    base: str | None = None


def error_bars(panels: Sequence[Panel], axis: str) -> Figure | None:
    """Draw mean ± standard deviation of each value, and every replicate as a dot.

    Args:
        panels: The panels; those without results are left out.
        axis: Title of the x axis.

    Returns:
        The figure; None without results.
    """
    panels = [panel for panel in panels if any(panel.samples.values())]
    if not panels:
        return None
    crowded = max(len(panel.samples) for panel in panels) > 12
    rows, columns = (len(panels), 1) if crowded else (1, len(panels))
    figure, axes = new_figure(2.9 * rows, rows, columns, width=WIDTH if crowded or len(panels) > 1 else WIDTH / 2)
    for ax, panel in zip(axes, panels, strict=True):
        if panel.base is not None and panel.samples.get(panel.base):
            mean = float(np.mean(panel.samples[panel.base]))
            ax.axhline(mean, color=colour("muted"), linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for place, results in enumerate(panel.samples.values()):
            if not len(results):
                continue
            spread = np.linspace(-0.12, 0.12, len(results)) if len(results) > 1 else [0.0]
            ax.plot(place + np.array(spread), results, "o", color=colour("other1"), markersize=2.6, alpha=0.6, zorder=2)
            deviation = float(np.std(results, ddof=1)) if len(results) > 1 else None
            style: dict[str, Any] = {
                "color": colour("fusion"),
                "markersize": 5,
                "capsize": 3.5,
                "linewidth": 1.5,
                "zorder": 3,
            }
            ax.errorbar(place, float(np.mean(results)), yerr=deviation, fmt="o", **style)
        names = [readable(name) for name in panel.samples]
        slanted = sum(map(len, names)) * columns > 60
        ax.set_xticks(range(len(names)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
        for text in ax.get_xticklabels():
            text.set_parse_math(False)
        ax.set_xlim(-0.5, len(names) - 0.5)
        ax.grid(False, axis="x")
        label(ax, axis, "", panel.title)
    return figure
