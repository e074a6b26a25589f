"""The time of every frame of a video, without decoding it, and single pictures of it by time."""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.video.clock import FrameClock
from iefvad.video.decoding import ASSUMED_RATE, Decoder, has_stamps, stated_rate
from iefvad.video.folders import FolderDecoder, check_rate, read_folder
from iefvad.video.limits import MAX_FRAMES
from iefvad.video.opening import opened
from iefvad.video.orientation import Upright

_NEAR = 0.001  # seconds: times that came through text or a browser are rounded
_AHEAD = 3.0  # seconds of decoding on, instead of a seek
_EARLIER = (0.0, 2.0, 10.0, 60.0)  # seconds before the wanted time to seek to, where an index is wrong
_FAILURES = 20
_BROWSER = {"mov": ("h264", "av1", "vp9"), "matroska": ("h264", "av1", "vp8", "vp9")}
_BROWSER_PIXELS = ("yuv420p", "yuvj420p")


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown.

    Attributes:
        times: Start of each frame in seconds, in order, as `docs/specification.md#clock` defines it.
        end: Time in seconds at which the last frame ends.
        rate: Frames per second.
        stamps: Time stamps of the frames in the file, in order; None where the file has none that can be used.
        browser: Whether browsers can play the file.
    """

    times: list[float]
    end: float
    rate: float
    stamps: list[int] | None = None
    browser: bool = False

    @property
    def _near(self) -> float:
        return min(_NEAR, 0.25 / self.rate)

    def shown(self, seconds: float) -> int:
        """Return the number of the frame that is shown at a time, from 0."""
        return min(max(bisect_right(self.times, seconds + self._near) - 1, 0), len(self.times) - 1)

    def frames(self, start: float, end: float) -> tuple[int, int]:
        """Return the frames [first, last) that are shown within an interval of seconds. There is at least one."""
        first = self.shown(start)
        return first, max(bisect_left(self.times, end - self._near), first + 1)

    def seconds(self, frame: int) -> float:
        """Return the time at which a frame starts; the end of the video for the frame after the last."""
        return self.times[frame] if frame < len(self.times) else self.end


def read_timeline(path: PathLike, fps: float | None = None) -> Timeline:
    """Read the times of a video's frames from its packets, which costs a fraction of decoding it.

    In a damaged file, frames that do not decode are counted too.

    Args:
        path: The video file, or a folder of frames.
        fps: Frames per second of a folder of frames.

    Raises:
        UserError: It is not a video, or has no frames.
    """
    path = Path(path)
    if path.is_dir():
        folder, rate = read_folder(path), check_rate(fps)
        times = [place / rate for place in folder.places]
        return Timeline(times, times[-1] + 1 / rate, rate)
    with opened(path) as (container, stream, _):
        rate_stated = stated_rate(container, stream)
        rate = rate_stated or ASSUMED_RATE
        base = stream.time_base or Fraction(0)
        found, last = _packets(container, stream)
        if not found:
            raise UserError(f"{path} contains no video frames; leave it out or fetch it again")
        known = [stamp for stamp in found if stamp is not None]
        zero = None if container.start_time is None else container.start_time / av.time_base
        clock = FrameClock(rate, assumed=rate_stated is None, zero=zero)
        # AVI with reordered pictures and raw streams do not say when a frame is shown: frames are counted.
        usable = len(known) == len(found) and base and has_stamps(container, stream)
        stamps = sorted(known) if usable else None
        if stamps is not None:
            times = [clock.feed(float(stamp * base)) for stamp in stamps]
        else:
            times = [clock.feed(None) for _ in found]
        usual = clock.usual
        kind, codec = container.format.name.partition(",")[0], stream.codec_context
        plays = codec.name in _BROWSER.get(kind, ()) and getattr(codec, "pix_fmt", None) in _BROWSER_PIXELS
        return Timeline(times, times[-1] + (last if 0 < last <= max(1.0, 4 * usual) else usual), rate, stamps, plays)


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[int | None], float]:
    """Return the stamps of the packets that show a frame, and the duration of the last one in seconds."""
    found: list[int | None] = []
    latest, duration = -(2**63), 0.0
    with contextlib.suppress(av.error.FFmpegError, OSError):
        for packet in container.demux(stream):
            if not packet.size or getattr(packet, "is_discard", False) or (not found and not packet.is_keyframe):
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            found.append(stamp)
            if stamp is not None and stamp > latest:
                latest, duration = stamp, float((packet.duration or 0) * (stream.time_base or 0))
            if len(found) > MAX_FRAMES:
                break
    return found, duration


class Pictures:
    """Decodes single pictures of a video, for one thread at a time. It keeps its place, so playing on costs no seek.

    Args:
        path: The video file, or a folder of frames.
        timeline: Its times.
        fps: Frames per second of a folder of frames.
    """

    def __init__(self, path: PathLike, timeline: Timeline, fps: float | None = None) -> None:
        self._path, self._timeline, self._fps = Path(path), timeline, fps
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._opened: tuple[Any, Any] | None = None
        self._frames: Iterator[Any] | None = None
        self._counted: tuple[int, np.ndarray] | None = None  # number and picture of the last frame that was counted
        self._stamp: int | None = None
        self._upright = Upright()

    def at(self, seconds: float) -> np.ndarray:
        """Return the picture that is shown at a time, or the nearest that can be decoded, uint8 (H, W, 3) RGB.

        Raises:
            UserError: No picture can be decoded.
        """
        with self._lock:
            frame = self._timeline.shown(seconds)
            if self._path.is_dir():
                return self._of_folder(frame)
            if self._timeline.stamps is None:
                return self._counting(frame)
            return self._of_file(self._timeline.stamps[frame])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._frames = self._opened = self._counted = self._stamp = None
        self._stack.close()
        self._stack = contextlib.ExitStack()

    def _of_folder(self, frame: int) -> np.ndarray:
        for image in FolderDecoder(self._path, self._fps, keep=True, first=frame):
            return image
        raise UserError(f"picture {frame} of {self._path} cannot be read")

    def _counting(self, frame: int) -> np.ndarray:
        """Decode from the beginning: a file without time stamps has no index."""
        if self._frames is None or self._counted is None or self._counted[0] > frame:
            self._close()
            self._frames = enumerate(Decoder(self._path, keep=True))
        if self._counted is None or self._counted[0] < frame:
            for number, image in self._frames:
                self._counted = number, image
                if number >= frame:
                    break
        if self._counted is None:
            raise UserError(f"no picture of {self._path} can be decoded")
        return self._counted[1]

    def _of_file(self, stamp: int) -> np.ndarray:
        if self._opened is None:
            container, stream, _ = self._stack.enter_context(opened(self._path))
            self._opened = container, stream
        container, stream = self._opened
        tick = float(stream.time_base or 1)
        if self._stamp is None or not self._stamp < stamp <= self._stamp + _AHEAD / tick:
            for earlier in _EARLIER:
                with contextlib.suppress(av.error.FFmpegError, OSError):
                    container.seek(int(stamp - earlier / tick), stream=stream, backward=True)
                self._frames, self._stamp = None, None
                image = self._forward(container, stream, stamp, late=earlier == _EARLIER[-1])
                if image is not None:
                    return image
        else:
            image = self._forward(container, stream, stamp, late=True)
            if image is not None:
                return image
        self._close()
        return self._counting(bisect_left(self._timeline.stamps or [], stamp))

    def _forward(self, container: Any, stream: Any, stamp: int, *, late: bool) -> np.ndarray | None:
        """Decode up to a stamp. None if the first picture is after it and it may be `late`, or nothing decodes."""
        failures, last, first = 0, None, True
        while failures < _FAILURES:
            if self._frames is None:
                self._frames = container.decode(stream)
            try:
                frame = next(self._frames, None)
            except (av.error.FFmpegError, OSError):
                failures, self._frames = failures + 1, None
                continue
            if frame is None:
                self._frames = None
                break
            found = frame.pts if frame.pts is not None else frame.dts
            if found is None:
                continue
            if found > stamp and first and not late:
                return None
            last, first, self._stamp = frame, False, found
            if found >= stamp:
                break
        return None if last is None else self._upright(last)
