"""Live input, scored segment by segment: scores, alarms and latencies as they come."""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from iefvad.detection.alarm import Alarm, AlarmTracker
from iefvad.detection.detector import Detector, TimedEncoder, score_segments
from iefvad.detection.result import Collector, Detection, Timing
from iefvad.detection.sources import LiveSegment, LiveSource
from iefvad.encoders.encoder import Encoder
from iefvad.extraction.stream import SegmentFeatures, encode_segments, event_maps
from iefvad.scoring.scorer import Scorer
from iefvad.utils.addresses import file_stem
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT


@dataclass
class LiveScore:
    """One scored segment of live input.

    Attributes:
        number: Number of the segment, from 0.
        start: Start of the segment in seconds of video.
        end: End of the segment in seconds of video.
        row: Score, w_img, w_evt and gain, (4,) float32; NaN for what the network does not have.
        alarms: Alarms that start or end with this segment.
        clock: Time of day of its last frame, in Unix seconds.
        latency: Seconds from reading its last frame to its score.
    """

    number: int
    start: float
    end: float
    row: np.ndarray
    alarms: list[Alarm]
    clock: float
    latency: float


class Watch:
    """Scores one stream or camera: iterating yields a `LiveScore` per segment.

    Iteration ends with the source, or when the `duration` of the settings is over, counted from the first segment. It
    raises UserError where the source cannot be reached at all. Segments are numbered as they are scored: frames that
    were dropped, or lost with a connection, do not count as time.
    """

    def __init__(self, detector: Detector, address: str, notify: Callable[[str], None] | None = None) -> None:
        """Prepare a source; iteration opens it.

        Args:
            detector: The detector. Its settings say how connections are retried.
            address: Address of a stream, or a camera.
            notify: Called with a text when a connection is lost and when it is made again.
        """
        config = detector.config
        self.detector = detector
        self.source = LiveSource(
            address,
            retries=config.retries,
            retry_seconds=config.retry_seconds,
            timeout=config.timeout,
            tail=config.tail,
            notify=notify,
        )
        self.name = file_stem(address)
        self.timing = Timing()
        self.clocks: array[float] = array("d")
        self._collector = Collector(config.thumbnails)
        self._encoder = TimedEncoder(detector.encoder)
        self._begin = time.perf_counter()

    @property
    def fps(self) -> float:
        """Frames per second of the source; 0 until it is known."""
        return self.source.fps

    def __iter__(self) -> Generator[LiveScore, None, None]:
        """Open the source and yield its segments as they are scored."""
        scorer, tracker = self.detector.scorer(), None
        pending: list[tuple[LiveSegment, SegmentFeatures]] = []
        timer: threading.Timer | None = None
        try:
            with contextlib.closing(iter(self.source)) as segments:
                for segment in segments:
                    if tracker is None:
                        tracker = self.detector.rule.tracker(self.fps)
                        if self.detector.config.duration is not None:
                            timer = threading.Timer(self.detector.config.duration, self.source.stop)
                            timer.daemon = True
                            timer.start()
                    pending.append((segment, self._features(segment, len(self._collector) + len(pending))))
                    if len(pending) == scorer.hop:
                        yield from self._score(scorer, tracker, pending)
                        pending = []
                if pending and tracker is not None:
                    yield from self._score(scorer, tracker, pending)
        finally:
            if timer is not None:
                timer.cancel()

    def _features(self, segment: LiveSegment, number: int) -> SegmentFeatures:
        settings = self.detector.settings
        before = None if segment.before is None else torch.from_numpy(segment.before)
        maps = event_maps(torch.from_numpy(segment.frames), settings, before).numpy()[None]
        image, event, encoded = encode_segments(cast(Encoder, self._encoder), [segment.frames], maps, settings)
        return SegmentFeatures(
            index=number,
            start=number * SEGMENT / self.fps,
            end=(number + 1) * SEGMENT / self.fps,
            image=image[0],
            event=event[0],
            density=float(maps.mean(dtype=np.float64)),
            thumbnail=segment.thumbnail,
            encoded=encoded[0],
        )

    def _score(
        self, scorer: Scorer, tracker: AlarmTracker, pending: list[tuple[LiveSegment, SegmentFeatures]]
    ) -> Generator[LiveScore, None, None]:
        features = [entry[1] for entry in pending]
        rows = score_segments(scorer, features, self.timing)
        done = time.monotonic()
        self._collector.add(features, rows)
        for (segment, feature), row in zip(pending, rows, strict=True):
            self.timing.latencies.append(done - segment.read)
            self.clocks.append(segment.clock)
            alarms = tracker.feed(float(row[0]), feature.start, feature.end)
            yield LiveScore(feature.index, feature.start, feature.end, row, alarms, segment.clock, done - segment.read)

    def detection(self) -> Detection:
        """Return the scores, intervals and timing so far, at any time.

        Raises:
            UserError: no segment has been scored yet.
        """
        if not len(self._collector):
            raise UserError(
                f"{self.source.shown} gave fewer than the {SEGMENT} frames of one segment, so there is no score: check"
                " the source, or raise --duration."
            )
        timing, health = self.timing, self.source.health
        timing.segments, timing.total = len(self._collector), time.perf_counter() - self._begin
        timing.encode = self._encoder.seconds
        scores = self._collector.scores(self.name, self.fps, self.source.shown)
        live = {
            "frames_read": health.frames,
            "frames_dropped": health.dropped,
            "connections_lost": dict(health.lost),
            "gave_up": self.source.gave_up,
            "clock": self.clocks.tolist(),
        }
        return Detection(
            self.source.shown,
            scores,
            self.detector.rule.intervals(scores),
            self._collector.pictures(),
            self.detector.rule,
            timing,
            live=live,
        )
