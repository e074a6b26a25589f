"""The overlay video: a red frame where the video is flagged; below it a bar and the curve of the recent scores."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from iefvad.scoring.video_scores import Interval, VideoScores
from iefvad.utils.files import write_with
from iefvad.utils.text import clock
from iefvad.video import SEGMENT, timed_frames
from iefvad.video.limits import MAX_PIXELS

_LEAST_WIDTH = 480  # smaller pictures are enlarged by a whole factor, so that the text can be read
_MOST_PIXELS = 1 << 23  # of a picture that is enlarged
_TICK = Fraction(1, 60_000)  # seconds; MPEG-4 allows no finer one that fits 24, 25, 30 and 29.97 frames/s
_SPAN = 30.0  # seconds of the curve
_PAPER, _INK, _DIM, _FAINT = (24, 26, 31), (235, 236, 240), (160, 166, 178), (92, 98, 110)
_LINE, _ALERT = (96, 165, 250), (239, 68, 68)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_overlay(
    path: Path,
    video: Path,
    scores: VideoScores,
    intervals: list[Interval],
    threshold: float,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write an MP4 of the whole video with its times, without sound. It is decoded again, frame by frame.

    The codec is H.264, or MPEG-4 where FFmpeg lacks libx264. The file appears complete or not at all.

    Args:
        path: The MP4 file.
        video: The video file.
        scores: Its scores.
        intervals: Its flagged intervals.
        threshold: Score at which a segment is flagged.
        max_pixels: Maximum number of pixels per frame of the video.

    Raises:
        UserError: the video cannot be read, or the file cannot be written.
    """
    write_with(path, lambda temporary: _encode(temporary, video, _Painter(scores, intervals, threshold), max_pixels))


def _encode(path: Path, video: Path, painter: _Painter, max_pixels: int) -> None:
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w", format="mp4") as container:
        quality: dict[str, object] = (
            {"preset": "veryfast", "crf": "23"} if codec == "libx264" else {"qmin": "2", "qmax": "5"}
        )
        rate = Fraction(painter.scores.fps).limit_denominator(100_000)
        stream = container.add_stream(codec, rate=rate, options=quality)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TICK
        at = -1
        size: tuple[int, int] | None = None
        frames = timed_frames(video, on_truncated="keep", fps=painter.scores.fps, max_pixels=max_pixels)
        for number, (frame, seconds) in enumerate(frames):
            picture = painter.paint(frame, number, seconds)
            if size is None:
                size = (picture.shape[1], picture.shape[0])
                stream.width, stream.height = size
            elif size != (picture.shape[1], picture.shape[0]):  # some videos change their size
                picture = cv2.resize(picture, size)
            shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
            at = max(at + 1, round(seconds / _TICK))
            shown.pts, shown.time_base = at, _TICK
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


class _Painter:
    """Draws one frame after another. Pictures are uint8 RGB."""

    def __init__(self, scores: VideoScores, intervals: list[Interval], threshold: float) -> None:
        self.scores, self.threshold = scores, threshold
        self.flagged = np.zeros(scores.scores.size, bool)
        middles = (scores.starts + scores.ends) / 2
        for start, end, _ in intervals:
            self.flagged |= (start <= middles) & (middles <= end)

    def paint(self, frame: np.ndarray, number: int, seconds: float) -> np.ndarray:
        """Draw a frame (H, W, 3) and its time: returns the enlarged picture with the panel below, of even sides."""
        pixels = frame.shape[0] * frame.shape[1]
        enlarged = min(-(-_LEAST_WIDTH // frame.shape[1]), max(1, math.isqrt(_MOST_PIXELS // pixels)))
        if enlarged > 1:
            frame = cv2.resize(frame, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_CUBIC)
        height, width = frame.shape[:2]
        unit = max(1, round(width / 480))
        panel = 64 * unit + height % 2
        picture = np.empty((height + panel, width + width % 2, 3), np.uint8)
        picture[:] = _PAPER
        picture[:height, :width] = frame
        segment = number // SEGMENT
        known = segment < self.scores.scores.size
        if known and self.flagged[segment]:
            cv2.rectangle(picture, (0, 0), (width - 1, height - 1), _ALERT, 6 * unit)
        self._panel(picture[height:], segment if known else None, seconds, unit)
        return picture

    def _panel(self, panel: np.ndarray, segment: int | None, seconds: float, unit: int) -> None:
        height, width = panel.shape[:2]
        left, right, top, bottom = 10 * unit, width - 10 * unit, 8 * unit, height - 8 * unit
        split = left + 118 * unit
        score = None if segment is None else float(self.scores.scores[segment])
        flagged = segment is not None and bool(self.flagged[segment])
        colour = _ALERT if flagged else _LINE
        text = "-" if score is None else f"{score:.2f}"
        cv2.putText(panel, text, (left, top + 19 * unit), _FONT, 0.75 * unit, _INK, 2 * unit, cv2.LINE_AA)
        if flagged:
            word = (left + 62 * unit, top + 19 * unit)
            cv2.putText(panel, "FLAGGED", word, _FONT, 0.38 * unit, _ALERT, unit, cv2.LINE_AA)
        cv2.putText(panel, clock(seconds, 1), (left, bottom), _FONT, 0.36 * unit, _DIM, unit, cv2.LINE_AA)
        bar = (left, top + 25 * unit, 104 * unit, 8 * unit)
        self._bar(panel, bar, score or 0.0, colour, unit)
        self._curve(panel, (split, top, right, bottom), segment, seconds, unit)

    def _bar(
        self, panel: np.ndarray, box: tuple[int, int, int, int], score: float, colour: tuple[int, ...], unit: int
    ) -> None:
        x, y, width, height = box
        cv2.rectangle(panel, (x, y), (x + width, y + height), _FAINT, unit)
        cv2.rectangle(panel, (x, y), (x + round(width * min(max(score, 0.0), 1.0)), y + height), colour, -1)
        mark = x + round(width * min(max(self.threshold, 0.0), 1.0))
        cv2.line(panel, (mark, y - 2 * unit), (mark, y + height + 2 * unit), _INK, unit)

    def _curve(
        self, panel: np.ndarray, box: tuple[int, int, int, int], segment: int | None, seconds: float, unit: int
    ) -> None:
        """Draw the scores of the last `_SPAN` seconds; the present is at the right edge."""
        left, top, right, bottom = box
        scale = (right - left) / _SPAN

        def place(at: float, value: float) -> tuple[int, int]:
            return round(right - (seconds - at) * scale), round(bottom - min(max(value, 0.0), 1.0) * (bottom - top))

        level = place(seconds, self.threshold)[1]
        for x in range(left, right, 8 * unit):
            cv2.line(panel, (x, level), (min(x + 4 * unit, right), level), _FAINT, unit)
        cv2.line(panel, (left, bottom), (right, bottom), _FAINT, unit)
        starts, ends = self.scores.starts, self.scores.ends
        last = self.scores.scores.size - 1 if segment is None else segment
        first = int(np.searchsorted(ends, seconds - _SPAN, side="right"))
        for t in range(first, last + 1):
            begin, end = max(float(starts[t]), seconds - _SPAN), min(float(ends[t]), seconds)
            value = float(self.scores.scores[t])
            colour = _ALERT if self.flagged[t] else _LINE
            if t > first:
                cv2.line(panel, place(begin, float(self.scores.scores[t - 1])), place(begin, value), colour, 2 * unit)
            if end > begin:
                cv2.line(panel, place(begin, value), place(end, value), colour, 2 * unit)
