"""A video's scores as one small inline SVG that needs no plotting library, no style sheet and no theme."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from iefvad.scoring.video_scores import Interval, VideoScores
from iefvad.utils.text import readable

_WIDTH, _HEIGHT = 600, 48
_POINTS = 300  # columns of a long video; each shows its lowest and its highest score

# Middle tones that can be seen on white and on black. A page of this package has its own colours for both.
_LINE, _FLAG, _LEVEL = "var(--fusion, #2389c9)", "var(--strip, #e5862f)", "var(--alert, #d9534f)"


def strip(video: VideoScores, intervals: Sequence[Interval], threshold: float, label: str = "") -> Markup:
    """Draw the scores of a video over time, from 0 to 1, with its flagged intervals and the threshold.

    Args:
        video: Scores of any number of segments.
        intervals: Flagged intervals.
        threshold: Score at which a segment is flagged.
        label: What a screen reader says, as plain text; by default the name of the video.

    Returns:
        An <svg> element as wide as its place. It has no ids, so that any number of them fit on a page.
    """
    end = max(float(video.edges[-1]), 1e-9)
    parts = [
        Markup('<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}"').format(
            _WIDTH, _HEIGHT, readable(label or f"Scores of {video.name} over time")
        ),
        Markup(' style="display:block;width:100%;height:48px">'),
    ]
    for start, stop in _spans(intervals, end):
        parts.append(
            Markup('<rect x="{:.1f}" y="0" width="{:.1f}" height="{}" style="fill:{};fill-opacity:.45"/>').format(
                start, stop - start, _HEIGHT, _FLAG
            )
        )
    parts.append(_line(f"M0 {_HEIGHT - 0.5}H{_WIDTH}", "currentColor", "stroke-opacity:.3"))
    if video.scores.size:
        points = zip(*_points(video, end), strict=True)
        parts.append(_line("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points), _LINE, "stroke-width:1.5"))
    if 0 <= threshold <= 1:
        parts.append(_line(f"M0 {_height(threshold):.1f}H{_WIDTH}", _LEVEL, "stroke-dasharray:5 4"))
    return Markup("").join([*parts, Markup("</svg>")])


def _line(path: str, colour: str, style: str) -> Markup:
    return Markup('<path d="{}" vector-effect="non-scaling-stroke" style="fill:none;stroke:{};{}"/>').format(
        path, colour, style
    )


def _height(score: float) -> float:
    return float(_HEIGHT - 1 - (_HEIGHT - 2) * min(max(score, 0.0), 1.0))


def _spans(intervals: Sequence[Interval], end: float) -> list[tuple[float, float]]:
    """Intervals on the x axis, each at least two units wide; those that touch are one."""
    found: list[tuple[float, float]] = []
    for start, stop, _ in sorted(intervals):
        left = min(_WIDTH * start / end, _WIDTH - 2.0)
        right = min(max(_WIDTH * stop / end, left + 2.0), float(_WIDTH))
        if found and left <= found[-1][1]:
            found[-1] = (found[-1][0], max(right, found[-1][1]))
        else:
            found.append((left, right))
    return found


def _points(video: VideoScores, end: float) -> tuple[list[float], list[float]]:
    values, edges = video.scores, video.edges
    if values.size <= _POINTS:  # steps
        xs, ys = np.repeat(edges, 2)[1:-1], np.repeat(values, 2)
    else:
        bounds = np.linspace(0, values.size, _POINTS + 1).astype(int)[:-1]
        xs = np.repeat(edges[bounds], 2)
        ys = np.stack([np.minimum.reduceat(values, bounds), np.maximum.reduceat(values, bounds)], axis=1).ravel()
    return (_WIDTH * xs / end).tolist(), [_height(float(value)) for value in ys]
