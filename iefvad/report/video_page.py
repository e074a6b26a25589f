"""The page that detection writes for one video: timeline, flagged intervals, pictures of the highest segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iefvad.report import plots
from iefvad.report.images import data_uri, inline_svg
from iefvad.report.index_page import moment
from iefvad.report.page import Link, Table, table, write_page
from iefvad.report.pictures import jpeg
from iefvad.scoring.video_scores import Interval, VideoScores
from iefvad.utils.advice import Advice, score_text
from iefvad.utils.text import clock, duration
from iefvad.video import SEGMENT

_LISTED = 200  # flagged intervals in the table; the CSV has every segment


def write_timeline(
    path: str | Path,
    *,
    title: str,
    video: VideoScores,
    intervals: Sequence[Interval],
    threshold: float,
    thumbnails: Sequence[tuple[float, np.ndarray]] = (),
    notes: Sequence[str] = (),
    address: str | None = None,
    warnings: Sequence[Advice] = (),
) -> None:
    """Write one video's scores as a self-contained HTML page. All text is escaped.

    Args:
        path: The HTML file.
        title: Title of the page.
        video: Scores of any number of segments, including none.
        intervals: Flagged intervals, as `intervals_above` returns them.
        threshold: Score at which a segment is flagged.
        thumbnails: Pictures of segments, in the order in which they are shown: time in seconds, uint8 RGB (H, W, 3).
        notes: Remarks below the timeline.
        address: Address of the video file, relative to the page and percent-encoded. Times and pictures are then links
            to these moments of it.
        warnings: Warnings at the top.

    Raises:
        UserError: the file cannot be written.
        ValueError: a thumbnail has another dtype or shape.
    """
    plot = None
    if video.scores.size:
        figure = plots.timeline(video, threshold=threshold, intervals=intervals, name="score")
        plot = inline_svg(figure, f"Anomaly score of {video.name} over time", "line")
    # Where not all intervals fit, those of the highest peaks are listed, in order of time.
    listed = sorted(sorted(intervals, key=lambda i: -i[2])[:_LISTED])
    write_page(
        path,
        "video.html",
        title=title,
        lead=_lead(video, intervals),
        tiles=_tiles(video, intervals),
        segments=video.scores.size,
        plot=plot,
        explanation=_explanation(video),
        notes=notes,
        warnings=warnings,
        intervals=_table(listed, address),
        selection=_selection(threshold, len(listed), len(intervals)),
        threshold=score_text(threshold),
        thumbnails=[
            (data_uri(jpeg(image), "image/jpeg"), _caption(video, time), moment(address, time))
            for time, image in thumbnails
        ],
    )


def _lead(video: VideoScores, intervals: Sequence[Interval]) -> str:
    if not video.scores.size:
        return f"{video.name} is shorter than one segment of {SEGMENT} frames, so it has no score."
    peak, at = video.peak
    count = len(intervals)
    flagged = {0: "Nothing is flagged", 1: "1 interval is flagged"}.get(count, f"{count} intervals are flagged")
    return f"{flagged} in {duration(video.seconds)} of {video.name}; the score peaks at {peak:.2f}, at {clock(at)}."


def _tiles(video: VideoScores, intervals: Sequence[Interval]) -> list[tuple[str, str]]:
    values = [
        (clock(video.seconds), f"scored, {video.scores.size} segments"),
        (str(len(intervals)), "flagged intervals"),
    ]
    if video.scores.size:
        fraction = sum(end - start for start, end, _ in intervals) / video.seconds
        peak, at = video.peak
        values += [(f"{fraction:.1%}", "of the time flagged"), (f"{peak:.2f}", f"peak score, at {clock(at)}")]
    return values


def _explanation(video: VideoScores) -> str:
    text = f"One score for each {SEGMENT} frames."
    if video.scores.size * 2 > plots.MAX_POINTS:
        text += " The line shows the lowest and the highest score of each stretch of the long video."
    if video.w_img is not None:
        text += " Below: how the fusion divides its trust between image and event features."
    return text


def _selection(threshold: float, listed: int, total: int) -> str:
    text = f"Threshold {score_text(threshold)}."
    if total > listed:
        text += f" The {listed} of the highest peaks out of {total}; the CSV file has every segment."
    return text


def _table(intervals: Sequence[Interval], address: str | None) -> Table:
    return table(
        [
            {
                "no.": str(number),
                "start": Link(clock(start, 1), moment(address, start) or ""),
                "end": clock(end, 1),
                "length, s": f"{end - start:.1f}",
                "peak score": float(peak),
            }
            for number, (start, end, peak) in enumerate(intervals, start=1)
        ]
    )


def _caption(video: VideoScores, time: float) -> str:
    if not video.scores.size:
        return clock(time, 1)
    # A little is added, because a segment's start may be rounded down.
    segment = max(int(np.searchsorted(video.starts, time + 1e-6, side="right")) - 1, 0)
    return f"{clock(time, 1)}, score {video.scores[segment]:.3f}"
