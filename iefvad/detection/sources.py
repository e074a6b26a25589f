"""Live input: segments of a stream or a camera, with reconnection and a bounded delay."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import cv2
import numpy as np

from iefvad.detection.connections import CameraConnection, ConnectionLostError, StreamConnection, connect
from iefvad.utils.addresses import hint, shown
from iefvad.utils.errors import UserError
from iefvad.video import HEIGHT, SEGMENT, WIDTH, resize

_AHEAD = 8  # segments that may wait for scoring, 4 MB each; of more, the oldest is dropped
_LONGEST_WAIT = 30.0  # seconds between two attempts to connect
_PATIENCE = 0.2  # seconds after which a wait notices a stop
_THUMBNAIL_HEIGHT = 120


@dataclass
class LiveSegment:
    """16 frames of live input.

    Attributes:
        frames: The frames, uint8 RGB (16, 256, 340, 3).
        thumbnail: A small picture of the middle frame, uint8 RGB (H, W, 3).
        read: Time at which the last frame was read, as `time.monotonic()` gives it.
        clock: The same time of day, in Unix seconds.
        before: The frame before the first one, uint8 RGB (256, 340, 3). None at the beginning and after lost frames.
    """

    frames: np.ndarray
    thumbnail: np.ndarray
    read: float
    clock: float
    before: np.ndarray | None = None


@dataclass
class Health:
    """What happened to a source.

    Attributes:
        frames: Number of frames read.
        dropped: Number of these that were not scored.
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

    Attributes:
        address: The address.
        shown: The address as it may be shown.
        fps: Frames per second; 0 before the first segment.
        health: Frames read and dropped, and connections lost.
        gave_up: After iteration: why it ended. None where the source came to its end or was stopped.
    """

    def __init__(
        self,
        address: str,
        *,
        retries: int = 5,
        retry_seconds: float = 1.0,
        timeout: float = 10.0,
        tail: str = "repeat",
        notify: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a source; iteration opens it.

        Args:
            address: Address of a stream, number of a camera, or a video device.
            retries: Maximum number of attempts to reconnect, one after another without a whole segment.
            retry_seconds: Seconds before the first attempt; each further wait is twice as long, at most 30 s.
            timeout: Seconds without an answer or a frame after which a connection counts as lost.
            tail: Last segment of fewer than 16 frames: "drop", or "repeat" its last frame.
            notify: Called with a text when a connection is lost and when it is made again.
        """
        self.address = address
        self.shown = shown(address)
        self.retries, self.retry_seconds, self.timeout, self.tail = retries, retry_seconds, timeout, tail
        self._notify = notify or (lambda text: None)
        self.fps = 0.0
        self.health = Health()
        self.gave_up: str | None = None
        self._waiting: deque[LiveSegment] = deque()
        self._change = threading.Condition()
        self._ended = self._stop = False
        self._failure: BaseException | None = None
        self._partial: list[np.ndarray] = []
        self._before: np.ndarray | None = None
        self._thumbnail: np.ndarray | None = None
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)

    def __iter__(self) -> Generator[LiveSegment, None, None]:
        """Start reading and yield the segments."""
        self._thread.start()
        try:
            while True:
                with self._change:
                    while not self._waiting and not self._ended:
                        self._change.wait(_PATIENCE)  # not every system can interrupt a wait without a limit
                    if not self._waiting:
                        break
                    segment = self._waiting.popleft()
                    self._change.notify_all()
                yield segment
            if self._failure is not None:
                raise self._failure
        finally:
            self.stop()

    def stop(self) -> None:
        """End the reading thread, from any thread. Segments that it has read are still yielded."""
        with self._change:
            self._stop = True
            self._change.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            # It may be in a read that only the timeout ends. It is a daemon, so the process need not wait for it.
            self._thread.join(2.0)

    def _work(self) -> None:
        try:
            self._connect_and_read()
        except BaseException as error:
            self._failure = error
        finally:
            self.health.dropped += len(self._partial)
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _connect_and_read(self) -> None:
        failed = 0
        while not self._stop:
            before = self.health.frames
            try:
                with contextlib.closing(connect(self.address, self.timeout)) as connection:
                    self.fps = self.fps or connection.fps
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
            wait = min(_LONGEST_WAIT, self.retry_seconds * 2 ** (failed - 1))
            self._notify(f"no connection ({reason}): attempt {failed} of {self.retries} in {wait:.3g} s")
            self._pause(wait)

    def _read(self, connection: StreamConnection | CameraConnection) -> None:
        skip = self.health.frames if connection.finite else 0
        if not connection.finite:
            self.health.dropped += len(self._partial)
            self._partial, self._before = [], None
        for frame in connection:
            if self._stop:
                return
            if skip:
                skip -= 1
                continue
            self.health.frames += 1
            self._add(frame, wait=connection.finite)
        if self._partial and self.tail == "repeat":
            self._partial += [self._partial[-1]] * (SEGMENT - len(self._partial))
            self._hand_over(wait=True)

    def _add(self, frame: np.ndarray, *, wait: bool) -> None:
        if len(self._partial) == SEGMENT // 2 or self._thumbnail is None:
            height, width = frame.shape[:2]
            size = (max(1, round(_THUMBNAIL_HEIGHT * width / height)), _THUMBNAIL_HEIGHT)
            self._thumbnail = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        self._partial.append(resize(frame[None], (WIDTH, HEIGHT))[0])
        if len(self._partial) == SEGMENT:
            self._hand_over(wait=wait)

    def _hand_over(self, *, wait: bool) -> None:
        assert self._thumbnail is not None
        segment = LiveSegment(np.stack(self._partial), self._thumbnail, time.monotonic(), time.time(), self._before)
        self._before = self._partial[-1]
        self._partial, self._thumbnail = [], None
        with self._change:
            while wait and len(self._waiting) >= _AHEAD and not self._stop:
                self._change.wait(_PATIENCE)
            if len(self._waiting) >= _AHEAD:
                self._waiting.popleft()
                self.health.dropped += SEGMENT
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
