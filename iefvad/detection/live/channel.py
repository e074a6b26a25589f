"""One camera among those that are watched: its source, its state, and everything that was scored."""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from iefvad.detection.alarm import Alarm, AlarmTracker
from iefvad.detection.detector import Detector, score_segments
from iefvad.detection.live.arrival import Lost
from iefvad.detection.live.cameras import Camera
from iefvad.detection.live.sources import LiveSegment, LiveSource
from iefvad.detection.result import Collector, Detection, Timing
from iefvad.extraction.stream import SegmentFeatures
from iefvad.utils.addresses import scrub
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT

_JUMP = 1.5  # missing frames from which a stretch of time is named as lost
_LISTED = 1000  # stretches that the results list; memory must not grow with days of a bad connection


@dataclass(frozen=True)
class LiveAlarm(Alarm):
    """The start or the end of a flagged interval of a camera.

    Attributes:
        camera: Name of the camera.
        address: Its address without credentials.
        number: Number of the alarm of this camera, from 1; its start and its end have the same.
        threshold: Score that the interval reached.
        began: Time of day of the start of the interval, in Unix seconds.
        until: Time of day of `end`, in Unix seconds.
        picture: A small picture of the segment with the highest score, uint8 RGB (H, W, 3); None where it is not known.
    """

    camera: str = ""
    address: str = ""
    number: int = 0
    threshold: float = 0.0
    began: float = 0.0
    until: float = 0.0
    picture: np.ndarray | None = None


@dataclass
class LiveScore:
    """One scored segment of live input.

    Attributes:
        camera: Name of the camera.
        number: Number of the segment, from 0.
        start: Start of the segment in seconds since the first frame, by the arrival of the frames.
        end: End of the segment in seconds.
        row: Score, w_img, w_evt and gain, (4,) float32; NaN for what the network does not have.
        alarms: Alarms that start or end with this segment.
        clock: Time of day of its last frame, in Unix seconds.
        latency: Seconds from reading its last frame to its score.
        thumbnail: A small picture of the middle frame, uint8 RGB (H, W, 3).
        lost: The stretch of time without scored frames before this segment, if there is one.
    """

    camera: str
    number: int
    start: float
    end: float
    row: np.ndarray
    alarms: list[LiveAlarm]
    clock: float
    latency: float
    thumbnail: np.ndarray
    lost: Lost | None = None


