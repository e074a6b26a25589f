"""Figures of the pages: curves, timelines and bars. Each is a matplotlib `Figure`; pyplot is not used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from iefvad.report.drawing import WIDTH, colour, dress, in_lines, label, legend, legend_below, line_style, new_figure
from iefvad.report.style import SERIES, token_of
from iefvad.scoring.metrics import Curves, curves
from iefvad.scoring.seeds import Spread
from iefvad.scoring.tables import class_rows
from iefvad.scoring.video_scores import Interval, VideoScores
from iefvad.utils.advice import score_text
from iefvad.utils.intervals import runs
from iefvad.utils.text import clock
from iefvad.video import SEGMENT

_GRID = np.linspace(0, 1, 401)  # false positive rates or recalls at which curves are averaged
_BANDS = 4  # more bands on top of each other cannot be told apart
_BARS = 45  # bars in one row of half a page
MAX_POINTS = 900  # points of one line; more than the page has pixels
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)


def _stack(heights: Sequence[float], gaps: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Stack panels that share x. Heights and the gaps above the panels are in inches. Margins are always equal."""
    left, right, bottom = 0.6, 0.36, 0.26
    total = sum(heights) + sum(gaps) + bottom
    figure = Figure(figsize=(WIDTH, total), facecolor=colour("card"))
    FigureCanvasAgg(figure)
    axes: list[Axes] = []
    top = total
    for height, gap in zip(heights, gaps, strict=True):
        top -= gap + height
        box = (left / WIDTH, top / total, (WIDTH - left - right) / WIDTH, height / total)
        axes.append(figure.add_axes(box, sharex=axes[0] if axes else None))
        dress(axes[-1])
        axes[-1].yaxis.set_label_coords(-0.045, 0.5)
    for ax in axes[:-1]:
        ax.tick_params(labelbottom=False)
    return figure, axes


