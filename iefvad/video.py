"""Video files to uint8 frames, 16-frame segments and the field's ten crops."""

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
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike

SEGMENT = 16
"""Frames per segment."""
WIDTH, HEIGHT = 340, 256
"""Size, in pixels, to which every frame is brought (the aspect ratio is not kept)."""
CROP = 224
"""Side of a crop in pixels."""

_SUFFIXES = "3gp asf avi flv m2ts m4v mjpeg mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""File name endings, in lower case, by which videos are found in folders."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself.

    ``width`` and ``height`` are pixels after ``rotation`` (degrees counter-clockwise, 0, 90, 180 or 270, already
    applied to every frame that this module yields). ``fps`` is the average rate. ``frames`` is the container's
    claim, None where it makes none; what decodes may differ by a few.
    """

    path: str
    width: int
    height: int
    fps: float
    frames: int | None
    rotation: int


def probe(path: PathLike) -> VideoInfo:
    """Read a video's size, rate and orientation from its header and first frame.

    Raises UserError if the file is missing, is not a video, or has no frame that decodes.
    """
    decoder = _Decoder(path, threads=False)
    for frame in decoder:
        rotation, _ = _orientation(decoder.matrix)
        height, width = frame.shape[:2]
        return VideoInfo(os.fspath(path), width, height, decoder.fps, decoder.claimed, rotation)
    raise UserError(decoder.problem or f"{path} holds no video frames; leave it out or fetch it again")


def read_frames(path: PathLike, *, on_truncated: Literal["error", "keep"] = "error") -> Iterator[np.ndarray]:
    """Decode a video: yields (H, W, 3) uint8 RGB frames, upright, in display order, in bounded memory.

    Frames are taken as they are decoded, whatever their time stamps (variable rate); audio is ignored; grey becomes
    RGB. Raises UserError for a missing file, one that is not a video, one without frames and, unless
    ``on_truncated="keep"``, after the last good frame of a truncated or damaged one.
    """
    decoder = _Decoder(path, keep=on_truncated == "keep")
    yield from decoder
    if decoder.frames_read == 0:
        raise UserError(decoder.problem or f"{path} holds no video frames; leave it out or fetch it again")
    if decoder.problem and on_truncated == "error":
        raise UserError(decoder.problem)


class Segments:
    """Iterate over a video's consecutive segments: uint8 arrays (length, H, W, 3) RGB.

    ``size`` = (width, height) resizes every frame as :func:`resize` does; None keeps the video's own. A last partial
    segment is dropped (``tail="drop"``) or filled by repeating the last frame (``tail="repeat"``). After iteration
    ``frames_read``, ``frames_dropped`` and ``truncated`` say what was found; ``seconds`` is the time that decoding and
    resizing took so far. An object is iterated once.

    Raises UserError as :func:`probe` on construction, as :func:`read_frames` while iterating, and at the end if the
    video is too short for one segment.
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
        """Release the file before the end is reached."""
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
    """Resize uint8 frames (n, H, W[, 3]) to (n, height, width[, 3]), byte for byte as cv2's bilinear does.

    ``size`` is (width, height); the aspect ratio is not kept. Raises TypeError for another dtype and ValueError for
    another shape.
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
    """Ten (top, left, mirrored) in the field's order: centre, TL, TR, BL, BR, then the same five mirrored."""
    bottom, right = HEIGHT - CROP, WIDTH - CROP
    corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [(top, left, mirrored) for mirrored in (False, True) for top, left in corners]


