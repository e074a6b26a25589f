"""Shift of the image weight of each dimension when one modality is masked, as in Figure 3 of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from iefvad.report.drawing import colour, label, legend_below, new_figure

_TOKENS = ("fusion", "image", "event", "other0", "other3")


def shift_plot(shifts: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw one panel per masked modality and one line per ratio over the dimensions.

    Args:
        shifts: Masked modality → ratio → one number per dimension, as `scoring.shifts.shifts` returns it.
    """
    figure, axes = new_figure(2.1 * len(shifts), len(shifts), 1)
    ratios = sorted({ratio for found in shifts.values() for ratio in found}, key=float)
    for ax, (masked, found) in zip(axes, shifts.items(), strict=True):
        ax.axhline(0, color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 3)))
        for number, ratio in enumerate(reversed(ratios)):  # the largest lies below the others
            if ratio in found:
                token = _TOKENS[(len(ratios) - 1 - number) % len(_TOKENS)]
                ax.plot(found[ratio], color=colour(token), linewidth=0.8)
        ax.margins(x=0.005)
        label(ax, "dimension" if ax is axes[-1] else "", "Δw", f"{masked} masked")
    handles = [Line2D([], [], color=colour(_TOKENS[i % len(_TOKENS)])) for i in range(len(ratios))]
    legend_below(figure, handles, [f"{float(ratio):.0%} of the dimensions" for ratio in ratios])
    return figure
