"""Scores of one video, the CSV file that holds them, and the intervals in which they are high."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iefvad.utils.csv_text import CsvRows, csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text
from iefvad.utils.intervals import runs
from iefvad.video import SEGMENT

CSV_COLUMNS = ("video", "segment", "start s", "end s", "score", "w_img", "w_evt", "gain")
"""Header of a score file."""

_TICK = 1e-6  # seconds; times in files are rounded to it

Array = npt.NDArray[Any]

Interval = tuple[float, float, float]
"""Start and end of an interval in seconds, and the highest score between them."""


@dataclass
class VideoScores:
    """Scores of one video: T segments of 16 frames.

    Attributes:
        name: Name of the video without suffix.
        classes: Anomaly classes; () for a normal video.
        fps: Frames per second, above 0.
        truth: 0/1 labels of the frames, (16 * T,), stored as uint8. None where only the video's label is known.
        scores: Probabilities, (T,), stored as float32.
        w_img: Normalised fusion weights of the image features, (T,), stored as float32. None for a single modality.
        w_evt: The same of the event features.
        gain: Mean Kalman gain, (T,), stored as float32. None for a model without the temporal step.
        source: Name of the video with suffix, or address of the stream, where it is known.
        starts: Start of each segment in seconds, (T,), stored as float64. None counts frames: 16·t/fps.
        ends: End of each segment in seconds, (T,), stored as float64. None counts frames: 16·(t + 1)/fps.

    Raises:
        ValueError: shapes do not match, `fps` is not positive, or times are not in order.
        UserError: a score, weight or gain is not finite, or the truth has another length. Data can cause both.
    """

    name: str
    classes: tuple[str, ...]
    fps: float
    truth: Array | None
    scores: Array
    w_img: Array | None = None
    w_evt: Array | None = None
    gain: Array | None = None
    source: str | None = None
    starts: Any = None  # always an array once the object is made
    ends: Any = None

    def __post_init__(self) -> None:
        """Convert and check the arrays."""
        self.classes = tuple(self.classes)
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"video {self.name}: fps must be positive, got {self.fps}")
        scores = np.asarray(self.scores, dtype=np.float32)
        if scores.ndim != 1:
            raise ValueError(f"video {self.name}: scores must have shape (T,), got {scores.shape}")
        self.scores = scores
        self._fill_times()
        for field in ("w_img", "w_evt", "gain"):
            value = getattr(self, field)
            if value is None:
                continue
            value = np.asarray(value, dtype=np.float32)
            if value.shape != scores.shape:
                raise ValueError(f"video {self.name}: {field} has shape {value.shape}, scores {scores.shape}")
            setattr(self, field, value)
        for field in ("scores", "w_img", "w_evt", "gain"):
            value = getattr(self, field)
            if value is not None and not np.isfinite(value).all():
                raise UserError(
                    f"video {self.name}: {int((~np.isfinite(value)).sum())} of {value.size} {field} are not finite; "
                    "check its features for NaN or Inf (--nan zero repairs them) and the learning rate"
                )
        if self.truth is not None:
            truth = np.asarray(self.truth)
            if truth.shape != (SEGMENT * scores.size,):
                raise UserError(
                    f"video {self.name}: the ground truth has {truth.size} frame labels, but {scores.size} segments "
                    f"need {SEGMENT * scores.size}; use the truth that belongs to these features"
                )
            self.truth = (truth > 0).astype(np.uint8)

    def _fill_times(self) -> None:
        numbers = np.arange(self.scores.size)
        each = SEGMENT / self.fps
        self.starts = np.asarray(numbers * each if self.starts is None else self.starts, dtype=np.float64)
        self.ends = np.asarray((numbers + 1) * each if self.ends is None else self.ends, dtype=np.float64)
        if not self.starts.shape == self.ends.shape == self.scores.shape:
            raise ValueError(
                f"video {self.name}: {self.starts.shape} starts, {self.ends.shape} ends, {self.scores.shape} scores"
            )
        if not ((self.ends >= self.starts).all() and (np.diff(self.starts) >= 0).all()):
            raise ValueError(f"video {self.name}: the times of its segments are not in order")

    @property
    def seconds(self) -> float:
        """Duration of all segments together, in seconds."""
        return float((self.ends - self.starts).sum())

    @property
    def edges(self) -> Array:
        """Start of each segment and end of the last one in seconds, (T + 1,) float64."""
        return np.append(self.starts, self.ends[-1:] if self.ends.size else 0.0)

    def times(self, t: int) -> tuple[float, float]:
        """Return start and end of segment `t` in seconds, rounded to 6 decimals as files hold them."""
        return round(float(self.starts[t]), 6), round(float(self.ends[t]), 6)

    def frames(self, start: float, end: float) -> tuple[int, int]:
        """Return the numbers of the first and the last frame of the segments between two times in seconds."""
        first = int(np.searchsorted(self.starts, start - _TICK, side="left"))
        last = int(np.searchsorted(self.ends, end + _TICK, side="right"))
        return SEGMENT * first, SEGMENT * last - 1

    @property
    def peak(self) -> tuple[float, float]:
        """The highest score, and the start of its (first) segment in seconds. There must be a segment."""
        at = int(self.scores.argmax())
        return float(self.scores[at]), float(self.starts[at])

    @property
    def abnormal_segments(self) -> npt.NDArray[np.bool_] | None:
        """True where at least half of a segment's 16 frames are abnormal, (T,) bool; None without truth."""
        if self.truth is None:
            return None
        counts = self.truth.reshape(-1, SEGMENT).sum(axis=1, dtype=np.int64)
        return np.asarray(counts * 2 >= SEGMENT, dtype=np.bool_)


