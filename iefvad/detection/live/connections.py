"""One connection to a stream or a camera: its address, and its frames as they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np

from iefvad.utils.addresses import check_address
from iefvad.utils.errors import UserError
from iefvad.video import Upright, frame_rate, silence_ffmpeg
from iefvad.video.limits import MAX_PIXELS
from iefvad.video.opening import ffmpeg_limit


class ConnectionLostError(Exception):
    """The source ended or failed although it should go on. The message says how."""


def is_live(text: str) -> bool:
    """Tell whether a text is the address of a stream, the number of a camera or a video device. A file is not live."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+://.+", text, re.DOTALL):
        return not text.lower().startswith("file:")
    return bool(re.fullmatch(r"\d{1,3}|/dev/video\d+", text)) and not Path(text).is_file()


def connect(address: str, timeout: float) -> StreamConnection | CameraConnection:
    """Open a connection to a stream or a camera.

    Args:
        address: Address of a stream, number of a camera, or a video device.
        timeout: Seconds without an answer or a frame after which a stream counts as lost.

    Raises:
        ConnectionLostError: there is no answer, or no such camera.
        UserError: the protocol is unknown, or user and password have characters that must be escaped.
    """
    check_address(address)
    return StreamConnection(address, timeout) if "://" in address else CameraConnection(address)


class StreamConnection:
    """A connection to a stream, by FFmpeg. Iterating yields its frames.

    Attributes:
        fps: Frames per second that the stream tells; 0 where it tells none.
        finite: Whether the source has a known end, like a file on a web server. Then no frame may be left out.
    """

    def __init__(self, address: str, timeout: float) -> None:
        """Open the connection; see `connect`."""
        options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
        options["max_pixels"] = ffmpeg_limit(MAX_PIXELS)
        try:
            silence_ffmpeg()
            self._container = av.open(address, mode="r", timeout=timeout, options=options)
        except av.error.ProtocolNotFoundError as error:
            scheme = address.partition("://")[0]
            raise UserError(
                f"{scheme}:// is not a protocol of this FFmpeg; use another one, such as rtsp, http, udp or tcp."
            ) from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ConnectionLostError(_reason(error, timeout)) from error
        try:
            stream = self._container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise ConnectionLostError("it contains no video")
            self._stream = stream
            stream.codec_context.options = {**stream.codec_context.options, "max_pixels": ffmpeg_limit(MAX_PIXELS)}
            stream.thread_type = "SLICE"  # threads by frame would delay as many frames as there are threads
            self.finite = bool(self._container.duration)
            # FFmpeg guesses 25 where a camera tells no rate, and makes up the time stamps from it.
            self.fps = frame_rate(stream) if self.finite else float(stream.average_rate or 0)
            self._end = (self._container.duration or 0) / av.time_base
        except BaseException:
            self._container.close()
            raise
        self._timeout = timeout

    def __iter__(self) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yield the frames, uint8 RGB (H, W, 3), with their presentation times in seconds where they have one.

        Raises:
            ConnectionLostError: they end too early.
        """
        upright = Upright()
        reached = 0.0
        start = self._container.start_time or 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue  # before the first key frame, or damaged on the way
                for frame in frames:
                    stamp = None if frame.time is None else frame.time - start / av.time_base
                    reached = max(reached, stamp or 0.0)
                    yield upright(frame), stamp
        except (av.error.FFmpegError, OSError) as error:
            raise ConnectionLostError(_reason(error, self._timeout)) from error
        if not self.finite:
            raise ConnectionLostError("the stream ended")
        if self._end - reached > max(1.0, 0.02 * self._end):
            raise ConnectionLostError(f"it ended too early, after {reached:.1f} of {self._end:.1f} s")

    def close(self) -> None:
        """Close the connection."""
        self._container.close()


class CameraConnection:
    """A camera, by OpenCV. Iterating yields its frames.

    Attributes:
        fps: Frames per second that the camera tells; 0 where it tells none.
        finite: False, because a camera has no known end.
    """

    finite = False

    def __init__(self, device: str) -> None:
        """Open a camera by its number or device; see `connect`."""
        self._capture: Any = cv2.VideoCapture(int(device) if device.isdigit() else device)
        if not self._capture.isOpened():
            self._capture.release()
            raise ConnectionLostError("there is no such camera, or access to it is denied")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 0 < rate < 1000 else 0.0

    def __iter__(self) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yield the frames, uint8 RGB (H, W, 3), and None: a camera gives no presentation times.

        Raises:
            ConnectionLostError: there are no more.
        """
        while True:
            found, frame = self._capture.read()
            if not found:
                raise ConnectionLostError("the camera gives no more frames")
            yield np.ascontiguousarray(frame[:, :, ::-1]), None

    def close(self) -> None:
        """Release the camera."""
        self._capture.release()


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, (av.error.ExitError, TimeoutError)):
        return f"no answer within {timeout:g} s"
    # Never the whole message, because it repeats the address, perhaps with a password.
    return getattr(error, "strerror", None) or type(error).__name__
