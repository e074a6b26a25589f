"""Several cameras, one encoder: scores, alarms and latencies as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from iefvad.detection.detector import Detector
from iefvad.detection.live.cameras import Camera, find_cameras
from iefvad.detection.live.channel import Channel, LiveScore
from iefvad.detection.live.sources import LiveSegment
from iefvad.detection.result import Detection
from iefvad.extraction.stream import SegmentFeatures, encode_segments, event_maps
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT

_WAITING = 32  # segments of all cameras that may wait for scoring, 4 MB each
_FEWEST, _MOST = 4, 8  # segments of each camera that may wait, however many cameras there are
_PATIENCE = 0.2  # seconds after which a wait notices Ctrl-C, which not every system delivers earlier
_LAST_READS = 2.0  # seconds that threads get to end


class Watch:
    """Scores streams and cameras: iterating yields a `LiveScore` per segment, of any camera.

    The encoder's batches are filled with segments of all cameras. Each camera has its own state, so that none can
    change the scores of another one. Where scoring cannot keep up, cameras take turns, and each drops its own oldest
    segments.

    Iteration ends when all sources have ended, or when the `duration` of the settings is over, counted from the first
    segment. It raises UserError where no camera gave a frame.

    Attributes:
        channels: One per camera, in order.
    """

    def __init__(
        self,
        detector: Detector,
        cameras: str | Sequence[Camera],
        notify: Callable[[str, str], None] | None = None,
    ) -> None:
        """Prepare the sources; iteration opens them.

        Args:
            detector: The detector. Its settings say how connections are retried.
            cameras: The cameras, or the address of one.
            notify: Called, by any thread, with the name of a camera and a text when a connection is lost, when it is
                made again, and when the camera is given up.

        Raises:
            UserError: a setting of a camera is out of range.
        """
        cameras = find_cameras([cameras]) if isinstance(cameras, str) else list(cameras)
        self.detector = detector
        self._notify = notify or (lambda name, text: None)
        self._change = threading.Condition()
        ahead = max(_FEWEST, min(_MOST, _WAITING // max(1, len(cameras))))
        self.channels = [
            Channel(detector, camera, ahead=ahead, change=self._change, notify=self._teller(camera.name))
            for camera in cameras
        ]
        # What an encoder takes at once; on a CPU one segment, which is as fast and has the smallest delay.
        self._portion = max(1, detector.encoder.batch // (SEGMENT * len(detector.settings["crops"])))
        self._turn = 0

    def __iter__(self) -> Generator[LiveScore, None, None]:
        """Open the sources and yield their segments as they are scored."""
        timer: threading.Timer | None = None
        told: set[str] = set()
        for channel in self.channels:
            channel.source.start()
        try:
            while portion := self._next_portion(told):
                if timer is None and self.detector.config.duration is not None:
                    timer = threading.Timer(self.detector.config.duration, self._stop)
                    timer.daemon = True
                    timer.start()
                for (channel, segment), features in zip(portion, self._encode(portion), strict=True):
                    yield from channel.add(segment, features)
            for channel in self.channels:
                yield from channel.score()
        finally:
            if timer is not None:
                timer.cancel()
            self._stop()
            until = time.monotonic() + _LAST_READS
            for channel in self.channels:
                channel.source.stop(max(0.0, until - time.monotonic()))
        self._raise_failure()

    @property
    def scored(self) -> list[Channel]:
        """The cameras that have a score, in order."""
        return [channel for channel in self.channels if channel.segments]

    def detections(self) -> list[Detection]:
        """Return the scores so far of all cameras that have any, in order.

        Raises:
            UserError: no camera has a score yet.
        """
        return [channel.detection() for channel in self.scored or self.channels[:1]]

    def _stop(self) -> None:
        for channel in self.channels:
            channel.source.stop(0)

    def _next_portion(self, told: set[str]) -> list[tuple[Channel, LiveSegment]]:
        """Wait for segments and take at most one of each camera, beginning with another one each time."""
        with self._change:
            while True:
                for channel in self.channels:
                    if channel.source.ended and channel.name not in told:
                        told.add(channel.name)
                        self._tell_end(channel)
                if any(channel.source.ready for channel in self.channels):
                    break
                if all(channel.source.ended for channel in self.channels):
                    return []
                self._change.wait(_PATIENCE)
        portion = []
        count = len(self.channels)
        for step in range(count):
            index = (self._turn + step) % count
            segment = self.channels[index].source.take()
            if segment is not None:
                portion.append((self.channels[index], segment))
                if len(portion) == self._portion:
                    break
        self._turn = (index + 1) % count
        return portion

    def _encode(self, portion: Sequence[tuple[Channel, LiveSegment]]) -> list[SegmentFeatures]:
        settings = self.detector.settings
        maps = np.stack([_event_map(segment, settings) for _, segment in portion])
        frames = [segment.frames for _, segment in portion]
        encoding = time.perf_counter()
        image, event, encoded = encode_segments(self.detector.encoder, frames, maps, settings)
        seconds = (time.perf_counter() - encoding) / len(portion)
        features = []
        for row, (channel, segment) in enumerate(portion):
            channel.timing.encode += seconds
            features.append(
                SegmentFeatures(
                    index=channel.next_number,
                    start=segment.start,
                    end=segment.end,
                    image=image[row],
                    event=event[row],
                    density=float(maps[row].mean(dtype=np.float64)),
                    thumbnail=segment.thumbnail,
                    encoded=encoded[row],
                )
            )
        return features

    def _teller(self, name: str) -> Callable[[str], None]:
        return lambda text: self._notify(name, text)

    def _tell_end(self, channel: Channel) -> None:
        if channel.trouble is not None and len(self.channels) > 1:
            self._notify(channel.name, channel.trouble)

    def _raise_failure(self) -> None:
        """Raise where the only camera failed, or none gave a frame. Otherwise what was scored is worth more."""
        failures = [channel.source.failure for channel in self.channels if channel.source.failure is not None]
        if len(self.channels) == 1 and failures:
            raise failures[0]
        if len(failures) == len(self.channels) and not any(c.source.health.frames for c in self.channels):
            raise UserError(f"none of the {len(failures)} cameras can be reached: check the addresses and the network.")


def _event_map(segment: LiveSegment, settings: Mapping[str, Any]) -> np.ndarray:
    before = None if segment.before is None else torch.from_numpy(segment.before)
    events: np.ndarray = event_maps(torch.from_numpy(segment.frames), settings, before).numpy()
    return events
