"""The result of detection for one video, and the collector that gathers it in little memory."""

from __future__ import annotations

import html
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from iefvad.detection.threshold import Rule
from iefvad.extraction.stream import SegmentFeatures
from iefvad.scoring.scorer import columns_of
from iefvad.scoring.video_scores import Interval, VideoScores
from iefvad.utils.advice import Advice
from iefvad.utils.text import clock, readable
from iefvad.video import SEGMENT, ClockReport

_APART = 2.0  # seconds between two pictures
_ALIKE = 10.0  # grey levels; pictures whose parts all differ by less show the same
_SHOWN = 3  # flagged intervals in the text of a detection
_LISTED = 10  # and in a notebook


@dataclass
class Timing:
    """Time spent on one video.

    Attributes:
        segments: Number of scored segments.
        total: Seconds from start to end.
        decode: Seconds of decoding, which runs in parallel. None for live input, where decoding is waiting.
        encode: Seconds of encoding.
        score: Seconds of scoring.
        latencies: For live input: seconds from reading a segment's last frame to its score, one per segment.
    """

    segments: int = 0
    total: float = 0.0
    decode: float | None = None
    encode: float = 0.0
    score: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("f"))

    @property
    def frames_per_second(self) -> float:
        """Scored frames per second of running time."""
        return self.segments * SEGMENT / max(self.total, 1e-9)

    def milliseconds(self) -> dict[str, float]:
        """Return the mean milliseconds per segment of each measured stage."""
        stages = {"encode": self.encode, "score": self.score}
        if self.decode is not None:
            stages = {"total": self.total, "decode": self.decode, **stages}
        return {name: 1000 * seconds / max(self.segments, 1) for name, seconds in stages.items()}

    def latency(self) -> dict[str, float] | None:
        """Return median, 95th percentile and maximum of the latencies in milliseconds; None for a file."""
        if not self.latencies:
            return None
        values = 1000 * np.asarray(self.latencies)
        median, high = np.quantile(values, (0.5, 0.95)).tolist()
        return {"median_ms": median, "p95_ms": high, "max_ms": float(values.max())}


@dataclass
class Detection:
    """Result for one video.

    Attributes:
        video: Path of the file; for live input the address without credentials, as text.
        scores: Scores of the segments.
        intervals: Flagged intervals: start and end in seconds and the highest score, in order of time.
        pictures: Start in seconds and a small picture, uint8 RGB (H, W, 3): the highest segment of each flagged
            interval, then others of high scores, none of them nearly like another. The highest score is the first.
        rule: How scores became flagged intervals.
        timing: Time spent.
        live: What happened to the connection; None for a file.
        clock: Where the times of a file come from, and which frames it lost; None for live input.
        files: Paths of the files that were written.
        warnings: What makes these scores doubtful, each with its remedy.
    """

    video: Path | str
    scores: VideoScores
    intervals: list[Interval]
    pictures: list[tuple[float, np.ndarray]]
    rule: Rule
    timing: Timing
    live: dict[str, Any] | None = None
    clock: ClockReport | None = None
    files: list[Path] = field(default_factory=list)
    warnings: list[Advice] = field(default_factory=list)

    def __repr__(self) -> str:
        """Return name, duration, peak and the first flagged intervals; the arrays are left out."""
        times = [f"{clock(start, 1)}-{clock(end, 1)}" for start, end, _ in self.intervals[:_SHOWN]]
        times += ["..."] * (len(self.intervals) > _SHOWN)
        listed = f": {', '.join(times)}" if times else ""
        return f"Detection({self._name!r}, {self._summary()}{listed})"

    def _repr_html_(self) -> str:
        """Return the timeline for a notebook. It fits light and dark themes, and asks nothing of the network."""
        from iefvad.report.strip import strip

        ends = (clock(0), clock(float(self.scores.edges[-1])))
        rows = [
            f"<li>{clock(start, 1)} to {clock(end, 1)}, peak {peak:.3f}</li>"
            for start, end, peak in self.intervals[:_LISTED]
        ]
        if len(self.intervals) > _LISTED:
            rows.append(f"<li>and {len(self.intervals) - _LISTED} more</li>")
        return (
            '<div style="max-width:720px;color:inherit;font-family:sans-serif;font-size:13px;line-height:1.45">'
            f'<div style="overflow-wrap:anywhere"><b>{html.escape(self._name)}</b>: {html.escape(self._summary())},'
            f" threshold {self.rule.threshold:.3g}</div>"
            f"{strip(self.scores, self.intervals, self.rule.threshold)}"
            '<div style="display:flex;justify-content:space-between;opacity:.7;font-size:12px">'
            f"<span>{ends[0]}</span><span>{ends[1]}</span></div>"
            f'<ul style="margin:.3em 0;padding-left:1.4em">{"".join(rows)}</ul></div>'
        )

    @property
    def _name(self) -> str:
        return readable(self.scores.source or self.scores.name)

    def _summary(self) -> str:
        if not self.scores.scores.size:
            return "no score"
        peak, at = self.scores.peak
        count = len(self.intervals)
        flagged = {0: "nothing flagged", 1: "1 interval flagged"}.get(count, f"{count} intervals flagged")
        return f"{clock(self.scores.seconds)}, peak {peak:.3f} at {clock(at, 1)}, {flagged}"


