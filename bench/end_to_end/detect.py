"""`python -m bench detect`: latency per segment from the last frame to the score, live and for files, and its memory.

Live input is scored as `iefvad detect` scores a camera, one segment at a time behind a full context; frames come from
the video, and a segment's clock starts when its last frame is asked of the decoder. A file is scored as `iefvad detect`
scores one.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch

from bench import memory
from bench.end_to_end import _records as records
from bench.end_to_end._clip import write_clip
from bench.end_to_end._records import Row
from bench.tables import duration, significant, text_table
from bench.timing import quartiles
from iefvad.checkpoints.hub import IEFVAD
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.live.sources import LiveSegment, LiveSource
from iefvad.detection.live.watch import Watch
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.config import ExtractConfig, store_settings
from iefvad.model.config import ModelConfig
from iefvad.scoring.scorer import Scorer
from iefvad.utils.errors import UserError
from iefvad.video import HEIGHT, SEGMENT, WIDTH, read_frames, resize

ENCODERS = ("random-vit", "descriptor")
FRAMES, QUICK_FRAMES = 608, 64
FPS = 30.0
RUNS = 5
"""Times that a file is scored, and that the video is played as live input."""


class FullDetector(Detector):
    """A detector whose live scorers have `context` random segments behind them, as after minutes of input."""

    filled = 0
    _template: tuple[int, Scorer] | None = None

    def scorer(self) -> Scorer:
        """A scorer that has seen `filled` segments."""
        if self._template is None or self._template[0] != self.filled:
            self._template = self.filled, self._fill(super().scorer())
        return copy.copy(self._template[1])  # a scorer replaces its state, and never writes into it

    def _fill(self, scorer: Scorer) -> Scorer:
        random = torch.Generator().manual_seed(0)
        crops, dim = len(self.settings["crops"]), self.model.config.dim
        for _ in range(self.filled):
            features = torch.randn(2, crops, 1, dim, generator=random)
            scorer.feed(features[0], features[1])
        return scorer


class PlayedVideo(LiveSource):
    """A video as live input that is never late: the next segment is decoded when it is asked for.

    `read` of a segment is the time when its last frame was asked for; decoding and resizing that frame come after it.
    `preparing` are the seconds that these took, a segment each.
    """

    def __init__(self, video: Path, limit: int) -> None:
        super().__init__("file")
        self.preparing: list[float] = []
        self._thumbnail_of_all: Any = None
        self._segments = self._read_segments(video, limit)
        self._next: LiveSegment | None = None

    def start(self) -> None:
        """Reads nothing yet."""

    @property
    def ready(self) -> bool:
        """Whether there is another segment; it is read now."""
        self._next = self._next or next(self._segments, None)
        return self._next is not None

    @property
    def ended(self) -> bool:
        """Whether there is no other segment."""
        return not self.ready

    @property
    def fps(self) -> float:
        """Frames per second."""
        return FPS

    def take(self) -> LiveSegment | None:
        """Gives out the next segment."""
        segment, self._next = (self._next, None) if self.ready else (None, None)
        return segment

    def stop(self, wait: float = 0.0) -> None:
        """Closes the video."""
        self._segments.close()

    def _read_segments(self, video: Path, limit: int) -> Generator[LiveSegment, None, None]:
        frames = read_frames(video, on_truncated="keep")
        before: np.ndarray | None = None
        with contextlib.closing(cast(Any, frames)):
            for number in range(limit):
                partial: list[np.ndarray] = []
                for _ in range(SEGMENT - 1):
                    frame = next(frames, None)
                    if frame is None:
                        return
                    partial.append(resize(frame[None], (WIDTH, HEIGHT))[0])
                began = time.monotonic()
                frame = next(frames, None)
                if frame is None:
                    return
                if self._thumbnail_of_all is None:
                    self._thumbnail_of_all = cv2.resize(frame, (160, 120), interpolation=cv2.INTER_AREA)
                partial.append(resize(frame[None], (WIDTH, HEIGHT))[0])
                start, end = number * SEGMENT / FPS, (number + 1) * SEGMENT / FPS
                stacked = np.stack(partial)
                segment = LiveSegment(stacked, self._thumbnail_of_all, start, end, began, time.time(), before=before)
                before = stacked[-1]
                self.preparing.append(time.monotonic() - began)
                self.health.frames += SEGMENT
                yield segment


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = records.make_parser("detect", "Times detection: latency of a segment, live and for files, and memory.")
    parser.add_argument("--run", type=Path, help="a run folder or model, instead of random weights")
    options = parser.parse_args(argv)
    began = time.perf_counter()
    device, about = records.begin(options)
    rows: list[Row] = []
    latencies: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        video = options.video
        if video is None:
            video = Path(folder) / "clip.mp4"
            write_clip(video, frames=QUICK_FRAMES if options.quick else FRAMES)
        for name in ("run",) if options.run else ENCODERS:
            source = options.run or random_model(name, device)
            latencies.append(live(source, name, video, device, quick=options.quick))
            for hop in (None, 1):
                row, record = file(source, name, video, device, hop, quick=options.quick)
                rows.append(row)
                latencies.append(record)
    seconds = time.perf_counter() - began
    more: dict[str, Any] = {
        "video": "made up" if options.video is None else options.video.name,
        "model": "random weights" if options.run is None else "trained",
        "latencies": latencies,
    }
    content = records.document("detect", about, quick=options.quick, seconds=seconds, rows=rows, targets=[], **more)
    records.publish(content, options, [latency_table(latencies)], [])
    return 0


def random_model(name: str, device: torch.device) -> IEFVAD:
    """An untrained network of the field's sizes for an encoder that needs no weights, as wide as its features."""
    encoder = build_encoder(image_model=name, device=device.type)
    torch.manual_seed(0)
    model = IEFVAD(ModelConfig(dim=encoder.dim)).eval()
    model.provenance = {"encoder": store_settings(encoder, ExtractConfig()), "threshold": 0.5}
    return model


