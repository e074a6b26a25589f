"""Live input: frames from a stream's address or a camera, with reconnection and a bounded delay."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from iefvad.utils.errors import UserError
from iefvad.video import HEIGHT, SEGMENT, WIDTH, frame_rate, resize, upright

_AHEAD = 8  # segments that wait for scoring, 4 MB each; beyond them the oldest is dropped
_LONGEST_WAIT = 30.0  # s between two attempts to connect
_PATIENCE = 0.2  # s; how soon a wait notices that it shall stop
_THUMBNAIL_HEIGHT = 120


class ConnectionLost(Exception):
    """The source ended or failed where it should go on; the message says how."""


@dataclass
class LiveSegment:
    """16 frames as they came: `frames` uint8 RGB (16, 256, 340, 3), `thumbnail` a small picture of the middle one.

    `read` is `time.monotonic()` and `clock` Unix seconds when the last frame was there.
    """

    frames: np.ndarray
    thumbnail: np.ndarray
    read: float
    clock: float


@dataclass
class Health:
    """What happened to a source: frames read and dropped, and how often a connection was lost for which reason."""

    frames: int = 0
    dropped: int = 0
    lost: Counter[str] = field(default_factory=Counter)


def is_live(text: str) -> bool:
    """True for a stream's address, a camera's number or a video device; an existing file is none."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+://.+", text):
        return not text.lower().startswith("file:")
    return bool(re.fullmatch(r"\d{1,3}|/dev/video\d+", text)) and not Path(text).is_file()


def without_credentials(address: str) -> str:
    """The address as it may be shown and kept: user, password and query are left out."""
    if "://" not in address:
        return f"camera {address}" if address.isdigit() else address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def file_stem(address: str) -> str:
    """Name of the result files of a live input."""
    return re.sub(
        r"[^A-Za-z0-9.]+", "_", without_credentials(address).partition("://")[2] or f"camera {address}"
    ).strip("_.")


class StreamConnection:
    """One connection to an address, by FFmpeg: iterate over its frames, uint8 RGB (H, W, 3).

    `finite` tells that the source has a known end (a file served by a web server), which nothing may be left out of.
    Raises ConnectionLost on construction where there is no answer within `timeout` seconds, and while iterating.
    """

    def __init__(self, address: str, timeout: float) -> None:
        options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
        try:
            self._container = av.open(address, mode="r", timeout=timeout, options=options)
        except av.error.ProtocolNotFoundError as error:
            scheme = address.partition("://")[0]
            raise UserError(
                f"{scheme}:// is no protocol of this FFmpeg; give rtsp, http, udp, tcp or the like."
            ) from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ConnectionLost(_reason(error, timeout)) from error
        try:
            stream = self._container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise ConnectionLost("it carries no video")
            self._stream = stream
            stream.thread_type = "SLICE"  # threads by frame would hold back as many frames as there are threads
            self.fps = frame_rate(stream)
            self.finite = bool(self._container.duration)
            self._end = (self._container.duration or 0) / av.time_base
        except BaseException:
            self._container.close()
            raise
        self._timeout = timeout

    def __iter__(self) -> Iterator[np.ndarray]:
        converter = VideoReformatter()
        reached = 0.0
        start = self._container.start_time or 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue  # what was joined between two key frames, or damaged on the way
                for frame in frames:
                    if frame.time is not None:
                        reached = max(reached, frame.time - start / av.time_base)
                    yield upright(frame, converter)[0]
        except (av.error.FFmpegError, OSError) as error:
            raise ConnectionLost(_reason(error, self._timeout)) from error
        if not self.finite:
            raise ConnectionLost("the stream ended")
        if self._end - reached > max(1.0, 0.02 * self._end):
            raise ConnectionLost(f"it broke off after {reached:.1f} of {self._end:.1f} s")

    def close(self) -> None:
        """Hang up."""
        self._container.close()