def crops(images: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Cut crops from full-size images: (n, 256, 340[, 3]) of any dtype to (n, len(indices), 224, 224[, 3]).

    ``indices`` count :func:`crop_boxes`. Raises ValueError for another shape or an index outside 0..9.
    """
    images = np.asarray(images)
    if images.ndim < 3 or images.shape[1:3] != (HEIGHT, WIDTH):
        raise ValueError(f"images must be (n, {HEIGHT}, {WIDTH}[, 3]), got {images.shape}")
    boxes = crop_boxes()
    if any(not 0 <= index < len(boxes) for index in indices):
        raise ValueError(f"crop indices lie in 0..{len(boxes) - 1}, got {list(indices)}")
    out = np.empty((len(images), len(indices), CROP, CROP, *images.shape[3:]), images.dtype)
    # With the channels laid beside the columns a window is copied a row, not a pixel, at a time. A mirrored crop is a
    # window of the mirrored picture, which is made once for all of them.
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
    """Images (n, H, W[, C]) turned left to right; cv2 does it fifty times as fast as numpy."""
    out = np.empty(images.shape, images.dtype)
    for source, target in zip(np.ascontiguousarray(images), out, strict=True):
        # A pixel as bytes, whatever its type.
        pixels, place = (array.view(np.uint8).reshape(*array.shape[:2], -1) for array in (source, target))
        cv2.flip(pixels, 1, dst=place)
    return out


def ten_crop(frames: np.ndarray) -> np.ndarray:
    """Resize uint8 frames (n, H, W, 3) and cut the ten crops: (n, 10, 224, 224, 3) uint8, equal to cv2's bytes."""
    return crops(resize(frames), range(10))


def find_videos(paths: Sequence[PathLike]) -> list[Path]:
    """List the video files among files and folders.

    A file is taken whatever its suffix; a folder is searched recursively (links followed, hidden entries skipped) for
    known suffixes, in sorted order. A file reached twice is listed once. Raises UserError for a missing path and for
    a folder, or a whole, without videos.
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        if given.is_file():
            files = [given]
        elif given.is_dir():
            files = _videos_below(given)
            if not files:
                raise UserError(f"{given} holds no video files (known: {' '.join(sorted(VIDEO_SUFFIXES))})")
        else:
            raise UserError(f"{given} does not exist; check the path")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise UserError("no videos were given; name video files or folders that hold some")
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
    """Average frames a second of a stream; what it guesses, or 25, where it does not say."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)


def upright(frame: av.VideoFrame, converter: VideoReformatter) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """A decoded frame as uint8 RGB (H, W, 3), turned as its display matrix says, and that matrix or None."""
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    matrix = None if side_data is None else tuple(np.frombuffer(bytes(side_data), np.int32).tolist())
    image = converter.reformat(frame, format="rgb24").to_ndarray()
    rotation, mirrored = _orientation(matrix)
    if mirrored:
        image = image[:, ::-1]
    return np.ascontiguousarray(np.rot90(image, rotation // 90)), matrix  # rows of odd widths come padded


def _orientation(matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """Reduce a display matrix to (degrees counter-clockwise, mirrored left-right before turning).

    The 3x3 matrix maps the stored (x, y) to (a*x + c*y, b*x + d*y), a, b = first row, c, d = second
    (libavutil/display.h); other angles are taken to the nearest quarter turn.
    """
    if matrix is None:
        return 0, False
    a, b, _, c, d = matrix[:5]
    mirrored = a * d - b * c < 0
    if mirrored:  # undo a mirroring of x first: the rest is a pure rotation
        a, b = -a, -b
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (0 if a + d >= 0 else 180), mirrored
    return (90 if c - b > 0 else 270), mirrored


class _Decoder:
    """Iterate once over a file's frames; afterwards ``problem`` is None or says why the video is not whole.

    A packet that does not decode ends the iteration, or is left out with ``keep``. Those before the first good frame
    are always left out: a recording that joins a stream between two key frames begins with some.
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
            converter = VideoReformatter()  # one for all frames: setting it up costs more than using it
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
            # "file:" keeps a colon in a name from being read as a protocol.
            return av.open(f"file:{self.path}", mode="r")
        except av.error.PermissionError as error:
            raise UserError(f"{self.path} may not be read; check its permissions") from error
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(
                f"{self.path} cannot be opened as a video: it is of another kind, or truncated so that its index is "
                "missing; fetch it again, convert it, or leave it out"
            ) from error

    def _convert(self, frame: av.VideoFrame, converter: VideoReformatter) -> np.ndarray:
        image, self.matrix = upright(frame, converter)
        return image

    def _missing(
        self, container: av.container.InputContainer, stream: av.VideoStream, packets: int, last_end: float, cut: bool
    ) -> str | None:
        """Say what shows that the file ends too early, or None.

        A count of frames in the header cannot be trusted alone: edit lists leave out stored frames on purpose, and
        many writers are off by one or two. So each container is asked for what it knows for sure.
        """
        kind = container.format.name
        if kind.startswith("mov"):
            size = self.path.stat().st_size
            # PyAV before 17 does not show the index; there a file cut between two frames goes unnoticed.
            beyond = sum(entry.pos + entry.size > size for entry in getattr(stream, "index_entries", ()))
            if beyond:
                return f"{beyond} frames of its index lie beyond the end of the file"
        if cut and kind != "mpegts":  # broadcast streams mark packets after any hiccup
            return "the file ends inside a frame"
        if kind == "avi" and self.claimed and self.claimed - packets > max(2, self.claimed // 100):
            return f"its header claims {self.claimed} frames"
        if kind.startswith(("matroska", "flv")):
            claimed = _seconds(stream.metadata.get("DURATION"))
            if claimed is None and container.duration and len(container.streams) == 1:
                claimed = container.duration / av.time_base
            if claimed and claimed - last_end > max(1.0, 0.02 * claimed):
                return f"its header claims {claimed:.1f} s and {last_end:.1f} s are there"
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
