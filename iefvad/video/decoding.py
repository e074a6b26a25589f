"""Video files to uint8 frames, upright, in display order."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.utils.memory import memory_is_short
from iefvad.video import gif, matroska
from iefvad.video.clock import JUMP, FrameClock
from iefvad.video.damage import STRICT, Damage
from iefvad.video.folders import FolderDecoder
from iefvad.video.limits import MAX_PIXELS
from iefvad.video.opening import VideoFile, no_motion, opened, require_pixels
from iefvad.video.orientation import Upright

ASSUMED_RATE = 25.0
"""Frames per second where a file states nothing."""

_RAW_NAMES = "av1 cavsvideo dirac dnxhd evc h261 h263 h264 hevc m4v mjpeg mjpeg_2000 mpegvideo obu rawvideo vc1 vvc"
_RAW = frozenset(_RAW_NAMES.split())
"""FFmpeg's names of formats that hold pictures and nothing else, so also no time stamps."""

_FURTHER = 100  # packets that are looked at after a failure
_SLOPPY = 8  # packets from the first on that a strict decoder refuses, if the writer is careless and all are like that


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself.

    Attributes:
        path: The file.
        width: Width in pixels, after the rotation.
        height: Height in pixels, after the rotation.
        fps: Average number of frames per second.
        frames: Number of frames that the container claims, or None. The decoded number may differ by a few.
        rotation: 0, 90, 180 or 270 degrees counter-clockwise. The decoder applies it to every frame that it yields.
        assumed: Whether `fps` is assumed, because the file states no rate.
    """

    path: str
    width: int
    height: int
    fps: float
    frames: int | None
    rotation: int
    assumed: bool = False


def probe(path: PathLike, *, fps: float | None = None, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Read the size, rate and orientation of a video from its header and first frame.

    Args:
        path: The video file, or a folder of frames.
        fps: Frames per second of a folder of frames.
        max_pixels: Maximum number of pixels per frame.

    Raises:
        UserError: The file is missing, is not a video, has larger frames, or no frame can be decoded.
    """
    decoder = decoder_of(path, threads=False, keep=True, fps=fps, max_pixels=max_pixels)
    for frame in decoder:
        height, width = frame.shape[:2]
        clock = decoder.clock
        return VideoInfo(os.fspath(path), width, height, clock.rate, decoder.claimed, decoder.rotation, clock.assumed)
    raise UserError(decoder.problem or f"{path} contains no video frames; leave it out or fetch it again")


