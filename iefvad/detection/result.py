"""The result of detection for one video, and the collector that gathers it in little memory."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from iefvad.detection.threshold import Rule
from iefvad.extraction.stream import SegmentFeatures
from iefvad.scoring.scorer import columns_of
from iefvad.scoring.video_scores import Interval, VideoScores
from iefvad.utils.advice import Advice
from iefvad.video import SEGMENT, ClockReport


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
        pictures: Start in seconds and a small picture, uint8 RGB (H, W, 3), of the segments with the highest scores,
            highest first.
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


class Collector:
    """Gathers the scored segments of one video: 32 bytes per segment, and the pictures of the highest scores."""

    def __init__(self, pictures: int) -> None:
        """Keep at most `pictures` pictures."""
        self._rows = array("f")
        self._starts, self._ends = array("d"), array("d")
        self._highest: list[tuple[float, int, float, np.ndarray]] = []
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
            # No two segments have the same number, so the heap never compares pictures.
            entry = (float(row[0]), segment.index, segment.start, segment.thumbnail)
            if len(self._highest) < self._pictures:
                heapq.heappush(self._highest, entry)
            elif self._highest and entry > self._highest[0]:
                heapq.heapreplace(self._highest, entry)

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

    def pictures(self) -> list[tuple[float, np.ndarray]]:
        """Return start in seconds and picture of the segments with the highest scores, highest first."""
        return [(start, picture) for _, _, start, picture in sorted(self._highest, key=lambda entry: -entry[0])]