def _thin(x: np.ndarray, y: np.ndarray, cells: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Drop each point of a curve in the unit square that falls in the same cell as the point before it."""
    at = np.stack([np.round(x * cells), np.round(y * cells)])
    keep = np.append(True, (np.diff(at) != 0).any(axis=0))
    keep[-1:] = True
    return x[keep], y[keep]


Found = Mapping[str, Sequence[Curves]]
"""Model → curves of each of its seeds."""


def curves_of(scores: Mapping[str, Sequence[Sequence[VideoScores]]]) -> dict[str, list[Curves]]:
    """Compute the curves of each model and seed; models without any are left out.

    Args:
        scores: Model → scores of the test videos of each seed.
    """
    found = {model: [c for videos in seeds if (c := curves(videos)) is not None] for model, seeds in scores.items()}
    return {model: several for model, several in found.items() if several}


def roc(found: Found, tokens: Mapping[str, str] | None = None) -> Figure | None:
    """Draw the ROC curves over frames, one line per model, half a page wide.

    Args:
        found: What `curves_of` returns. Curves of several seeds are averaged at equal false positive rates; a band
            shows their standard deviation, with more than four models only that of the fusion.
        tokens: Palette tokens by name, where the names are not those of models.

    Returns:
        The figure; None without any curve.
    """
    if not found:
        return None
    figure, (ax,) = new_figure(4.8, width=WIDTH / 2)
    ax.plot([0, 1], [0, 1], color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 3)))
    for model in _fusion_last(found):
        style = line_style(model, (tokens or {}).get(model))
        if len(found[model]) == 1:
            ax.plot(*_thin(found[model][0].fpr, found[model][0].tpr), **style, clip_on=False)
        else:
            _band(ax, [np.interp(_GRID, c.fpr, c.tpr) for c in found[model]], style, len(found))
    _curve_legend(figure, found, tokens, "AUC", [[c.auc for c in several] for several in found.values()])
    label(ax, "false positive rate", "true positive rate", "ROC")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return figure


def precision_recall(found: Found, chance: float, tokens: Mapping[str, str] | None = None) -> Figure | None:
    """Draw precision against recall over frames, one line per model, half a page wide.

    Args:
        found: As for `roc`; averaged at equal recall.
        chance: Fraction of abnormal frames.
        tokens: Palette tokens by name, where the names are not those of models.

    Returns:
        The figure; None without any curve.
    """
    if not found:
        return None
    figure, (ax,) = new_figure(4.8, width=WIDTH / 2)
    ax.axhline(chance, color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 3)))
    for model in _fusion_last(found):
        style = line_style(model, (tokens or {}).get(model))
        if len(found[model]) == 1:
            line = _thin(found[model][0].recall, found[model][0].precision)
            ax.plot(*line, drawstyle="steps-pre", **style, clip_on=False)
        else:
            steps = [np.searchsorted(c.recall, _GRID).clip(max=c.recall.size - 1) for c in found[model]]
            _band(ax, [c.precision[at] for c, at in zip(found[model], steps, strict=True)], style, len(found))
    _curve_legend(figure, found, tokens, "AP", [[c.ap for c in several] for several in found.values()])
    label(ax, "recall", "precision", f"Precision and recall (chance {chance:.3f})")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return figure


def _band(ax: Axes, lines: Sequence[np.ndarray], style: dict[str, Any], models: int) -> None:
    mean, std = np.mean(lines, axis=0), np.std(lines, axis=0, ddof=1)
    ax.plot(*_thin(_GRID, mean), **style, clip_on=False)
    if models > _BANDS and style["color"] != colour("fusion"):
        return
    low, high = (mean - std).clip(min=0), (mean + std).clip(max=1)
    ax.fill_between(_GRID[::4], low[::4], high[::4], color=style["color"], alpha=0.12, linewidth=0)


def _curve_legend(
    figure: Figure, found: Found, tokens: Mapping[str, str] | None, what: str, areas: Sequence[Sequence[float]]
) -> None:
    handles = [Line2D([], [], **line_style(m, (tokens or {}).get(m))) for m in found]
    means = [f"{np.mean(v):.3f}" + (f" ± {np.std(v, ddof=1):.3f}" if len(v) > 1 else "") for v in areas]
    legend_below(figure, handles, [f"{m}, {what} {text}" for m, text in zip(found, means, strict=True)])


def _fusion_last(models: Iterable[str]) -> list[str]:
    """Order models for drawing: the fusion lies on top."""
    return sorted(models, key=lambda m: m == "fusion")


def line_points(values: np.ndarray, edges: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a line through the values of a video's segments.

    Args:
        values: One value per segment, (T,).
        edges: Start of each segment and end of the last one in seconds, (T + 1,).
        limit: Maximum number of points.

    Returns:
        x in seconds and y. Up to `limit` / 2 segments are drawn as steps. More are put into `limit` / 2 buckets, each
        of which gives its minimum and its maximum, so that a peak of one segment stays visible.
    """
    total = values.size
    if total * 2 <= limit:
        return np.repeat(edges, 2)[1:-1], np.repeat(values, 2)
    bounds = np.linspace(0, total, limit // 2 + 1).astype(int)
    low, high = np.minimum.reduceat(values, bounds[:-1]), np.maximum.reduceat(values, bounds[:-1])
    centres = (edges[bounds[:-1]] + edges[bounds[1:]]) / 2
    return np.repeat(centres, 2), np.stack([low, high], axis=1).ravel()


def truth_intervals(video: VideoScores) -> list[tuple[float, float]]:
    """Return the abnormal intervals (start, end) of a video's frame truth in seconds; none without truth."""
    if video.truth is None:
        return []
    numbers = SEGMENT * np.arange(video.scores.size + 1)
    return [tuple(np.interp(run, numbers, video.edges).tolist()) for run in runs(video.truth)]


def _shade(ax: Axes, intervals: Sequence[Sequence[float]], token: str, duration: float, height: float = 1.0) -> None:
    least = duration / 800  # one pixel, so that one flagged segment of a whole day stays visible
    spans: list[tuple[float, float]] = []  # start, width; intervals less than a pixel apart are drawn as one
    for start, end, *_ in sorted(map(tuple, intervals)):
        if spans and start - sum(spans[-1]) < least:
            spans[-1] = (spans[-1][0], max(end - spans[-1][0], spans[-1][1]))
        else:
            spans.append((start, max(end - start, least)))
    style: dict[str, Any] = {"facecolor": colour(token), "edgecolor": "none", "zorder": 0.5 if height == 1 else 2.2}
    ax.broken_barh(spans, (0, height), transform=ax.get_xaxis_transform(), **style)


def timeline(
    video: VideoScores,
    others: Mapping[str, VideoScores] | None = None,
    *,
    threshold: float | None = None,
    intervals: Sequence[Interval] | None = None,
    name: str = "fusion",
) -> Figure:
    """Draw the scores of one video over time. Truth and flagged intervals are shaded.

    Panels below show the weights and the gain, where the model has them.

    Args:
        video: Scores of the main model.
        others: Scores of other models on the same video, by model. They are drawn as thin lines.
        threshold: Score at which a segment is flagged; drawn as a dashed line.
        intervals: Flagged intervals, as `intervals_above` returns them.
        name: Name of the main model in the legend.
    """
    others = dict(others or {})
    panels = ["score"] + ["weights"] * (video.w_img is not None or video.w_evt is not None)
    panels += ["gain"] * (video.gain is not None)
    heights = {"score": 1.5, "weights": 0.75, "gain": 0.42}
    gaps = {"score": 0.28, "weights": 0.3, "gain": 0.12}  # room for a legend above the first two
    figure, axes = _stack([heights[p] for p in panels], [gaps[p] for p in panels])
    edges = video.edges
    duration = max(float(edges[-1]), 1e-9)
    truth = truth_intervals(video)
    handles: list[Any] = []
    names: list[str] = []

    def draw(ax: Axes, values: np.ndarray, token: str, model: str, width: float) -> None:
        style: dict[str, Any] = {"color": colour(token), "linewidth": width, "zorder": 3 if model == name else 2.1}
        ax.plot(*line_points(values, edges), **style, clip_on=False)
        handles.append(Line2D([], [], color=colour(token), linewidth=max(width, 1.4)))
        names.append(model)

    score = axes[0]
    for ax in axes:
        _shade(ax, truth, "truth", duration)
    if truth:  # both would cover each other, so flagged intervals become a strip at the foot
        _shade(score, intervals or [], "strip", duration, height=0.06)
    else:
        for ax in axes:
            _shade(ax, intervals or [], "flag", duration)
    dense = video.scores.size * 2 > MAX_POINTS  # the line is then a band between extremes
    draw(score, video.scores, token_of(name) if others or name in SERIES else "fusion", name, 1 if dense else 2)
    for model, other in others.items():
        draw(score, other.scores, token_of(model), model, 0.9)
    shown = [video.scores, *(v.scores for v in others.values())]
    if all(v.size == 0 or (v.min() >= 0 and v.max() <= 1) for v in shown):
        score.set_ylim(0, 1)
    if threshold is not None:
        line: dict[str, Any] = {"color": colour("alert"), "linewidth": 1.1, "linestyle": (0, (4, 2))}
        score.axhline(threshold, zorder=2.5, **line)
        handles.append(Line2D([], [], **line))
        names.append(f"threshold {score_text(threshold)}")
    for present, token, what in (
        (intervals, "strip" if truth else "flag", "flagged"),
        (truth, "truth", "abnormal (truth)"),
    ):
        if present:
            handles.append(Patch(facecolor=colour(token), edgecolor="none"))
            names.append(what)
    where = {"loc": "lower left", "ncols": 7, "borderaxespad": 0.2, "handlelength": 1.6, "columnspacing": 1.4}
    legend(score, handles, names, bbox_to_anchor=(0, 1), **where)
    label(score, y="score")
    if "weights" in panels:
        _weight_panel(axes[1], video, where)
    if "gain" in panels and video.gain is not None:
        axes[-1].plot(*line_points(video.gain, edges), color=colour("other0"), linewidth=1.2)
        axes[-1].set_ylim(0, max(1.0, float(video.gain.max(initial=0))) * 1.04)
        axes[-1].yaxis.set_major_locator(MaxNLocator(2))
        label(axes[-1], y="gain")
    _time_axis(axes[-1], duration)
    return figure


def _weight_panel(ax: Axes, video: VideoScores, where: dict[str, Any]) -> None:
    lines = [
        (w, t, n) for w, t, n in ((video.w_img, "image", "w_img"), (video.w_evt, "event", "w_evt")) if w is not None
    ]
    for values, token, _ in lines:
        ax.plot(*line_points(values, video.edges), color=colour(token), linewidth=1.4)
    pooled = np.concatenate([values for values, _, _ in lines])
    if pooled.size:
        # Weights move by hundredths around a half: zoom in, but never so far that noise looks like a decision.
        low, high = float(pooled.min()), float(pooled.max())
        middle, half = (low + high) / 2, max((high - low) / 2 * 1.12, 0.02)
        ax.set_ylim(middle - half, middle + half)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    handles = [Line2D([], [], color=colour(token), linewidth=1.4) for _, token, _ in lines]
    legend(ax, handles, [n for _, _, n in lines], bbox_to_anchor=(0, 1), **where)
    label(ax, y="weight")


def _time_axis(ax: Axes, duration: float) -> None:
    ax.set_xlim(0, duration)
    step = next((s for s in _TICKS if duration / s <= 9), _TICKS[-1] * max(1, int(duration / _TICKS[-1] / 8)))
    if duration < 4:  # whole seconds would leave an axis of one label
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x, 1)))
        return
    ax.xaxis.set_major_locator(MultipleLocator(step))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x)))


