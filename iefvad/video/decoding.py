"""Video files to uint8 frames, upright, in display order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike


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
    """

    path: str
    width: int
    height: int
    fps: float
    frames: int | None
    rotation: int


def probe(path: PathLike) -> VideoInfo:
    """Read the size, rate and orientation of a video from its header and first frame.

    Raises:
        UserError: The file is missing, is not a video, or no frame can be decoded.
    """
    decoder = Decoder(path, threads=False)
    for frame in decoder:
        rotation, _ = _orientation(decoder.matrix)
        height, width = frame.shape[:2]
        return VideoInfo(os.fspath(path), width, height, decoder.fps, decoder.claimed, rotation)
    raise UserError(decoder.problem or f"{path} contains no video frames; leave it out or fetch it again")


def read_frames(path: PathLike, *, on_truncated: Literal["error", "keep"] = "error") -> Iterator[np.ndarray]:
    """Decode a video in bounded memory.

    Every decoded frame is used, independent of its time stamp (variable frame rate). Audio is ignored. Grey becomes
    RGB.

    Args:
        path: The video file.
        on_truncated: "error" raises after the last good frame of a truncated or damaged file. "keep" ends there.

    Yields:
        Frames, uint8 (H, W, 3) RGB, upright, in display order.

    Raises:
        UserError: The file is missing, is not a video, has no frames, or (with "error") is truncated or damaged.
    """
    decoder = Decoder(path, keep=on_truncated == "keep")
    yield from decoder
    if decoder.frames_read == 0:
        raise UserError(decoder.problem or f"{path} contains no video frames; leave it out or fetch it again")
    if decoder.problem and on_truncated == "error":
        raise UserError(decoder.problem)


def silence_ffmpeg() -> None:
    """Keep FFmpeg's messages from Python, as PyAV does by default; call it before a video is opened.

    Older versions of torchvision switch them on for the whole process when they are imported. A decoder's thread then
    needs the interpreter's lock for a message, and a decoder that is closed early waits for its threads with that lock
    held: a deadlock.
    """
    av.logging.set_level(None)