@dataclass
class _Moment:
    """The highest segment of some seconds of video."""

    began: float
    score: float
    start: float
    picture: np.ndarray


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two pictures of a video, uint8 RGB (H, W, 3), show the same: no part of them differs."""
    small = [
        cv2.resize(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), (16, 12), interpolation=cv2.INTER_AREA) for p in (one, other)
    ]
    return bool(np.abs(small[0].astype(np.float32) - small[1]).max() < _ALIKE)


class Collector:
    """Gathers the scored segments of one video: 32 bytes per segment, and pictures of moments with high scores."""

    def __init__(self, pictures: int) -> None:
        """Return at most `pictures` pictures; some more are kept to choose from."""
        self._rows = array("f")
        self._starts, self._ends = array("d"), array("d")
        self._moments: list[_Moment] = []  # in order of time
        self._pictures = pictures
        self._sums: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of segments so far."""
        return len(self._rows) // 4

    def add(self, segments: list[SegmentFeatures], rows: np.ndarray) -> None:
        """Add the next t segments, with their rows as in `Scorer.feed`, (t, 4) float32."""
        self._rows.frombytes(np.ascontiguousarray(rows, np.float32).tobytes())
        for segment, row in zip(segments, rows, strict=True):
            self._starts.append(segment.start)
            self._ends.append(segment.end)
            for name, features in (("image", segment.image), ("event", segment.event)):
                mean = features.double().mean(0)
                self._sums[name] = self._sums[name] + mean if name in self._sums else mean
            if self._pictures:
                self._keep(float(row[0]), segment.start, segment.thumbnail)

    def _keep(self, score: float, start: float, picture: np.ndarray) -> None:
        """Keep the highest segment of each moment, and of all moments those of the highest scores."""
        last = self._moments[-1] if self._moments else None
        if last is not None and start - last.began < _APART:
            if score > last.score:
                last.score, last.start, last.picture = score, start, picture
            return
        self._moments.append(_Moment(start, score, start, picture))
        if len(self._moments) > 3 * self._pictures + 8:
            # The newest may still become higher.
            self._moments.remove(min(self._moments[:-1], key=lambda moment: moment.score))

    def means(self) -> dict[str, Tensor]:
        """Return the mean features of each modality so far, (D,) float64."""
        return {name: total / len(self) for name, total in self._sums.items()}

    def scores(self, name: str, fps: float, source: str) -> VideoScores:
        """Return the scores so far, as those of a video of this name, frame rate and source."""
        table = np.array(self._rows, np.float32).reshape(-1, 4)
        w_img, w_evt, gain = columns_of(table)
        starts, ends = np.array(self._starts), np.array(self._ends)
        return VideoScores(
            name, (), fps, None, table[:, 0], w_img, w_evt, gain, source=source, starts=starts, ends=ends
        )

    def pictures(self, intervals: list[Interval]) -> list[tuple[float, np.ndarray]]:
        """Choose pictures that differ, as `Detection.pictures` has them: first one of each flagged interval.

        Args:
            intervals: Flagged intervals.
        """
        ranked = sorted(self._moments, key=lambda moment: -moment.score)
        first = []
        for start, end, _ in sorted(intervals, key=lambda interval: -interval[2])[: self._pictures]:
            first += [moment for moment in ranked if start - 1e-6 <= moment.start < end][:1]
        chosen: list[_Moment] = []
        for moment in [*first, *ranked]:
            if len(chosen) < self._pictures and not any(
                abs(moment.start - other.start) < _APART or alike(moment.picture, other.picture) for other in chosen
            ):
                chosen.append(moment)
        return [(moment.start, moment.picture) for moment in sorted(chosen, key=lambda moment: -moment.score)]
