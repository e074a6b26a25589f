"""Reliability diagram: how often frames of about the same score are abnormal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from iefvad.report.drawing import colour, label, legend_below, line_style, new_figure
from iefvad.scoring.metrics import reliability
from iefvad.scoring.video_scores import VideoScores


def reliability_diagram(models: Mapping[str, Sequence[VideoScores]]) -> Figure | None:
    """Draw the fraction of abnormal frames against the score, and the fraction of frames with this score.

    Args:
        models: Model → scores of the test videos.

    Returns:
        The figure, as wide as the page. None where no model has scores in [0, 1] and truth.
    """
    found = {model: bins for model, videos in models.items() if (bins := reliability(videos)) is not None}
    if not found:
        return None
    figure, (left, right) = new_figure(4.6, 1, 2)
    left.plot([0, 1], [0, 1], color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 3)))
    for model in sorted(found, key=lambda name: name == "fusion"):  # the fusion on top
        bins = found[model]
        share = bins.frames / bins.frames.sum()
        style = line_style(model)
        # Bins of few frames jump, so a point is as large as its bin, and the lines stay in the background.
        left.plot(bins.score, bins.abnormal, **{**style, "linewidth": 1.0}, alpha=0.45)
        left.scatter(bins.score, bins.abnormal, 6 + 300 * share, color=style["color"], linewidths=0, clip_on=False)
        right.plot(bins.score, share, **style, marker="o", markersize=3.5, clip_on=False)
    label(left, "mean score of the bin", "fraction of abnormal frames", "Reliability")
    label(right, "mean score of the bin", "fraction of all frames", "Where the scores lie")
    left.set(xlim=(0, 1), ylim=(0, 1))
    right.set(xlim=(0, 1), yscale="log")
    right.set_ylim(top=1)
    right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
    handles = [Line2D([], [], **line_style(model), marker="o", markersize=3.5) for model in found]
    legend_below(figure, handles, [f"{model}, ECE {bins.ece:.3f}" for model, bins in found.items()])
    return figure