def frame_rate(stream: av.VideoStream) -> float:
    """Return the average number of frames per second of a stream, or its guess, or 25."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)


def upright(frame: av.VideoFrame, converter: VideoReformatter) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """Convert a decoded frame to RGB and rotate it as its display matrix says.

    Args:
        frame: The decoded frame.
        converter: Used for all frames of a video, because its set-up is expensive.

    Returns:
        uint8 (H, W, 3) RGB, and the display matrix or None.
    """
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    matrix = None if side_data is None else tuple(np.frombuffer(bytes(side_data), np.int32).tolist())
    image = converter.reformat(frame, format="rgb24").to_ndarray()
    rotation, mirrored = _orientation(matrix)
    if mirrored:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, rotation // 90)), matrix  # rows of odd widths are padded


def _orientation(matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """Reduce a display matrix to (degrees counter-clockwise, whether mirrored left to right before the rotation).

    The 3x3 matrix maps the stored (x, y) to (a*x + c*y, b*x + d*y); a, b is its first row and c, d its second
    (libavutil/display.h). Other angles are rounded to the nearest quarter turn.
    """
    if matrix is None:
        return 0, False
    a, b, _, c, d = matrix[:5]
    mirrored = a * d - b * c < 0
    if mirrored:  # without the mirroring of x, the rest is a pure rotation
        a, b = -a, -b
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (0 if a + d >= 0 else 180), mirrored
    return (90 if c - b > 0 else 270), mirrored


class Decoder:
    """Iterates once over the frames of a file. Afterwards ``problem`` is None or says why the video is not complete.

    A packet that cannot be decoded ends the iteration, or is left out with ``keep``. Such packets before the first good
    frame are always left out, because a recording that starts between two key frames begins with some.
    """

    def __init__(self, path: PathLike, *, threads: bool = True, keep: bool = False) -> None:
        self.path = Path(path)
        self.threads = threads
        self.keep = keep
        self.fps = 0.0
        self.claimed: int | None = None
        self.matrix: tuple[int, ...] | None = None
        self.frames_read = 0
        self.problem: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        container = self._open()
        with container:
            stream = container.streams.best("video")
            if stream is None or stream.type != "video":
                raise UserError(f"{self.path} has no video track (only sound or text); give a video file")
            assert isinstance(stream, av.VideoStream)
            stream.thread_type = "AUTO" if self.threads else "NONE"
            self.fps = frame_rate(stream)
            self.claimed = stream.frames or None
            converter = VideoReformatter()  # one for all frames, because its set-up costs more than its use
            packets, last_end, cut, failures, failure = 0, 0.0, False, 0, ""
            packet_iterator = container.demux(stream)
            while True:
                try:
                    packet = next(packet_iterator, None)
                except (av.error.FFmpegError, OSError) as error:
                    self.problem = self._incomplete(f"reading stopped: {_reason(error)}")
                    return
                if packet is None:
                    break
                if packet.dts is not None or packet.size:
                    packets += 1
                    cut = packet.is_corrupt
                if packet.pts is not None and packet.time_base is not None:
                    last_end = max(last_end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                try:
                    frames = packet.decode()
                except (av.error.FFmpegError, OSError) as error:
                    failures, failure = failures + bool(self.frames_read), _reason(error)
                    if failures and not self.keep:
                        break
                    continue
                for frame in frames:
                    image = self._convert(frame, converter)
                    self.frames_read += 1
                    yield image
            if failures or (failure and not self.frames_read):
                self.problem = self._incomplete(f"then: {failure}" if failures < 2 else f"{failures} lost: {failure}")
            elif reason := self._missing(container, stream, packets, last_end, cut):
                self.problem = self._incomplete(reason)

    def _open(self) -> av.container.InputContainer:
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder, not a video file")
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; check the path")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.path} is empty (0 bytes); fetch it again or leave it out")
        try:
            # Without "file:", a name with a colon would be taken for a protocol.
            silence_ffmpeg()
            return av.open(f"file:{self.path}", mode="r")
        except av.error.PermissionError as error:
            raise UserError(f"{self.path} cannot be read; check its permissions") from error
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(
                f"{self.path} cannot be opened as a video: it is another kind of file, or it is truncated so that its "
                "index is missing; fetch it again, convert it, or leave it out"
            ) from error

    def _convert(self, frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
        image, self.matrix = upright(frame, converter)
        return image

    def _missing(
        self, container: av.container.InputContainer, stream: av.VideoStream, packets: int, last_end: float, cut: bool
    ) -> str | None:
        """Return the sign that the file ends too early, or None.

        The number of frames in the header is not reliable: edit lists leave out stored frames on purpose, and many
        writers are wrong by one or two. So each kind of container is asked only for what it knows exactly.
        """
        kind = container.format.name
        if kind.startswith("mov"):
            size = self.path.stat().st_size
            # PyAV before 17 does not show the index. There, a file that ends between two frames is not noticed.
            beyond = sum(entry.pos + entry.size > size for entry in getattr(stream, "index_entries", ()))
            if beyond:
                return f"{beyond} frames of its index are beyond the end of the file"
        if cut and kind != "mpegts":  # broadcast streams mark packets as corrupt after every small error
            return "the file ends inside a frame"
        if kind == "avi" and self.claimed and self.claimed - packets > max(2, self.claimed // 100):
            return f"its header claims {self.claimed} frames"
        if kind.startswith(("matroska", "flv")):
            claimed = _seconds(stream.metadata.get("DURATION"))
            if claimed is None and container.duration and len(container.streams) == 1:
                claimed = container.duration / av.time_base
            if claimed and claimed - last_end > max(1.0, 0.02 * claimed):
                return f"its header claims {claimed:.1f} s, and the file has {last_end:.1f} s"
        return None

    def _incomplete(self, reason: str) -> str:
        return (
            f"{self.path} is truncated or damaged: {self.frames_read} frames decoded ({reason}); fetch it again, or "
            "pass --on-truncated keep to use what decodes"
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _seconds(text: str | None) -> float | None:
    """Parse Matroska's ``HH:MM:SS.fraction``."""
    try:
        hours, minutes, seconds = (text or "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
