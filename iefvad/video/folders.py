"""Folders of frames, `NAME/000.jpg, 001.jpg ...`, as Avenue, UCSD and ShanghaiTech ship their videos."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from PIL import Image

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, open_regular
from iefvad.utils.text import few
from iefvad.video.clock import FrameClock
from iefvad.video.limits import MAX_PIXELS, SEGMENT
from iefvad.video.opening import require_pixels, unreadable

PICTURE_SUFFIXES = frozenset(
    f".{suffix}" for suffix in ["bmp", "jpeg", "jpg", "jp2", "pgm", "png", "ppm", "tif", "tiff", "webp"]
)
"""Suffixes, in lower case, of the files that count as frames in a folder."""

_LARGEST_FILE = 64 << 20  # bytes of one picture, unless the maximum number of pixels allows more
_BYTES_PER_PIXEL = 8
_BLOCK = 8 << 20

RATE_REMEDY = "add --fps, such as --fps 25 (Avenue and ShanghaiTech have 25, UCSD has 10)"


@dataclass(frozen=True)
class FrameFolder:
    """The pictures of a folder in the order of their numbers.

    Attributes:
        path: The folder.
        names: Names of the pictures.
        places: Place of each picture in time, from 0. Where numbers are missing, places are missing.
        gaps: Missing numbers, as text such as "60 to 159".
    """

    path: Path
    names: list[str]
    places: list[int]
    gaps: list[str]


def is_frame_folder(names: Iterable[str], *, given: bool = False) -> bool:
    """Tell whether a folder with files of these names is a video.

    A folder that is found in a search is one if all its pictures are one numbered series, or enough for a segment are.

    Args:
        names: Names of the files in the folder.
        given: The user named the folder itself: two pictures are enough, whatever their names are.
    """
    pictures = [name for name in names if is_picture(name)]
    largest = max(Counter(_series(name) for name in pictures if re.search(r"\d", name)).values(), default=0)
    return len(pictures) > 1 and (given or largest == len(pictures) or largest >= SEGMENT)


def is_picture(name: str) -> bool:
    """Tell whether a file counts as a frame. Hidden files do not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def read_folder(path: PathLike) -> FrameFolder:
    """List the pictures of a folder in the order of their numbers.

    Raises:
        UserError: The folder cannot be read, has fewer than two pictures, or its pictures are not one numbered series.
    """
    path = Path(path)
    try:
        names = [name for name in os.listdir(path) if is_picture(name)]
    except OSError as error:
        raise unreadable(path, error) from None
    if len(names) < 2:
        what = "one picture" if names else "no pictures"
        raise UserError(f"{path} is a folder with {what} and no videos, not a video; check the path")
    series = Counter(_series(name) for name in names)
    if len(series) > 1:
        shown = ", ".join(f"{_pattern(names, kind)} ({count})" for kind, count in series.most_common(3))
        raise UserError(
            f"{path} has pictures that are not one numbered series ({shown}); keep the frames of one video in a folder,"
            " and nothing else"
        )
    numbers = {name: tuple(int(part) for part in re.findall(r"\d+", os.path.splitext(name)[0])) for name in names}
    names.sort(key=lambda name: (numbers[name], name))
    ordered = [numbers[name] for name in names]
    twins = next((pair for pair in pairwise(names) if numbers[pair[0]] == numbers[pair[1]]), None)
    if twins or not ordered[0]:
        raise UserError(f"{path} has two pictures of one number ({', '.join(twins or names[:2])}); rename one")
    changing = [place for place in range(len(ordered[0])) if len({number[place] for number in ordered}) > 1]
    if len(changing) > 1:  # such as times of day: they give an order, and no distance
        return FrameFolder(path, names, list(range(len(names))), [])
    values = [number[changing[0]] for number in ordered]
    steps = Counter(after - before for before, after in pairwise(values))
    step = steps.most_common(1)[0][0]
    if any(other % step for other in steps):  # no regular numbering, so nobody knows what is missing
        return FrameFolder(path, names, list(range(len(names))), [])
    places = [round((value - values[0]) / step) for value in values]
    gaps = [
        f"{before + step}" if after - before == 2 * step else f"{before + step} to {after - step}"
        for before, after in pairwise(values)
        if after - before > step
    ]
    return FrameFolder(path, names, places, gaps)


def hash_folder(path: PathLike, fps: float | None) -> str:
    """Return a hash of the names and the whole content of the pictures, and of the frame rate.

    Reading them costs a few percent of decoding them.

    Raises:
        UserError: As `read_folder`.
        OSError: A picture cannot be read.
    """
    folder = read_folder(path)
    digest = hashlib.sha256(f"{fps}".encode())
    for name in folder.names:
        content = hashlib.sha256()
        with open_regular(folder.path / name) as file:
            while block := file.read(_BLOCK):
                content.update(block)
        digest.update(f"\0{content.hexdigest()}\0".encode() + os.fsencode(name))
    return f"sha256-frames:{digest.hexdigest()}"


def check_rate(fps: float | None) -> float:
    """Return the frame rate of a folder of frames.

    Raises:
        UserError: It is missing or out of range.
    """
    if fps is None:
        raise UserError(f"pictures tell no frame rate: {RATE_REMEDY}")
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise UserError(f"--fps must be above 0 and at most 1000 frames per second, not {fps}.")
    return fps


