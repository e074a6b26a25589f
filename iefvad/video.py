"""Video files to uint8 frames, 16-frame segments and the field's ten crops.

In reading order: segments, resizing and crops, the search for video files, and decoding.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import av.logging
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike

SEGMENT = 16
"""Frames per segment."""
WIDTH, HEIGHT = 340, 256
"""Size in pixels to which every frame is resized. The aspect ratio is not kept."""
CROP = 224
"""Side of a crop in pixels."""

_SUFFIXES = "3gp asf avi flv m2ts m4v mjpeg mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Suffixes, in lower case, of the files that count as videos in a folder."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says about itself.

    Attributes:
        path: The file.
        width: Width in pixels, after the rotation.
        height: Height in pixels, after the rotation.
        fps: Average number of frames per second.
        frames: Number of frames that the container claims, or None. The decoded number may differ by a few.
        rotation: 0, 90, 180 or 270 degrees counter-clockwise. This module applies it to every frame that it yields.
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
    decoder = _Decoder(path, threads=False)
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
    decoder = _Decoder(path, keep=on_truncated == "keep")
    yield from decoder
    if decoder.frames_read == 0:
        raise UserError(decoder.problem or f"{path} contains no video frames; leave it out or fetch it again")
    if decoder.problem and on_truncated == "error":
        raise UserError(decoder.problem)


class Segments:
    """Iterates once over the consecutive segments of a video: uint8 (length, H, W, 3) RGB each.

    Args:
        path: The video file.
        length: Frames per segment.
        size: (width, height) to which frames are resized, as by `resize`. None keeps the size of the video.
        tail: What to do with a last partial segment. "drop" leaves it out, "repeat" repeats its last frame.
        on_truncated: As for `read_frames`.

    Attributes:
        info: What the file says about itself.
        frames_read: Number of frames decoded so far.
        frames_dropped: Number of frames after the last segment. Set after iteration.
        truncated: Whether the file is truncated or damaged. Set after iteration.
        seconds: Time of decoding and resizing so far.

    Raises:
        UserError: On construction as `probe`, during iteration as `read_frames`, and at the end if the video is too
            short for one segment.
        ValueError: `length`, `tail` or `on_truncated` is invalid.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        length: int = SEGMENT,
        size: tuple[int, int] | None = (WIDTH, HEIGHT),
        tail: Literal["drop", "repeat"] = "drop",
        on_truncated: Literal["error", "keep"] = "error",
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if tail not in ("drop", "repeat"):
            raise ValueError(f"tail must be 'drop' or 'repeat', got {tail!r}")
        if on_truncated not in ("error", "keep"):
            raise ValueError(f"on_truncated must be 'error' or 'keep', got {on_truncated!r}")
        self.info = probe(path)
        self.length, self.tail, self.on_truncated = length, tail, on_truncated
        self.size = size or (self.info.width, self.info.height)
        self.frames_read = 0
        self.frames_dropped = 0
        self.truncated = False
        self.seconds = 0.0
        self._segments = self._run(path)

    def __iter__(self) -> Segments:
        return self

    def __next__(self) -> np.ndarray:
        begin = time.perf_counter()
        try:
            return next(self._segments)
        finally:
            self.seconds += time.perf_counter() - begin

    def close(self) -> None:
        """Close the file before its end is reached."""
        self._segments.close()

    def _run(self, path: PathLike) -> Generator[np.ndarray, None, None]:
        decoder = _Decoder(path, keep=self.on_truncated == "keep")
        produced = filled = 0
        segment = self._empty()
        for frame in decoder:
            self.frames_read += 1
            _resize_into(frame, segment[filled])
            filled += 1
            if filled == self.length:
                yield segment
                produced, filled, segment = produced + 1, 0, self._empty()
        self.truncated = decoder.problem is not None
        if decoder.problem and (self.on_truncated == "error" or not self.frames_read):
            raise UserError(decoder.problem)
        if filled and self.tail == "repeat":
            segment[filled:] = segment[filled - 1]
            produced, filled = produced + 1, 0
            yield segment
        self.frames_dropped = filled
        if not produced:
            raise UserError(
                f"{path} has {self.frames_read} frames, fewer than the {self.length} of one segment; "
                "leave it out, or pass --tail repeat to fill the segment with its last frame"
            )

    def _empty(self) -> np.ndarray:
        width, height = self.size
        return np.empty((self.length, height, width, 3), np.uint8)