def class_bars(
    metrics: Mapping[str, Mapping[str, Any]], key: str = "auc", *, tokens: Mapping[str, str] | None = None
) -> Figure | None:
    """Draw bars of "auc" or "ap" per anomaly class, one colour per model, half a page wide.

    Many bars are divided among several rows. With several seeds a bar is their mean, and a line shows its deviation.

    Args:
        metrics: Model → its object of metrics.json, or what `metrics.evaluate` returns.
        key: "auc" or "ap".
        tokens: Palette tokens by name, where the names are not those of models.

    Returns:
        The figure; None where no value is defined.
    """
    rows = class_rows(metrics, key)
    models = [m for m in metrics if any(row.get(m) is not None for row in rows)]
    if not models:
        return None
    colours = {m: line_style(m, (tokens or {}).get(m))["color"] for m in models}
    lines = math.ceil(len(rows) / max(1, min(7, _BARS // len(models))))
    each = math.ceil(len(rows) / lines)
    figure, axes = new_figure(max(4.6, 1.75 * lines + 0.4), lines, width=WIDTH / 2)
    for number, ax in enumerate(axes):
        _class_axes(ax, rows[number * each : (number + 1) * each], colours, each)
        if key == "auc":
            ax.axhline(0.5, color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 3)), zorder=3)
        label(ax, y=key.upper())
    legend_below(figure, [Patch(facecolor=each) for each in colours.values()], models)
    return figure


def _class_axes(ax: Axes, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str], places: int) -> None:
    width = 0.84 / len(colours)
    for i, model in enumerate(colours):
        values = [np.nan if row.get(model) is None else float(row[model]) for row in rows]
        spread = [found.std or 0.0 if isinstance(found := row.get(model), Spread) else 0.0 for row in rows]
        at = np.arange(len(rows)) - 0.42 + (i + 0.5) * width
        ax.bar(at, values, width * 0.9, color=colours[model], zorder=2)
        if any(spread):
            upper = np.minimum(spread, 1 - np.nan_to_num(values))  # nothing reaches beyond 1
            ax.errorbar(at, values, [spread, upper], fmt="none", ecolor=colour("ink"), elinewidth=0.8, zorder=3)
    ax.set(ylim=(0, 1), xlim=(-0.6, places - 0.4))
    ax.grid(False, axis="x")
    letters = max(4, 56 // places)  # of a line that leaves room for the next label
    names = [f"{in_lines(row['class'], letters)}\n({row['videos']})" for row in rows]
    ax.set_xticks(range(len(rows)), names)
    for text in ax.get_xticklabels():
        text.set_parse_math(False)
        text.set_color(colour("ink"))


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw loss, classification loss and validation metric by epoch, one line per model. None where there are none.

    Args:
        history: Rows of log.jsonl (model, seed, epoch, loss, loss_cls, val_*). Over several seeds the mean is drawn,
            and a band from the lowest to the highest value.
    """
    keys = list(dict.fromkeys(k for row in history for k in row))
    validation = [k for k in keys if k.startswith("val")]
    wanted = [("loss", "total loss"), ("loss_cls", "classification loss")]
    wanted += [(k, k.replace("val_", "validation ").replace("auc", "AUC").replace("ap", "AP")) for k in validation[:1]]
    models = list(dict.fromkeys(str(row.get("model", "fusion")) for row in history))
    series: dict[tuple[str, str], dict[float, list[float]]] = {}
    for row in history:
        for key, _ in wanted:
            value, epoch = row.get(key), row.get("epoch")
            numeric = isinstance(value, (int, float)) and isinstance(epoch, (int, float)) and np.isfinite(value)
            if numeric and value is not None and epoch is not None:
                by_epoch = series.setdefault((key, str(row.get("model", "fusion"))), {})
                by_epoch.setdefault(float(epoch), []).append(float(value))
    panels = [(key, title) for key, title in wanted if any(k == key for k, _ in series)]
    if not panels:
        return None
    figure, axes = new_figure(3.2, 1, len(panels))
    for ax, (key, title) in zip(axes, panels, strict=True):
        for model in models:
            _by_epoch(ax, series.get((key, model), {}), model)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if key.startswith("val"):
            _end_at_one(ax)
        label(ax, "epoch", "", title)
    handles = [Line2D([], [], **line_style(m)) for m in models]
    legend_below(figure, handles, models)
    return figure


def _end_at_one(ax: Axes) -> None:
    """End an axis of a metric at 1 where the margin would go beyond."""
    ax.set_ylim(top=min(ax.get_ylim()[1], 1.0))


def _by_epoch(ax: Axes, values: Mapping[float, Sequence[float]], model: str) -> None:
    """Draw the mean of values by epoch, and a band from the lowest to the highest."""
    if not values:
        return
    epochs = sorted(values)
    mark = "o" if len(epochs) <= 40 else ""
    ax.plot(epochs, [float(np.mean(values[e])) for e in epochs], **line_style(model), marker=mark, markersize=3)
    if any(len(several) > 1 for several in values.values()):
        low, high = [min(values[e]) for e in epochs], [max(values[e]) for e in epochs]
        ax.fill_between(epochs, low, high, color=line_style(model)["color"], alpha=0.12, linewidth=0)


def learned_curves(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw learned q, ν and weights of the loss by epoch. None where nothing is learned.

    Args:
        history: Rows of log.jsonl (model, seed, epoch, q_mean, q_min, q_max, nu_image, ..., weight_cls, ...). The lines
            are means over the seeds. The band of q goes from its lowest to its highest dimension in any seed, those of
            the others from the lowest to the highest seed.
    """
    wanted = {"q_mean": "process noise q", "nu_image": "ν, image", "nu_event": "ν, event"}
    wanted |= {f"weight_{name}": f"loss weight, {name}" for name in ("cls", "kl", "cos", "norm")}
    panels = [key for key in wanted if any(key in row for row in history)]
    if not panels:
        return None
    learning = [row for row in history if any(key in row for key in panels)]
    models = list(dict.fromkeys(str(row["model"]) for row in learning))
    columns = max(3, len(panels))  # the page stretches a figure to its width: a single panel would be a poster
    figure, axes = new_figure(3.2, 1, columns, width=WIDTH * columns / 3)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, key in zip(axes, panels, strict=False):
        for model in models:
            values: dict[float, list[float]] = {}
            for row in learning:
                if row["model"] == model and key in row:
                    values.setdefault(float(row["epoch"]), []).append(float(row[key]))
            bounds: dict[float, list[float]] = {}
            for row in learning:
                if row["model"] == model and key in row and key == "q_mean":
                    bounds.setdefault(float(row["epoch"]), []).extend((float(row["q_min"]), float(row["q_max"])))
            epochs = sorted(values)
            ax.plot(epochs, [float(np.mean(values[e])) for e in epochs], **line_style(model))
            band = bounds or values
            low, high = [min(band[e]) for e in epochs], [max(band[e]) for e in epochs]
            ax.fill_between(epochs, low, high, color=line_style(model)["color"], alpha=0.12, linewidth=0)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        label(ax, "epoch", "", wanted[key])
    legend_below(figure, [Line2D([], [], **line_style(m)) for m in models], models)
    return figure


def robustness(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw AUC, Brier score, KL and the shift of the weights against the damaged fraction (paper, Appendix H).

    Args:
        rows: Rows of `robustness.robustness`. A row of ratio 0 is the common start of both lines.

    Returns:
        The figure, with a band of a standard deviation on both sides where there are several draws or seeds; None
        without rows.
    """
    masked = [m for m in ("image", "event") if any(row["masked"] == m for row in rows)]
    area = ("auc", "AUC") if any(row.get("auc") is not None for row in rows) else ("ap", "AP")
    wanted = [area, ("brier", "Brier score"), ("kl", "KL(clean || damaged), nats")]
    wanted.append(("shift", "weight of the damaged stream, less clean"))
    panels = [(key, title) for key, title in wanted if any(row.get(key) is not None for row in rows)]
    if not masked or not panels:
        return None
    lines = (len(panels) + 1) // 2
    figure, axes = new_figure(2.7 * lines, lines, min(2, len(panels)))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    what = "time steps" if rows[-1].get("damage") == "segments" else "feature dimensions"
    for ax, (key, title) in zip(axes, panels, strict=False):
        for name in masked:
            own = [row for row in rows if row.get(key) is not None and row["masked"] in (name, "none")]
            own.sort(key=lambda row: float(row["ratio"]))
            ratios, means = [row["ratio"] for row in own], np.array([float(row[key]) for row in own])
            if key == "shift":
                ratios, means = [0.0, *ratios], np.append(0.0, means)
            spread = np.array([row.get("std", {}).get(key) or 0.0 for row in own])
            spread = np.append(np.zeros(len(means) - len(own)), spread)
            ax.plot(ratios, means, **line_style(name), marker="o", markersize=3.5)
            if spread.any():
                low, high = means - spread, means + spread
                ax.fill_between(ratios, low, high, color=colour(token_of(name)), alpha=0.14, linewidth=0)
        if key in ("auc", "ap"):
            _end_at_one(ax)
        if key == "shift":
            ax.axhline(0, color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 3)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
        label(ax, f"damaged {what}", "", title)
    handles = [Line2D([], [], **line_style(m), marker="o", markersize=3.5) for m in masked]
    legend_below(figure, handles, [f"{m} damaged" for m in masked])
    return figure