def to_frames(segment_values: npt.ArrayLike, segment: int = SEGMENT) -> Array:
    """Repeat values of segments (T, ...) to frames (segment * T, ...) of the same dtype."""
    return np.repeat(np.asarray(segment_values), segment, axis=0)


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.9g}"  # 9 digits restore a float32 exactly


def write_scores_csv(path: str | Path, videos: Sequence[VideoScores]) -> None:
    """Write a score file: the columns of `CSV_COLUMNS`, one row per segment. Cells of absent values are empty.

    The file appears complete or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    rows: list[Sequence[Any]] = [CSV_COLUMNS]
    for v in videos:
        for t in range(v.scores.size):
            row = [x[t] if x is not None else None for x in (v.scores, v.w_img, v.w_evt, v.gain)]
            rows.append(csv_row(v.name, t, *v.times(t), row))
    write_text(Path(path), csv_text(rows))


def csv_row(name: str, t: int, start: float, end: float, values: Sequence[float | None]) -> list[Any]:
    """Return the cells of `CSV_COLUMNS` for one segment.

    Args:
        name: Name of the video.
        t: Number of the segment, from 0.
        start: Start of the segment in seconds.
        end: End of the segment in seconds.
        values: Score, w_img, w_evt and gain; None where absent.
    """
    return [name, t, round(start, 6), round(end, 6), *map(_number, values)]


def read_scores_csv(path: str | Path) -> list[VideoScores]:
    """Read what `write_scores_csv` wrote.

    Returns:
        The videos in the order of the file. Classes are (), truth is None, and the frame rate is the average that
        follows from the times.

    Raises:
        UserError: the file is missing or has another header, a cell is not a number, or segments are not in order.
    """
    grouped: dict[str, list[list[float | None]]] = {}
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = CsvRows(file)
            header = next(reader, None)
            if header is None or tuple(header) != CSV_COLUMNS:
                raise UserError(f"{path} is not a score file: its first line must be {','.join(CSV_COLUMNS)}")
            for line, row in enumerate(reader, start=2):
                if len(row) != len(CSV_COLUMNS):
                    raise UserError(f"{path}, row {line}: {len(row)} cells, but {len(CSV_COLUMNS)} are expected")
                rows = grouped.setdefault(row[0], [])
                try:
                    values = [float(text) if text else None for text in row[1:]]
                except ValueError:
                    raise UserError(f"{path}, row {line}: a cell is not a number; write the file again") from None
                if values[0] != len(rows) or None in values[:4]:
                    raise UserError(
                        f"{path}, row {line}: expected segment {len(rows)} of {row[0]} with times and score"
                    )
                rows.append(values)
    except OSError as error:
        raise UserError(f"cannot read scores from {path}: {error.strerror or error}") from error
    videos = []
    for name, rows in grouped.items():
        starts, ends = (np.array([row[i] for row in rows], dtype=np.float64) for i in (1, 2))
        length = ends[-1] - starts[0]
        if not length > 0 or (ends < starts).any() or (np.diff(starts) < 0).any():
            raise UserError(f"{path}: the times of video {name} are not in order; write the file again")
        columns = [
            None if any(row[i] is None for row in rows) else np.array([row[i] for row in rows], dtype=np.float32)
            for i in range(3, 7)
        ]
        scores, w_img, w_evt, gain = columns
        assert scores is not None  # every row was checked to have one
        fps = round(SEGMENT * len(rows) / length, 3)  # times carry 6 decimals
        videos.append(VideoScores(name, (), fps, None, scores, w_img, w_evt, gain, starts=starts, ends=ends))
    return videos


def intervals_above(
    scores: npt.ArrayLike,
    fps: float,
    threshold: float,
    *,
    low: float | None = None,
    segment: int = SEGMENT,
    merge_gap_s: float = 0.0,
    min_length_s: float = 0.0,
    starts: npt.ArrayLike | None = None,
    ends: npt.ArrayLike | None = None,
) -> list[Interval]:
    """Find the flagged intervals by hysteresis.

    An interval is a maximal run of segments at or above `low` that reaches `threshold` at least once. Then intervals
    with small gaps between them become one, and then short intervals are left out.

    Args:
        scores: One score per segment, (T,).
        fps: Frames per second.
        threshold: Score that an interval must reach.
        low: Score at which an interval goes on; `threshold` where None.
        segment: Frames per segment.
        merge_gap_s: Intervals at most this many seconds apart become one.
        min_length_s: Intervals shorter than this many seconds are left out.
        starts: Start of each segment in seconds, (T,); counted from `fps` where None.
        ends: End of each segment in seconds, (T,); counted from `fps` where None.

    Returns:
        The intervals, in order of time.

    Raises:
        UserError: `low` exceeds `threshold`, a gap or length is negative, `fps` is not positive, or scores are not
            finite.
        ValueError: `scores` or the times have another shape.
    """
    values = np.asarray(scores, dtype=np.float64)
    floor = threshold if low is None else low
    if values.ndim != 1:
        raise ValueError(f"scores must have shape (T,), got {values.shape}")
    if not np.isfinite(values).all():
        raise UserError("the scores contain NaN or Inf, so no interval can be found; check the features")
    if not (np.isfinite(fps) and fps > 0):
        raise UserError(f"the frame rate must be positive, got {fps}; give that of the video")
    if not floor <= threshold:
        raise UserError(f"the low threshold {floor} must not exceed the threshold {threshold}")
    if not merge_gap_s >= 0:
        raise UserError(f"the gap to merge must be 0 s or more, got {merge_gap_s}")
    if not min_length_s >= 0:
        raise UserError(f"the minimum length of an interval must be 0 s or more, got {min_length_s}")
    numbers = np.arange(values.size)
    begin = numbers * (segment / fps) if starts is None else np.asarray(starts, dtype=np.float64)
    finish = (numbers + 1) * (segment / fps) if ends is None else np.asarray(ends, dtype=np.float64)
    if begin.shape != values.shape or finish.shape != values.shape:
        raise ValueError(f"times must have shape {values.shape}, got {begin.shape} and {finish.shape}")
    found: list[Interval] = []
    for first, last in runs(values >= floor):
        start, end = float(begin[first]), float(finish[last - 1])
        peak = float(values[first:last].max())
        if peak < threshold:
            continue
        # A tolerance of a tenth of a frame, so that rounding does not decide about a gap of exactly merge_gap_s.
        if found and start - found[-1][1] <= merge_gap_s + 0.1 / fps:
            found[-1] = (found[-1][0], end, max(peak, found[-1][2]))
        else:
            found.append((start, end, peak))
    return [interval for interval in found if interval[1] - interval[0] >= min_length_s - 0.1 / fps]