def resize(frames: np.ndarray, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """Resize frames with cv2's bilinear interpolation. The aspect ratio is not kept.

    Args:
        frames: uint8 (n, H, W) or (n, H, W, 3).
        size: (width, height) in pixels.

    Returns:
        uint8 (n, height, width) or (n, height, width, 3).

    Raises:
        TypeError: The dtype is not uint8.
        ValueError: The shape is different.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[3] != 3) or 0 in frames.shape[1:3]:
        raise ValueError(f"frames must be (n, H, W) or (n, H, W, 3), got {frames.shape}")
    width, height = size
    out = np.empty((len(frames), height, width, *frames.shape[3:]), np.uint8)
    for source, target in zip(frames, out, strict=True):
        _resize_into(source, target)
    return out


def crop_boxes() -> list[tuple[int, int, bool]]:
    """Return (top, left, mirrored) of the ten crops in pixels, in the field's order.

    The order is centre, top left, top right, bottom left, bottom right, then the same five mirrored.
    """
    bottom, right = HEIGHT - CROP, WIDTH - CROP
    corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [(top, left, mirrored) for mirrored in (False, True) for top, left in corners]


def crops(images: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Cut crops from full-size images.

    Args:
        images: (n, 256, 340) or (n, 256, 340, 3) of any dtype.
        indices: Crop numbers, positions in `crop_boxes`.

    Returns:
        (n, len(indices), 224, 224) or (n, len(indices), 224, 224, 3) of the same dtype.

    Raises:
        ValueError: The shape is different, or an index is outside 0..9.
    """
    images = np.asarray(images)
    if images.ndim < 3 or images.shape[1:3] != (HEIGHT, WIDTH):
        raise ValueError(f"images must be (n, {HEIGHT}, {WIDTH}[, 3]), got {images.shape}")
    boxes = crop_boxes()
    if any(not 0 <= index < len(boxes) for index in indices):
        raise ValueError(f"crop indices lie in 0..{len(boxes) - 1}, got {list(indices)}")
    out = np.empty((len(images), len(indices), CROP, CROP, *images.shape[3:]), images.dtype)
    # With columns and channels merged, a window is copied row by row instead of pixel by pixel. A mirrored crop is a
    # window of the mirrored picture, which is made once for all crops.
    channels = math.prod(images.shape[3:])
    wide = images.reshape(len(images), HEIGHT, WIDTH * channels)
    mirrored_wide: np.ndarray = wide
    if any(boxes[index][2] for index in indices):
        mirrored_wide = _mirror(images).reshape(wide.shape)
    rows = out.reshape(len(images), len(indices), CROP, CROP * channels)
    for slot, index in enumerate(indices):
        top, left, mirrored = boxes[index]
        source, left = (mirrored_wide, WIDTH - CROP - left) if mirrored else (wide, left)
        rows[:, slot] = source[:, top : top + CROP, left * channels : (left + CROP) * channels]
    return out


def _mirror(images: np.ndarray) -> np.ndarray:
    """Mirror images (n, H, W[, C]) left to right. cv2 is fifty times as fast as numpy here."""
    out = np.empty(images.shape, images.dtype)
    for source, target in zip(np.ascontiguousarray(images), out, strict=True):
        # cv2 does not know every dtype, so a pixel is passed as bytes.
        pixels, place = (array.view(np.uint8).reshape(*array.shape[:2], -1) for array in (source, target))
        cv2.flip(pixels, 1, dst=place)
    return out


def ten_crop(frames: np.ndarray) -> np.ndarray:
    """Resize uint8 frames (n, H, W, 3) and cut the ten crops, uint8 (n, 10, 224, 224, 3)."""
    return crops(resize(frames), range(10))


def silence_ffmpeg() -> None:
    """Keep FFmpeg's messages from Python, as PyAV does by default; call it before a video is opened.

    Older versions of torchvision switch them on for the whole process when they are imported. A decoder's thread then
    needs the interpreter's lock for a message, and a decoder that is closed early waits for its threads with that lock
    held: a deadlock.
    """
    av.logging.set_level(None)


def find_videos(paths: Sequence[PathLike]) -> list[Path]:
    """List the video files in files and folders.

    Args:
        paths: A file is taken with any suffix. A folder is searched recursively for the suffixes in `VIDEO_SUFFIXES`;
            links are followed, and hidden entries are skipped.

    Returns:
        Files, those of a folder in sorted order. A file that is reached twice is listed once.

    Raises:
        UserError: A path does not exist, a folder contains no videos, or there are no videos at all.
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        if given.is_file():
            files = [given]
        elif given.is_dir():
            files = _videos_below(given)
            if not files:
                raise UserError(f"{given} contains no video files (known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))})")
        else:
            raise UserError(f"{given} does not exist; check the path")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise UserError("no videos were given; name video files or folders that contain some")
    return list(found.values())


def _videos_below(root: Path) -> list[Path]:
    files: list[Path] = []
    seen: set[str] = set()  # a link to a parent folder would never end
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
        ]
    return sorted(files)


def _resize_into(frame: np.ndarray, out: np.ndarray) -> None:
    height, width = out.shape[:2]
    if frame.shape == out.shape:
        out[:] = frame
    else:
        cv2.resize(np.ascontiguousarray(frame), (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


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


class _Decoder:
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
