"""Scores of one video, the CSV file that holds them, and the intervals in which they are high."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iefvad.utils.errors import UserError
from iefvad.utils.files import write_bytes
from iefvad.utils.intervals import runs
from iefvad.video import SEGMENT

CSV_COLUMNS = ("video", "segment", "start s", "end s", "score", "w_img", "w_evt", "gain")

Array = npt.NDArray[Any]


@dataclass
class VideoScores:
    """Scores of one video: T segments of 16 frames.

    name: without suffix. classes: anomaly classes, () for a normal video. fps: frames a second, > 0.
    truth: (16*T,) 0/1 frame labels, or None where only the video's label is known.
    scores: (T,) probabilities. w_img, w_evt: (T,) normalised fusion weights, gain: (T,) mean Kalman gain; None where
    the model has none (one modality, no temporal step). All become float32 (truth uint8).
    Raises ValueError for shapes that disagree or an fps that is not positive, UserError for a score, weight or gain
    that is not finite and for truth of another length (the two mistakes that data can cause).
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

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"video {self.name}: fps must be positive, got {self.fps}")
        scores = np.asarray(self.scores, dtype=np.float32)
        if scores.ndim != 1:
            raise ValueError(f"video {self.name}: scores must have shape (T,), got {scores.shape}")
        self.scores = scores
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
                    f"video {self.name}: ground truth has {truth.size} frame labels where {scores.size} segments "
                    f"need {SEGMENT * scores.size}; use the truth that belongs to these features"
                )
            self.truth = (truth > 0).astype(np.uint8)

    @property
    def seconds(self) -> float:
        """Duration of the scored part, in seconds."""
        return SEGMENT * self.scores.size / self.fps

    @property
    def abnormal_segments(self) -> npt.NDArray[np.bool_] | None:
        """(T,) bool, true where at least half of the segment's 16 frames are abnormal; None without truth."""
        if self.truth is None:
            return None
        return self.truth.reshape(-1, SEGMENT).sum(axis=1, dtype=np.int64) * 2 >= SEGMENT


def to_frames(segment_values: npt.ArrayLike, segment: int = SEGMENT) -> Array:
    """Repeat segment values (T, ...) to frames (segment*T, ...), dtype kept."""
    return np.repeat(np.asarray(segment_values), segment, axis=0)


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.9g}"  # 9 digits restore a float32 exactly


def write_scores_csv(path: str | Path, videos: Sequence[VideoScores]) -> None:
    """Write one row a segment: video, segment, start s, end s, score, w_img, w_evt, gain (empty where absent).

    The file appears complete or not at all. Raises UserError where it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for v in videos:
        for t in range(v.scores.size):
            row = [x[t] if x is not None else None for x in (v.scores, v.w_img, v.w_evt, v.gain)]
            writer.writerow(csv_row(v.name, t, v.fps, row))
    # File names that are no UTF-8 come back as they were.
    write_bytes(Path(path), text.getvalue().encode("utf-8", "surrogateescape"))


def csv_row(name: str, t: int, fps: float, values: Sequence[float | None]) -> list[Any]:
    """The cells of `CSV_COLUMNS` for segment `t`; `values` are score, w_img, w_evt, gain, None where absent."""
    start, end = round(SEGMENT * t / fps, 6), round(SEGMENT * (t + 1) / fps, 6)
    return [name, t, start, end, *map(_number, values)]


def read_scores_csv(path: str | Path) -> list[VideoScores]:
    """Read what write_scores_csv wrote; classes are (), truth is None, fps follows from the last segment's end.

    Raises UserError for a missing file, another header, a cell that is no number or segments out of order.
    """
    grouped: dict[str, list[list[float | None]]] = {}
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header is None or tuple(header) != CSV_COLUMNS:
                raise UserError(f"{path} is not a score file; its first line must be {','.join(CSV_COLUMNS)}")
            for line, row in enumerate(reader, start=2):
                if len(row) != len(CSV_COLUMNS):
                    raise UserError(f"{path}, row {line}: {len(row)} cells where {len(CSV_COLUMNS)} are expected")
                rows = grouped.setdefault(row[0], [])
                try:
                    values = [float(text) if text else None for text in row[1:]]
                except ValueError:
                    raise UserError(f"{path}, row {line}: a cell is no number; write the file anew") from None
                if values[0] != len(rows) or None in values[:4]:
                    raise UserError(
                        f"{path}, row {line}: expected segment {len(rows)} of {row[0]} with times and score"
                    )
                rows.append(values)
    except OSError as error:
        raise UserError(f"cannot read scores from {path}: {error.strerror or error}") from error
    videos = []
    for name, rows in grouped.items():
        end = rows[-1][2]
        if not end or end <= 0:
            raise UserError(f"{path}: video {name} ends at {end} s; write the file anew")
        columns = [
            None if any(row[i] is None for row in rows) else np.array([row[i] for row in rows], dtype=np.float32)
            for i in range(3, 7)
        ]
        scores, w_img, w_evt, gain = columns
        assert scores is not None  # every row was checked to have one
        fps = round(SEGMENT * len(rows) / end, 3)  # times carry 6 decimals
        videos.append(VideoScores(name, (), fps, None, scores, w_img, w_evt, gain))
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
) -> list[tuple[float, float, float]]:
    """Flagged intervals (start s, end s, peak score) of scores (T,), by hysteresis, in order of time.

    An interval is a maximal run of segments at or above `low` (default: `threshold`) that reaches `threshold`
    somewhere. Intervals at most `merge_gap_s` seconds apart become one; what is then shorter than `min_length_s`
    seconds is left out. Raises UserError for low > threshold, a negative gap or length, an fps that is not positive or
    scores that are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    floor = threshold if low is None else low
    if values.ndim != 1:
        raise ValueError(f"scores must have shape (T,), got {values.shape}")
    if not np.isfinite(values).all():
        raise UserError("the scores hold NaN or Inf, so no interval can be told; check the features")
    if not (np.isfinite(fps) and fps > 0):
        raise UserError(f"the frame rate must be positive, got {fps}; give the video's own")
    if not floor <= threshold:
        raise UserError(f"the low threshold {floor} must not exceed the threshold {threshold}")
    if not merge_gap_s >= 0:
        raise UserError(f"the gap to merge must be 0 s or more, got {merge_gap_s}")
    if not min_length_s >= 0:
        raise UserError(f"the least length of an interval must be 0 s or more, got {min_length_s}")
    seconds = segment / fps
    found: list[tuple[float, float, float]] = []
    for first, last in runs(values >= floor):
        peak = float(values[first:last].max())
        if peak < threshold:
            continue
        # A tenth of a frame of slack, so that a gap of exactly merge_gap_s does not hang on rounding.
        if found and first * seconds - found[-1][1] <= merge_gap_s + 0.1 / fps:
            found[-1] = (found[-1][0], last * seconds, max(peak, found[-1][2]))
        else:
            found.append((first * seconds, last * seconds, peak))
    return [interval for interval in found if interval[1] - interval[0] >= min_length_s - 0.1 / fps]