def read_frames(
    path: PathLike,
    *,
    on_truncated: Literal["error", "keep"] = "error",
    fps: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[np.ndarray]:
    """Decode a video in bounded memory.

    Every decoded frame is used, independent of its time stamp (variable frame rate); `timed_frames` also yields the
    times. Audio is ignored. Grey becomes RGB.

    Args:
        path: The video file, or a folder of frames.
        on_truncated: "error" raises after the last frame of a truncated or damaged file. "keep" takes what decodes.
        fps: Frames per second of a folder of frames.
        max_pixels: Maximum number of pixels per frame.

    Yields:
        Frames, uint8 (H, W, 3) RGB, upright, in display order.

    Raises:
        UserError: The file is missing, is not a video, has no frames, or (with "error") is truncated or damaged.
    """
    for frame, _ in timed_frames(path, on_truncated=on_truncated, fps=fps, max_pixels=max_pixels):
        yield frame


def timed_frames(
    path: PathLike,
    *,
    on_truncated: Literal["error", "keep"] = "error",
    fps: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[np.ndarray, float]]:
    """Decode a video as `read_frames`, with the time of each frame.

    Yields:
        Frame, uint8 (H, W, 3) RGB, and its time in seconds (`docs/specification.md#clock`).

    Raises:
        UserError: As `read_frames`.
    """
    decoder = decoder_of(path, keep=on_truncated == "keep", fps=fps, max_pixels=max_pixels)
    for frame in decoder:
        yield frame, decoder.clock.time
    if decoder.frames_read == 0:
        raise UserError(decoder.problem or f"{path} contains no video frames; leave it out or fetch it again")
    if decoder.problem and on_truncated == "error":
        raise UserError(decoder.problem)
    if decoder.frames_read == 1 and not decoder.problem:
        raise single_picture(path)


def decoder_of(
    path: PathLike,
    *,
    threads: bool = True,
    keep: bool = False,
    fps: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Decoder | FolderDecoder:
    """Return the decoder of a video file or of a folder of frames, which has `fps` frames per second."""
    if os.path.isdir(path):
        return FolderDecoder(path, fps, keep=keep, max_pixels=max_pixels)
    return Decoder(path, threads=threads, keep=keep, max_pixels=max_pixels)


def single_picture(path: PathLike) -> UserError:
    """Return the error for a file with one frame, whatever its format is."""
    return no_motion(Path(path), "it is one still picture")


def frame_rate(stream: av.VideoStream) -> float:
    """Return the average number of frames per second of a stream, or its guess, or 25."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or ASSUMED_RATE)


def stated_rate(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    """Return the frames per second that a file states, or None."""
    if _is_raw(container):  # FFmpeg makes up 25; only the pictures themselves can tell a rate
        return float(stream.codec_context.framerate or 0) or None
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 0) or None


def _is_raw(container: av.container.InputContainer) -> bool:
    kind = container.format.name
    return kind in _RAW or kind.endswith("_pipe")


def has_stamps(container: av.container.InputContainer, stream: av.VideoStream) -> bool:
    """Return whether a stream has presentation time stamps. AVI has none: with B-frames, FFmpeg's are out of order."""
    return not _is_raw(container) and not (container.format.name == "avi" and stream.codec_context.has_b_frames)


class _TooStrictError(Exception):
    """A strict decoder refuses every picture of a file."""


class Decoder:
    """Iterates once over the frames of a file. Afterwards ``problem`` is None or says why the video is not complete.

    ``damage`` says the same in short. ``clock`` has the time of the last frame, and ``end`` the time at which it ends.

    A packet that cannot be decoded ends the iteration, or is left out with ``keep``. A recording that starts between
    two key frames begins with some; these are left out always. A frame whose picture the decoder marks as damaged is
    counted, and is a problem.
    """

    def __init__(
        self, path: PathLike, *, threads: bool = True, keep: bool = False, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.path = Path(path)
        self.max_pixels = max_pixels
        self.threads = threads
        self.keep = keep
        self.clock = FrameClock(ASSUMED_RATE, assumed=True)  # that of the file once it is open
        self.claimed: int | None = None
        self.frames_read = 0
        self.problem: str | None = None
        self.damage: str | None = None
        self._upright = Upright()
        self._duration = 0.0  # of the last frame in seconds, 0 where the file does not say

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which the last frame was rotated: 0, 90, 180 or 270."""
        return self._upright.rotation

    @property
    def end(self) -> float:
        """Time in seconds at which the last frame ends: by its duration, or by the usual interval."""
        usual = self.clock.usual
        return self.clock.time + (self._duration if 0 < self._duration <= max(1.0, JUMP * usual) else usual)

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            yield from self._decode(strict=True)
        except _TooStrictError:
            yield from self._decode(strict=False)

    def _decode(self, *, strict: bool) -> Iterator[np.ndarray]:
        with opened(self.path, self.max_pixels) as (container, stream, file):
            stream.thread_type = "AUTO" if self.threads else "NONE"
            codec = stream.codec_context
            if strict := strict and codec.name in STRICT:
                codec.options = {**codec.options, "err_detect": "crccheck+explode"}
            rate = stated_rate(container, stream)
            zero = None if container.start_time is None else container.start_time / av.time_base
            self.clock = FrameClock(rate or ASSUMED_RATE, assumed=rate is None, zero=zero)
            stamped, base = has_stamps(container, stream), stream.time_base or Fraction(0)
            tick, kind = float(base), container.format.name
            damage = Damage(self.path, self.clock, kind, tick, codec.name)
            self.claimed = stream.frames or None
            packets, last_end, cut, failures, failure = 0, 0.0, False, 0, ""
            whole, early = False, 0  # whether it starts with a key frame, and packets lost before the first frame then
            packet_iterator, resumed = container.demux(stream), -1
            while True:
                try:
                    packet = next(packet_iterator, None)
                except (av.error.FFmpegError, OSError) as error:
                    if kind == "mpjpeg" and file.error is None and file.tell() == file.size:
                        break  # a recording of a camera ends without the mark of an end
                    if isinstance(error, BlockingIOError) and file.error is None and file.tell() > resumed:
                        resumed = file.tell()  # FFmpeg gave up on a long run of damage; it goes on behind it
                        packet_iterator = container.demux(stream)
                        continue
                    self._incomplete(f"reading stopped: {_reason(file.error or error)}")
                    return
                if packet is None:
                    break
                if packet.dts is not None or packet.size:
                    packets += 1
                    whole = whole or (packets == 1 and packet.is_keyframe)
                    cut = packet.is_corrupt
                damage.watch(packet)
                if packet.pts is not None:
                    last_end = max(last_end, (packet.pts + (packet.duration or 0)) * tick)
                try:
                    frames = packet.decode()
                except (av.error.FFmpegError, OSError) as error:
                    if memory_is_short():  # it says nothing about the video
                        raise MemoryError(f"decoding {self.path}") from error
                    failure = _reason(error)
                    if self.frames_read:
                        failures += 1 + early
                        early = 0
                    elif whole:
                        early += 1
                        if strict and early == _SLOPPY:
                            raise _TooStrictError from None
                    if failures and not self.keep:
                        _look_on(packet_iterator, damage)
                        break
                    continue
                for frame in frames:
                    if stamped and frame.pts is not None:
                        self.clock.feed(frame.pts * base.numerator / base.denominator)
                        self._duration = (getattr(frame, "duration", 0) or 0) * base.numerator / base.denominator
                    else:
                        self.clock.feed(None)
                        self._duration = 0.0
                    damage.look(frame)
                    failures, early = failures + early, 0
                    if failures and not self.keep:
                        break
                    require_pixels(self.path, (frame.width, frame.height), self.max_pixels)  # it may change
                    image = self._upright(frame)
                    self.frames_read += 1
                    yield image
                if failures and not self.keep:
                    _look_on(packet_iterator, damage)
                    break
            if failure and not self.frames_read and b"ANIM" in file.head():
                raise UserError(f"{self.path} is an animated WebP, which this FFmpeg cannot decode; convert it to MP4")
            if strict and failure and not self.frames_read:
                raise _TooStrictError
            if failures or (failure and not self.frames_read):
                lost = f"then: {failure}" if failures < 2 else f"{failures} lost: {failure}"
                self._incomplete(lost + (f"; {damage.skipped}" if damage.skipped else ""), damage.pictures())
            elif file.error is not None:
                self._incomplete(f"reading stopped: {_reason(file.error)}")
            else:
                torn = matroska.flaw(self.path) if kind.startswith("matroska") else None
                torn = gif.flaw(self.path) if kind == "gif" else torn
                missing = (
                    torn
                    or damage.tail()
                    or damage.lost()
                    or self._missing(container, stream, file, packets, last_end, cut)
                )
                if reasons := [reason for reason in (damage.pictures(), missing) if reason]:
                    self._incomplete(*reasons)

    def _missing(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        file: VideoFile,
        packets: int,
        last_end: float,
        cut: bool,
    ) -> str | None:
        """Return the sign that the file ends too early, or None.

        The number of frames in the header is not reliable: edit lists leave out stored frames on purpose, and many
        writers are wrong by one or two. So each kind of container is asked only for what it knows exactly.
        """
        kind = container.format.name
        if kind.startswith("mov"):
            # PyAV before 17 does not show the index. There, a file that ends between two frames is not noticed.
            beyond = sum(entry.pos + entry.size > file.size for entry in getattr(stream, "index_entries", ()))
            if beyond:
                return f"{beyond} frames of its index are beyond the end of the file"
        if cut and kind != "mpegts":  # broadcast streams mark packets as corrupt after every small error
            return "the file ends inside a frame"
        if kind == "avi" and self.claimed and self.claimed - packets > max(2, self.claimed // 100):
            return f"its header claims {self.claimed} frames"
        if kind.startswith(("matroska", "flv", "asf")):
            claimed = _seconds(stream.metadata.get("DURATION"))
            if claimed is None and container.duration and len(container.streams) == 1:
                claimed = container.duration / av.time_base
            if claimed and claimed - last_end > max(1.0, 0.02 * claimed):
                return f"its header claims {claimed:.1f} s, and the file has {last_end:.1f} s"
        return None

    def _incomplete(self, *reasons: str | None) -> None:
        self.damage = f"{self.frames_read} frames decoded ({'; '.join(reason for reason in reasons if reason)})"
        self.problem = (
            f"{self.path} is truncated or damaged: {self.damage}; fetch it again, or pass --on-truncated keep to use"
            " what decodes"
        )


def _look_on(packets: Iterator[av.Packet[Any]], damage: Damage) -> None:
    """Read on after a failure, without decoding: the message says where the stream goes on."""
    with contextlib.suppress(av.error.FFmpegError, OSError):
        for packet in itertools.islice(packets, _FURTHER):
            damage.watch(packet)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _seconds(text: str | None) -> float | None:
    """Parse Matroska's ``HH:MM:SS.fraction``."""
    try:
        hours, minutes, seconds = (text or "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
