"""What detection yields for one video, and what gathers it in little memory."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iefvad.detection.threshold import Rule
from iefvad.extraction.stream import SegmentFeatures
from iefvad.scoring.scorer import columns_of
from iefvad.scoring.video_scores import VideoScores
from iefvad.video import SEGMENT


@dataclass
class Timing:
    """Seconds that went into one video: all in all, and within them decoding (which runs beside the rest), encoding and
    scoring. For live input, where decoding is waiting (`decode` is None), `latencies` is for each segment the seconds
    from reading its last frame to its score."""

    segments: int = 0
    total: float = 0.0
    decode: float | None = None
    encode: float = 0.0
    score: float = 0.0
    latencies: array[float] = field(default_factory=lambda: array("f"))

    @property
    def frames_per_second(self) -> float:
        """Frames scored a second of running time."""
        return self.segments * SEGMENT / max(self.total, 1e-9)

    def milliseconds(self) -> dict[str, float]:
        """Mean milliseconds a segment of each stage that was measured."""
        stages = {"encode": self.encode, "score": self.score}
        if self.decode is not None:
            stages = {"total": self.total, "decode": self.decode, **stages}
        return {name: 1000 * seconds / max(self.segments, 1) for name, seconds in stages.items()}

    def latency(self) -> dict[str, float] | None:
        """Median, 95th percentile and maximum of the latencies in milliseconds; None for a file."""
        if not self.latencies:
            return None
        values = 1000 * np.asarray(self.latencies)
        low, high = np.quantile(values, (0.5, 0.95)).tolist()
        return {"median_ms": low, "p95_ms": high, "max_ms": float(values.max())}


@dataclass
class Detection:
    """Result for one video: scores of the segments, flagged intervals (start s, end s, peak score), pictures, files.

    `video` is its path (for live input a text: the address without credentials), `pictures` (start s, small uint8 RGB
    (H, W, 3)) of the highest segments, highest first. `live` is None for a file, else what happened to the connection.
    """

    video: Path | str
    scores: VideoScores
    intervals: list[tuple[float, float, float]]
    pictures: list[tuple[float, np.ndarray]]
    rule: Rule
    timing: Timing
    live: dict[str, Any] | None = None
    files: list[Path] = field(default_factory=list)


class Collector:
    """Takes the scored segments of one video: 16 bytes each, and the pictures of the few highest."""

    def __init__(self, pictures: int) -> None:
        self._rows = array("f")
        self._highest: list[tuple[float, float, np.ndarray]] = []
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._rows) // 4

    def add(self, segments: list[SegmentFeatures], rows: np.ndarray) -> None:
        """`rows` (t, 4) float32 as of `Scorer.feed`."""
        self._rows.frombytes(np.ascontiguousarray(rows, np.float32).tobytes())
        for segment, row in zip(segments, rows, strict=True):
            # Times differ, so the heap never compares two pictures.
            entry = (float(row[0]), segment.time, segment.thumbnail)
            if len(self._highest) < self._pictures:
                heapq.heappush(self._highest, entry)
            elif self._highest and entry > self._highest[0]:
                heapq.heapreplace(self._highest, entry)

    def scores(self, name: str, fps: float, source: str) -> VideoScores:
        """All scores so far."""
        table = np.array(self._rows, np.float32).reshape(-1, 4)
        w_img, w_evt, gain = columns_of(table)
        return VideoScores(name, (), fps, None, table[:, 0], w_img, w_evt, gain, source=source)

    def pictures(self) -> list[tuple[float, np.ndarray]]:
        """(start s, picture) of the highest segments, highest first."""
        return [(start, picture) for _, start, picture in sorted(self._highest, key=lambda entry: -entry[0])]