class CameraConnection:
    """A camera by its number or device: iterate over its frames, uint8 RGB (H, W, 3), by OpenCV.

    Raises ConnectionLost on construction where there is none, and when it gives no more frames.
    """

    finite = False

    def __init__(self, device: str) -> None:
        self._capture: Any = cv2.VideoCapture(int(device) if device.isdigit() else device)
        if not self._capture.isOpened():
            self._capture.release()
            raise ConnectionLost("there is no such camera, or it may not be used")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 0 < rate < 1000 else 25.0

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            there, frame = self._capture.read()
            if not there:
                raise ConnectionLost("the camera gives no more frames")
            yield np.ascontiguousarray(frame[:, :, ::-1])

    def close(self) -> None:
        """Let the camera go."""
        self._capture.release()


class LiveSource:
    """Iterate over the `LiveSegment`s of an address or camera while a thread reads it.

    A lost connection is opened again, `retries` times in a row at most, with waits of `retry_seconds`, twice that, and
    so on. The frames of a segment that it broke off in are dropped, and so are the oldest segments where scoring cannot
    keep up; not where the source is finite: that one waits, and is read on where it broke off. `health` counts both.
    After iteration `gave_up` is the reason why it ended, None where it came to its own end or was stopped. `fps` is
    known from the first segment on; `notify` is told of losses. Raises UserError where no connection was made at all.
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
        self.address = address
        self.shown = without_credentials(address)
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
        self._thumbnail: np.ndarray | None = None
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)

    def __iter__(self) -> Generator[LiveSegment, None, None]:
        self._thread.start()
        try:
            while True:
                with self._change:
                    while not self._waiting and not self._ended:
                        self._change.wait(_PATIENCE)  # a wait without a limit could not be interrupted everywhere
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
        """End the reading thread; what it has read so far is still handed out. May be called from any thread."""
        with self._change:
            self._stop = True
            self._change.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            # It may sit in a read that only its time limit ends; it is a daemon, so the process need not wait for it.
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
                with contextlib.closing(self._connect()) as connection:
                    self.fps = self.fps or connection.fps
                    if failed:
                        self._notify("connected again")
                    self._read(connection)
                return
            except ConnectionLost as error:
                failed = 1 if self.health.frames - before >= SEGMENT else failed + 1
                self.health.lost[str(error)] += 1
                reason = str(error)
                if failed > self.retries:
                    self._give_up(reason)
                    return
            wait = min(_LONGEST_WAIT, self.retry_seconds * 2 ** (failed - 1))
            self._notify(f"no connection ({reason}): attempt {failed} of {self.retries} in {wait:.3g} s")
            self._pause(wait)

    def _connect(self) -> StreamConnection | CameraConnection:
        if "://" in self.address:
            return StreamConnection(self.address, self.timeout)
        return CameraConnection(self.address)

    def _read(self, connection: StreamConnection | CameraConnection) -> None:
        skip = self.health.frames if connection.finite else 0
        if not connection.finite:
            self.health.dropped += len(self._partial)
            self._partial = []
        for frame in connection:
            if self._stop:
                return
            if skip:
                skip -= 1
                continue
            self.health.frames += 1
            self._add(frame, wait=connection.finite)
        if self._partial and self.tail == "repeat":
            missing = SEGMENT - len(self._partial)
            self._partial += [self._partial[-1]] * missing
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
        segment = LiveSegment(np.stack(self._partial), self._thumbnail, time.monotonic(), time.time())
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
                f"{self.shown} cannot be reached (attempts: {self.retries + 1}): {reason}; check the address and that"
                " it is on, or allow more with --retries and --timeout."
            )
        self.gave_up = f"{self.shown} was lost and did not come back (attempts: {self.retries}): {reason}"

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._change:
            while not self._stop and (left := until - time.monotonic()) > 0:
                self._change.wait(left)


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, (av.error.ExitError, TimeoutError)):
        return f"no answer within {timeout:g} s"
    # Never the whole message: it repeats the address, and with it a password.
    return getattr(error, "strerror", None) or type(error).__name__