def live(source: Path | IEFVAD, name: str, video: Path, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Plays the video as live input; the record of its latencies, over all segments of all plays."""
    detector = FullDetector(source, DetectConfig(device=device.type), live=True)
    detector.filled = 4 if quick else detector.context
    _play(detector, video, 2)  # what is set up at the first use of everything
    found: list[float] = []
    parts: dict[str, list[float]] = {"last frame": [], "encode": [], "score": []}
    memory.return_freed()
    before = memory.resident("VmRSS")
    memory.forget_peak()
    running, played_on = 0.0, 0
    for _ in range(1 if quick else RUNS):
        watch, played, seconds = _play(detector, video, 10**9)
        timing = watch.channels[0].timing
        count = len(timing.latencies)
        if not count:
            raise UserError(f"{video} has fewer than {SEGMENT} frames; give a longer --video")
        found += timing.latencies
        running, played_on = running + seconds, played_on + count - 1
        parts["last frame"].append(1e3 * statistics.fmean(played.preparing))
        [detection] = watch.detections()
        parts["encode"].append(1e3 * detection.timing.encode / count)
        parts["score"].append(1e3 * timing.score / count)
    peak = memory.resident("VmHWM")
    means = {part: statistics.median(values) for part, values in parts.items()}
    p50, p95 = np.quantile(np.asarray(found) * 1e3, (0.5, 0.95)).tolist()
    means["events and the rest"] = max(0.0, 1e3 * statistics.fmean(found) - sum(means.values()))
    return {
        "way": "live",
        "encoder": name,
        "dim": detector.model.config.dim,
        "hop": detector.hop,
        "context": detector.filled,
        "segments": len(found),
        "p50_ms": p50,
        "p95_ms": p95,
        "max_ms": max(found) * 1e3,
        "parts_ms": means,
        "frames_per_s": played_on * SEGMENT / running if running else None,
        "peak_mb": peak / 1e6,
        "above_mb": max(0.0, (peak - before) / 1e6),
    }


def _play(detector: FullDetector, video: Path, limit: int) -> tuple[Watch, PlayedVideo, float]:
    watch = Watch(detector, "http://bench.invalid/")  # never opened: its source is replaced
    played = PlayedVideo(video, limit)
    watch.channels[0].source = played
    scores = iter(watch)
    began = time.perf_counter()
    with contextlib.closing(scores):
        for number, _ in enumerate(scores):
            if number == 0:
                began = time.perf_counter()  # the scorer was filled before it
    return watch, played, time.perf_counter() - began


def file(
    source: Path | IEFVAD, name: str, video: Path, device: torch.device, hop: int | None, *, quick: bool
) -> tuple[Row, dict[str, Any]]:
    """Scores the video as a file several times; its row, and the record of the time per segment over these runs."""
    detector = Detector(source, DetectConfig(device=device.type, hop=hop, tail="drop"))
    if not quick:
        detector(video)
    memory.return_freed()
    before = memory.resident("VmRSS")
    memory.forget_peak()
    timings = [detector(video).timing for _ in range(1 if quick else RUNS)]
    peak = memory.resident("VmHWM")
    count = timings[0].segments
    totals = [timing.total for timing in timings]
    low, median, high = quartiles(totals)
    way = f"file, {name}, hop {detector.hop}"
    row = Row("detect", way, count * SEGMENT, median * 1e3, low * 1e3, high * 1e3, len(totals))
    row.frames_per_s = count * SEGMENT / median
    p50, p95 = np.quantile(np.asarray(totals) / count * 1e3, (0.5, 0.95)).tolist()
    parts = {
        part: statistics.median(timing.milliseconds()[part] for timing in timings)
        for part in ("decode", "encode", "score")
    }
    record = {
        "way": "file",
        "encoder": name,
        "dim": detector.model.config.dim,
        "hop": detector.hop,
        "context": detector.context,
        "segments": count * len(totals),
        "p50_ms": p50,
        "p95_ms": p95,
        "max_ms": max(totals) / count * 1e3,
        "parts_ms": parts,
        "frames_per_s": row.frames_per_s,
        "peak_mb": peak / 1e6,
        "above_mb": max(0.0, (peak - before) / 1e6),
    }
    return row, record


def latency_table(latencies: Sequence[dict[str, Any]]) -> str:
    """One line per way. For a file the time per segment is that of a run divided by its segments."""
    lines = []
    for found in latencies:
        lines.append(
            (
                f"{found['way']}, {found['encoder']} ({found['dim']})",
                str(found["hop"]),
                str(found["context"]),
                duration(found["p50_ms"]),
                duration(found["p95_ms"]),
                ", ".join(f"{part} {significant(value)}" for part, value in found["parts_ms"].items()),
                "" if found["frames_per_s"] is None else significant(found["frames_per_s"]),
                f"{found['peak_mb']:.0f} MB (+{found['above_mb']:.0f})",
            )
        )
    header = ("way", "hop", "context", "p50", "p95", "means of the parts, ms", "frames/s", "peak memory")
    return text_table(header, lines)