class Channel:
    """Reads one camera and scores its segments with its own state, alarm rule and results.

    Attributes:
        camera: The camera.
        source: What reads it.
        rule: How its scores become flagged intervals.
        timing: Time spent.
        clocks: Time of day of the last frame of each segment.
        lost: The first stretches of time without scored frames.
        lost_seconds: Their total length, those included that are not listed.
        segments: Number of scored segments.
    """

    def __init__(
        self,
        detector: Detector,
        camera: Camera,
        *,
        ahead: int | None = None,
        change: threading.Condition | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a camera.

        Args:
            detector: The detector.
            camera: The camera. Its own settings go before those of the detector.
            ahead: As for `LiveSource`.
            change: As for `LiveSource`.
            notify: As for `LiveSource`.

        Raises:
            UserError: a setting of the camera is out of range.
        """
        config = camera.configured(detector.config)
        self.camera = camera
        self._detector = detector
        self.rule = detector.rule_of(config) if camera.settings else detector.rule
        self.source = LiveSource(
            camera.address,
            retries=config.retries,
            retry_seconds=config.retry_seconds,
            timeout=config.timeout,
            tail=config.tail,
            ahead=ahead,
            change=change,
            notify=notify,
        )
        self.timing = Timing()
        self.clocks: array[float] = array("d")
        self.lost: list[Lost] = []
        self.lost_seconds = 0.0
        self.segments = 0
        self._end = self._clock = 0.0  # end and time of day of the latest segment
        self._alarms = 0
        self._alarm_open = False
        self._highest: tuple[float, np.ndarray] | None = None  # of the alarm that goes on or may begin
        self._collector = Collector(config.thumbnails)
        self._scorer = detector.scorer()
        self._tracker: AlarmTracker | None = None
        self._pending: deque[tuple[LiveSegment, SegmentFeatures]] = deque()
        self._begin = time.perf_counter()

    @property
    def name(self) -> str:
        """Name of the camera."""
        return self.camera.name

    @property
    def label(self) -> str:
        """Name and address of the camera, as they may be shown."""
        return self.name if self.name == self.source.shown else f"{self.name} ({self.source.shown})"

    @property
    def fps(self) -> float:
        """Frames per second of the source; 0 until it is known."""
        return self.source.fps

    @property
    def next_number(self) -> int:
        """Number of the next segment that comes from the source."""
        return self.segments + len(self._pending)

    @property
    def trouble(self) -> str | None:
        """Why the camera was lost, where it was."""
        failure = self.source.failure
        if self.source.gave_up or failure is None:
            return self.source.gave_up
        return str(failure) if isinstance(failure, UserError) else f"{type(failure).__name__}: {scrub(str(failure))}"

    def add(self, segment: LiveSegment, features: SegmentFeatures) -> list[LiveScore]:
        """Take the next segment with its features. Returns what is scored now."""
        self._pending.append((segment, features))
        return self.score() if len(self._pending) == self._scorer.hop else []

    def score(self) -> list[LiveScore]:
        """Score the segments that wait for the others of their hop."""
        if not self._pending:
            return []
        if self._tracker is None:
            self._tracker = self.rule.tracker(self.fps)
        features = [entry[1] for entry in self._pending]
        rows = score_segments(self._scorer, features, self.timing)
        done = time.monotonic()
        self._collector.add(features, rows)
        scored = []
        for (segment, _), row in zip(self._pending, rows, strict=True):
            lost = self._missing(segment)
            self._end, self._clock = segment.end, segment.clock
            latency = done - segment.read
            self.timing.latencies.append(latency)
            self.clocks.append(segment.clock)
            alarms = self._alarms_of(self._tracker, segment, float(row[0]))
            scored.append(
                LiveScore(
                    camera=self.name,
                    number=self.segments,
                    start=segment.start,
                    end=segment.end,
                    row=row,
                    alarms=alarms,
                    clock=segment.clock,
                    latency=latency,
                    thumbnail=segment.thumbnail,
                    lost=lost,
                )
            )
            self.segments += 1
        self._pending.clear()
        return scored

    def finish(self) -> list[LiveAlarm]:
        """Return the end of the alarm that goes on, if there is one. No segment may come after it."""
        return [] if self._tracker is None else [self._alarm(alarm) for alarm in self._tracker.finish()]

    def _alarms_of(self, tracker: AlarmTracker, segment: LiveSegment, score: float) -> list[LiveAlarm]:
        alarms = tracker.feed(score, segment.start, segment.end)
        ended = [self._alarm(alarm) for alarm in alarms if alarm.kind == "end"]
        if score >= self.rule.low and (self._highest is None or score > self._highest[0]):
            self._highest = (score, segment.thumbnail)
        elif score < self.rule.low and not self._alarm_open:
            self._highest = None
        return ended + [self._alarm(alarm) for alarm in alarms if alarm.kind == "start"]

    def _alarm(self, alarm: Alarm) -> LiveAlarm:
        """Add to an alarm of the latest segment what the world outside must know."""
        self._alarm_open = alarm.kind == "start"
        self._alarms += self._alarm_open
        picture = None if self._highest is None else self._highest[1]
        if not self._alarm_open:
            self._highest = None
        return LiveAlarm(
            **vars(alarm),
            camera=self.name,
            address=self.source.shown,
            number=self._alarms,
            threshold=self.rule.threshold,
            began=self._clock - (self._end - alarm.start),
            until=self._clock - (self._end - alarm.end),
            picture=picture,
        )

    def _missing(self, segment: LiveSegment) -> Lost | None:
        missing = segment.start - self._end
        if not segment.gap or missing * self.fps < _JUMP:
            return None
        lost = Lost(self._end, missing, max(1, round(missing * self.fps)), segment.gap)
        self.lost_seconds += missing
        if len(self.lost) < _LISTED:
            self.lost.append(lost)
        return lost

    def detection(self) -> Detection:
        """Return the scores, intervals and timing so far, at any time.

        Raises:
            UserError: no segment has been scored yet.
        """
        if not self.segments:
            raise UserError(
                f"{self.source.shown} gave fewer than the {SEGMENT} frames of one segment, so there is no score: check"
                " the source, or raise --duration."
            )
        timing, health = self.timing, self.source.health
        timing.segments, timing.total = self.segments, time.perf_counter() - self._begin
        scores = self._collector.scores(self.name, self.fps, self.label)
        live = {
            "camera": self.name,
            "frames_read": health.frames,
            "frames_dropped": health.dropped,
            "connections_lost": dict(health.lost),
            "gave_up": self.trouble,
            "fps_told": self.source.arrivals.told or None,
            "lost_seconds": round(self.lost_seconds, 3),
            "lost": [asdict(lost) for lost in self.lost],
            "clock": self.clocks.tolist(),
        }
        intervals = self.rule.intervals(scores)
        return Detection(
            self.source.shown,
            scores,
            intervals,
            self._collector.pictures(intervals),
            self.rule,
            timing,
            live=live,
            warnings=self._detector.advice(scores, self._collector, self.rule),
        )
