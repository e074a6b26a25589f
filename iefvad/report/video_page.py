"""The page `detect` writes for one video: timeline, flagged intervals, thumbnails of the highest segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from iefvad.report import page as html
from iefvad.report import plots
from iefvad.report.images import data_uri
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.files import write_text
from iefvad.video import SEGMENT

_LISTED = 200  # flagged intervals in the table; the CSV has every segment
_THUMB_WIDTH = 320


def write_timeline(
    path: str | Path,
    *,
    title: str,
    video: VideoScores,
    intervals: Sequence[tuple[float, float, float]],
    threshold: float,
    thumbnails: Sequence[tuple[float, np.ndarray]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write one video's scores as a self-contained HTML page.

    intervals: flagged (start s, end s, peak), as from intervals_above. thumbnails: (time s, RGB uint8 (H, W, 3)) of the
    segments to show, in the order given. Any number of segments, none included. All text is escaped.
    Raises UserError where the file cannot be written.
    """
    sections = [("timeline", "Timeline", _timeline(video, intervals, threshold, notes))]
    if video.scores.size:
        sections.append(("intervals", "Flagged intervals", _intervals(intervals, threshold)))
    if thumbnails:
        sections.append(("moments", "Highest segments", _thumbnails(video, thumbnails)))
    page = html.page(
        title, "Anomaly scores of a video", _lead(video, intervals), sections, top=_tiles(video, intervals)
    )
    write_text(Path(path), page)


def _peak(video: VideoScores) -> tuple[float, float]:
    at = int(video.scores.argmax())
    return float(video.scores[at]), SEGMENT * at / video.fps


def _lead(video: VideoScores, intervals: Sequence[tuple[float, float, float]]) -> str:
    if not video.scores.size:
        return f"{video.name} is shorter than one segment of {SEGMENT} frames, so it has no score."
    peak, at = _peak(video)
    count = len(intervals)
    flagged = {0: "Nothing is flagged", 1: "1 interval is flagged"}.get(count, f"{count} intervals are flagged")
    length = plots.spoken(video.seconds)
    return f"{flagged} in {length} of {video.name}; the score peaks at {peak:.2f}, at {plots.clock(at)}."


def _tiles(video: VideoScores, intervals: Sequence[tuple[float, float, float]]) -> str:
    values = [
        (plots.clock(video.seconds), f"scored, {video.scores.size} segments"),
        (str(len(intervals)), "flagged intervals"),
    ]
    if video.scores.size:
        share = sum(end - start for start, end, _ in intervals) / video.seconds
        peak, at = _peak(video)
        values += [(f"{share:.1%}", "of the time flagged"), (f"{peak:.2f}", f"peak score, at {plots.clock(at)}")]
    return html.tiles(values)


def _timeline(
    video: VideoScores, intervals: Sequence[tuple[float, float, float]], threshold: float, notes: Sequence[str]
) -> str:
    body = ""
    if video.scores.size:
        plot = plots.timeline(video, threshold=threshold, intervals=intervals, name="score")
        body = html.figure(plot, f"Anomaly score of {video.name} over time", "line")
    sub = "One score for each 16 frames."
    if video.scores.size * 2 > plots.MAX_POINTS:
        sub += " The line shows the lowest and highest score of each stretch of the long video."
    if video.w_img is not None:
        sub += " Below: how the fusion divides its trust between image and event features."
    return html.section("Timeline", "timeline", body, html.bullets(notes), sub=sub)


def _intervals(intervals: Sequence[tuple[float, float, float]], threshold: float) -> str:
    if not intervals:
        text = f"No score reaches the threshold of {threshold:.3g}."
        return html.section("Flagged intervals", "intervals", html.element("p", text))
    # The peaks matter when not all fit; what is shown stays in order of time.
    listed = sorted(sorted(intervals, key=lambda i: -i[2])[:_LISTED])
    rows = [
        {
            "no.": str(n),
            "start": plots.clock(start, 1),
            "end": plots.clock(end, 1),
            "length, s": f"{end - start:.1f}",
            "peak score": float(peak),
        }
        for n, (start, end, peak) in enumerate(listed, start=1)
    ]
    sub = f"Threshold {threshold:.3g}."
    if len(intervals) > len(listed):
        sub += f" The {len(listed)} of the highest peaks out of {len(intervals)}; the CSV file holds every segment."
    return html.section("Flagged intervals", "intervals", html.table(rows), sub=sub)


def _thumbnails(video: VideoScores, thumbnails: Sequence[tuple[float, np.ndarray]]) -> str:
    cards = []
    for time, image in thumbnails:
        segment = min(max(int(time * video.fps / SEGMENT + 1e-6), 0), max(video.scores.size - 1, 0))
        score = f", score {video.scores[segment]:.3f}" if video.scores.size else ""
        text = html.escape(f"{plots.clock(time, 1)}{score}")
        source = data_uri(_jpeg(image), "image/jpeg")
        cards.append(f'<figure><img src="{source}" alt="Frame at {text}"><figcaption>{text}</figcaption></figure>')
    return html.section("Highest segments", "moments", f'<div class="thumbs">{"".join(cards)}</div>')


def _jpeg(image: np.ndarray) -> bytes:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a thumbnail must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    if width > _THUMB_WIDTH:
        size = (_THUMB_WIDTH, max(1, round(height * _THUMB_WIDTH / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise ValueError("the thumbnail could not be encoded")
    return data.tobytes()