class FolderDecoder:
    """Iterates once over the frames of a folder, as `Decoder` does over those of a file.

    Attributes:
        clock: The time of the last frame: its place divided by the frame rate.
        claimed: Number of pictures.
        rotation: 0: pictures are upright.
        frames_read: Number of frames so far.
        problem: None, or why the video is not complete. Set after iteration.
        damage: The same in short.
    """

    def __init__(
        self,
        path: PathLike,
        fps: float | None,
        *,
        keep: bool = False,
        max_pixels: int = MAX_PIXELS,
        first: int = 0,
    ) -> None:
        """Prepare a folder; iteration reads it from its picture `first`, counted from 0, on.

        With `keep`, missing and unreadable pictures are left out.
        """
        self._first = first
        self.path = Path(path)
        self.keep = keep
        self.max_pixels = max_pixels
        self._fps = fps
        self.clock = FrameClock(fps or 1.0)
        self.claimed: int | None = None
        self.rotation = 0
        self.frames_read = 0
        self.problem: str | None = None
        self.damage: str | None = None

    @property
    def end(self) -> float:
        """Time in seconds at which the last frame ends."""
        return self.clock.time + 1 / self.clock.rate

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, uint8 (H, W, 3) RGB."""
        folder = read_folder(self.path)
        try:
            fps = check_rate(self._fps)
        except UserError as error:
            raise UserError(f"{self.path} is a folder of frames, and {error}") from None
        self.clock, self.claimed = FrameClock(fps, zero=0.0), len(folder.names)
        bad = [f"pictures {gap} are missing" if " " in gap else f"picture {gap} is missing" for gap in folder.gaps]
        size: tuple[int, ...] = ()
        check = _JpegCheck()
        for name, place in list(zip(folder.names, folder.places, strict=True))[self._first :]:
            image, reason = _read_picture(self.path / name, self.max_pixels, check)
            if image is None:
                bad.append(f"{name} {reason}")
                if self.keep:
                    continue
                break
            if size and size != image.shape:
                raise UserError(
                    f"{self.path} has pictures of different sizes: {name} has {image.shape[1]}x{image.shape[0]} pixels,"
                    f" the first {size[1]}x{size[0]}; keep the frames of one video in a folder, and nothing else"
                )
            size = image.shape
            self.clock.feed(place / fps)
            self.frames_read += 1
            yield image
            if bad and not self.keep:
                break  # nothing is scored, and the first frame was enough to tell the size of the video
        bad += check.damaged()
        if bad:
            self.damage = few(bad)
            self.problem = (
                f"{self.path} is truncated or damaged: {self.damage}; fetch it again, or pass --on-truncated keep to"
                " use what decodes"
            )


class _JpegCheck:
    """Decodes JPEG pictures once more with FFmpeg, which tells damage that OpenCV fills without a word.

    Where FFmpeg refuses all pictures of a folder, they are of a kind that it does not know, and nothing is told.
    """

    def __init__(self) -> None:
        self._good = 0
        self._refused: list[str] = []

    def look(self, name: str, content: bytes) -> None:
        """Note whether a picture is damaged."""
        decoder = av.CodecContext.create("mjpeg", "r")
        decoder.thread_type = "NONE"
        decoder.options = {"err_detect": "crccheck+explode", "lowres": "3"}  # small: only the codes matter
        try:
            frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
            good = len(frames) == 1 and not frames[0].is_corrupt
        except (av.error.FFmpegError, OSError, ValueError):
            good = False
        if good:
            self._good += 1
        else:
            self._refused.append(name)

    def damaged(self) -> list[str]:
        """Return which pictures are damaged, in words."""
        return [f"{name} has a damaged picture" for name in self._refused] if self._good else []


def _read_picture(path: Path, max_pixels: int, check: _JpegCheck) -> tuple[np.ndarray | None, str]:
    """Return the picture, RGB, or None and why it cannot be read.

    Raises:
        UserError: It has more than `max_pixels` pixels. Nothing is decoded then.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > max(_LARGEST_FILE, _BYTES_PER_PIXEL * max_pixels):
                return None, "is larger than a picture can be"
            content = file.readall()
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"
    # Versions of OpenCV before 5 fill what is missing with grey.
    ends = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND"}
    if (end := ends.get(content[:2])) and end not in content[-4096:]:
        return None, "is truncated"
    size = _size(path, content)
    if size is None:
        return None, "is not a picture"
    require_pixels(path, size, max_pixels)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is not None and content[:2] == b"\xff\xd8":
        check.look(path.name, content)
    return (None, "is not a picture") if image is None else (np.ascontiguousarray(image[:, :, ::-1]), "")


def _size(path: Path, content: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a picture from its header, or None where it is no picture. Nothing is decoded."""
    try:
        # Pillow warns of large pictures, and refuses what is twice as large, whatever --max-pixels is.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as picture:
                width, height = picture.size
                return int(width), int(height)
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has too many pixels ({error}); leave it out") from None
    except Exception:  # Pillow's readers raise many kinds of errors at damaged headers
        return None


def _series(name: str) -> tuple[str, ...]:
    """Return what pictures of one series have in common: all of the name but its numbers."""
    stem, suffix = os.path.splitext(name)
    return (*re.split(r"\d+", stem), suffix.lower())


def _pattern(names: list[str], kind: tuple[str, ...]) -> str:
    return next(name for name in names if _series(name) == kind)
