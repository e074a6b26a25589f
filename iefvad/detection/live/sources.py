"""Live input: segments of a stream or a camera, with reconnection and a bounded delay."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from iefvad.detection.live.arrival import Arrivals
from iefvad.detection.live.connections import CameraConnection, ConnectionLostError, StreamConnection, connect
from iefvad.utils.addresses import hint, shown
from iefvad.utils.errors import UserError
from iefvad.video import HEIGHT, SEGMENT, WIDTH, resize

_AHEAD = 8  # segments that may wait for scoring, 4 MB each; of more, the oldest is dropped
_LONGEST_WAIT = 30.0  # seconds between two attempts to connect
_PATIENCE = 0.2  # seconds after which a wait notices a stop
_THUMBNAIL_HEIGHT, _WIDEST_THUMBNAIL = 120, 1200
_TOO_SLOW = "scoring could not keep up"

State = Literal["connecting", "live", "waiting", "lost", "ended"]


@dataclass
class LiveSegment:
    """16 frames of live input.

    Attributes:
        frames: The frames, uint8 RGB (16, 256, 340, 3).
        thumbnail: A small picture of the middle frame, uint8 RGB (H, W, 3).
        start: Start in seconds since the first frame: arrival of the frame before, or presentation time in a finite
            source.
        end: End in seconds: arrival of the last frame, or presentation time of the frame after it.
        read: Time at which the last frame was read, as `time.monotonic()` gives it.
        clock: The same time of day, in Unix seconds.
        gap: Why time is missing between the segment before and this one; empty where none is.
        before: The frame before the first one, uint8 RGB (256, 340, 3). None at the beginning and after lost frames.
    """

    frames: np.ndarray
    thumbnail: np.ndarray
    start: float
    end: float
    read: float
    clock: float
    gap: str = ""
    before: np.ndarray | None = None


@dataclass
class Health:
    """What happened to a source.

    Attributes:
        frames: Number of frames read.
        dropped: Number of these that were not scored, without the last few when the user ends detection.
        lost: Reason → number of connections lost for it.
    """

    frames: int = 0
    dropped: int = 0
    lost: Counter[str] = field(default_factory=Counter)


class LiveSource:
    """A stream or a camera that a thread reads. Iterating yields its `LiveSegment`s.

    A lost connection is opened again. The frames of the segment in which it was lost are dropped. Where scoring cannot
    keep up, the oldest segments are dropped. A finite source loses nothing: it waits for scoring, and reading continues
    where the connection was lost. Iteration raises UserError where no frame was ever read.

    Several sources are read together by `start` and `take`; `change` is notified of every segment and every end.

    Attributes:
        address: The address.
        shown: The address as it may be shown.
        arrivals: When frames arrived.
        health: Frames read and dropped, and connections lost.
        state: "connecting"; "live": frames come; "waiting": for the next attempt to connect; "lost": given up; "ended".
        gave_up: After the end: why it ended. None where the source came to its end or was stopped.
        failure: After the end: the error that ended it, if one did.
    """

    def __init__(
        self,
        address: str,
        *,
        retries: int = 5,
        retry_seconds: float = 1.0,
        timeout: float = 10.0,
        tail: str = "repeat",
        ahead: int | None = None,
        change: threading.Condition | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a source; iteration or `start` opens it.

        Args:
            address: Address of a stream, number of a camera, or a video device.
            retries: Maximum number of attempts to reconnect, one after another without a whole segment.
            retry_seconds: Seconds before the first attempt; each further wait is twice as long, at most 30 s.
            timeout: Seconds without an answer or a frame after which a connection counts as lost.
            tail: Last segment of fewer than 16 frames: "drop", or "repeat" its last frame.
            ahead: Maximum number of segments that wait for scoring; 8 where None.
            change: Condition that guards what the threads share; several sources may have one.
            notify: Called with a text when a connection is lost and when it is made again.
        """
        self.address = address
        self.shown = shown(address)
        self.retries, self.retry_seconds, self.timeout, self.tail = retries, retry_seconds, timeout, tail
        self.arrivals = Arrivals()
        self.health = Health()
        self.state: State = "connecting"
        self.gave_up: str | None = None
        self.failure: Exception | None = None
        self._ahead = ahead or _AHEAD
        self._change = change or threading.Condition()
        self._notify = notify or (lambda text: None)
        self._finite_fps = 0.0
        self._waiting: deque[LiveSegment] = deque()
        self._ended = self._stop = False
        self._frames: list[np.ndarray] = []
        self._before: np.ndarray | None = None  # the last frame of the segment before, where nothing lies between
        self._times: list[tuple[float, float]] = []  # start and end of each frame of the segment
        self._thumbnail: np.ndarray | None = None
        self._origin: float | None = None
        self._gap = ""
        self._loose = False  # whether no frame came just before the first one of the segment
        self._paused = False  # whether frames were dropped for a pause since the last segment
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)

    @property
    def fps(self) -> float:
        """Frames per second, measured for a camera or a stream; 0 until it is known."""
        return self._finite_fps or self.arrivals.fps

    @property
    def ended(self) -> bool:
        """Whether nothing is read any more and nothing waits. The caller holds `change`, or one thread takes."""
        return self._ended and not self._waiting

    @property
    def ready(self) -> bool:
        """Whether a segment waits."""
        return bool(self._waiting)

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def take(self) -> LiveSegment | None:
        """Return the oldest segment that waits; None where none does."""
        with self._change:
            if not self._waiting:
                return None
            segment = self._waiting.popleft()
            self._change.notify_all()
        return segment

    def __iter__(self) -> Generator[LiveSegment, None, None]:
        """Start reading and yield the segments."""
        self.start()
        try:
            while True:
                with self._change:
                    while not self._waiting and not self._ended:
                        self._change.wait(_PATIENCE)  # not every system can interrupt a wait without a limit
                segment = self.take()
                if segment is None:
                    break
                yield segment
            if self.failure is not None:
                raise self.failure
        finally:
            self.stop()

    def stop(self, wait: float = 2.0) -> None:
        """End the reading thread, from any thread. Segments that it has read are still given out.

        Args:
            wait: Seconds to wait for its end. It may be in a read that only the timeout ends. It is a daemon, so the
                process need not wait for it.
        """
        with self._change:
            self._stop = True
            self._change.notify_all()
        if wait > 0 and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(wait)

    def _work(self) -> None:
        try:
            self._connect_and_read()
        except Exception as error:
            self.failure = error
        finally:
            if not self._stop:
                self.health.dropped += len(self._frames)
            with self._change:
                self.state = "ended" if self.gave_up is None and self.failure is None else "lost"
                self._ended = True
                self._change.notify_all()

    def _connect_and_read(self) -> None:
        failed = 0
        while not self._stop:
            before = self.health.frames
            try:
                with contextlib.closing(connect(self.address, self.timeout)) as connection:
                    if failed:
                        self._notify("connected again")
                    self._read(connection)
                return
            except ConnectionLostError as error:
                reason = str(error)
                self.health.lost[reason] += 1
                failed = 1 if self.health.frames - before >= SEGMENT else failed + 1
                if failed > self.retries:
                    self._give_up(reason)
                    return
            wait = min(_LONGEST_WAIT, self.retry_seconds * 2 ** min(failed - 1, 16))
            self.state = "waiting"
            self._notify(f"no connection ({reason}): attempt {failed} of {self.retries} in {wait:.3g} s")
            self._pause(wait)

    def _read(self, connection: StreamConnection | CameraConnection) -> None:
        if connection.finite:
            self._finite_fps = connection.fps
            self._read_finite(connection)
            return
        self.arrivals.told = self.arrivals.told or connection.fps
        self.arrivals.interrupt()
        self._drop_partial("the connection was lost" if self.health.frames else "")
        for frame, stamp in connection:
            if self._stop:
                return
            self.state = "live"
            self.health.frames += 1
            self._arrive(frame, _arrival(), stamp)

    def _arrive(self, frame: np.ndarray, now: float, stamp: float | None) -> None:
        """Add a frame of a camera. Its time reaches from the arrival of the frame before it to its own."""
        before = self.arrivals.last
        if not self.arrivals.add(now, stamp) and not self._paused:
            # A segment shall not join two moments. A camera that pauses again and again still gets segments.
            self._drop_partial(f"no frames came for {now - (before or now):.1f} s")
            self._paused, before = True, None
        if not self._frames:
            self._loose = before is None
        if self._add(frame, now if before is None else before, now):
            if self._loose:  # only now it is known how long before its arrival the first frame began
                _, first = self._times[0]
                self._times[0] = (first - (now - first) / (SEGMENT - 1), first)
            self._hand_over(wait=False)

    def _read_finite(self, connection: StreamConnection | CameraConnection) -> None:
        """Read a source with a known end, such as a file on a web server. Its clock are its presentation times."""
        skip, each, last = self.health.frames, 1 / connection.fps, 0.0
        for frame, stamp in connection:
            if self._stop:
                return
            if skip:
                skip, last = skip - 1, last + each if stamp is None else stamp
                continue
            self.state = "live"
            start = stamp if stamp is not None else last + each if self.health.frames else 0.0
            if self._times:
                self._times[-1] = (self._times[-1][0], max(start, self._times[-1][0]))
            if len(self._frames) == SEGMENT:
                self._hand_over(wait=True)
            self.health.frames, last = self.health.frames + 1, start
            self._add(frame, start, start + each)
        if self._frames and (self.tail == "repeat" or len(self._frames) == SEGMENT):
            self._frames += [self._frames[-1]] * (SEGMENT - len(self._frames))
            self._hand_over(wait=True)

    def _add(self, frame: np.ndarray, start: float, end: float) -> bool:
        """Add a frame to the segment and return whether it is complete."""
        if len(self._frames) == SEGMENT // 2 or self._thumbnail is None:
            height, width = frame.shape[:2]
            size = (min(max(1, round(_THUMBNAIL_HEIGHT * width / height)), _WIDEST_THUMBNAIL), _THUMBNAIL_HEIGHT)
            self._thumbnail = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        self._frames.append(resize(frame[None], (WIDTH, HEIGHT))[0])
        self._times.append((start, end))
        return len(self._frames) == SEGMENT

    def _drop_partial(self, gap: str) -> None:
        self.health.dropped += len(self._frames)
        self._frames, self._times, self._thumbnail, self._before = [], [], None, None
        self._gap = gap or self._gap

    def _hand_over(self, *, wait: bool) -> None:
        assert self._thumbnail is not None
        (start, _), (_, end) = self._times[0], self._times[-1]
        if self._origin is None:
            self._origin = start
        segment = LiveSegment(
            frames=np.stack(self._frames),
            thumbnail=self._thumbnail,
            start=start - self._origin,
            end=end - self._origin,
            read=time.monotonic(),
            clock=time.time(),
            gap=self._gap,
            before=self._before,
        )
        self._before = self._frames[-1]
        self._frames, self._times, self._thumbnail = [], [], None
        self._gap, self._paused = "", False
        with self._change:
            while wait and len(self._waiting) >= self._ahead and not self._stop:
                self._change.wait(_PATIENCE)
            if len(self._waiting) >= self._ahead:
                self._waiting.popleft()
                self.health.dropped += SEGMENT
                following = self._waiting[0] if self._waiting else segment
                following.gap = following.gap or _TOO_SLOW
            self._waiting.append(segment)
            self._change.notify_all()

    def _give_up(self, reason: str) -> None:
        if not self.health.frames:
            raise UserError(
                f"{self.shown} cannot be reached (attempts: {self.retries + 1}): {reason}; check the address and"
                f" that the source is on, or raise --retries and --timeout{hint(self.address)}."
            )
        self.gave_up = f"{self.shown} was lost and did not come back (attempts: {self.retries}): {reason}"

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._change:
            while not self._stop and (left := until - time.monotonic()) > 0:
                self._change.wait(left)


def _arrival() -> float:
    """Return the time at which a frame was read, in seconds. Tests replace it."""
    return time.monotonic()
