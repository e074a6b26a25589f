"""A video's consecutive segments of 16 frames."""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.video.clock import ClockReport
from iefvad.video.corruption import Corruptions, FrameCorruption
from iefvad.video.decoding import decoder_of, probe, single_picture
from iefvad.video.frames import HEIGHT, WIDTH, resize_into
from iefvad.video.limits import MAX_FRAMES, MAX_PIXELS, SEGMENT
from iefvad.video.opening import unreadable

LIMITS = ("max_pixels", "max_frames")
"""Names of the arguments of `Segments` that say which videos are too large."""


class Segments:
    """Iterates once over the consecutive segments of a video: uint8 (length, H, W, 3) RGB each.

    Args:
        path: The video file, or a folder of frames.
        length: Frames per segment.
        size: (width, height) to which frames are resized, as by `resize`. None keeps the size of the video.
        tail: What to do with a last partial segment. "drop" leaves it out, "repeat" repeats its last frame.
        on_truncated: As for `read_frames`.
        fps: Frames per second of a folder of frames.
        corrupt: Damage of the resized frames, as `iefvad.video.corruption.Corruptions.parse` reads it.
        name: Name of the video, which seeds random damage.
        max_pixels: Maximum number of pixels per frame.
        max_frames: Maximum number of frames.

    Attributes:
        info: What the file says about itself.
        frames_read: Number of frames decoded so far.
        frames_dropped: Number of frames after the last segment. Set after iteration.
        truncated: Whether the file is truncated or damaged. Set after iteration.
        seconds: Time of decoding and resizing so far.
        starts: Start of each segment so far, in seconds of the video (`docs/specification.md#clock`).
        ends: End of each segment so far: the time of the frame after it, or the end of the last frame.

    Raises:
        UserError: On construction as `probe`, during iteration as `read_frames`, if there are more frames than
            `max_frames`, and at the end if the video is too short for one segment. What a library raises while it
            decodes becomes such an error, which names the video.
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
        fps: float | None = None,
        corrupt: str | None = None,
        name: str = "",
        max_pixels: int = MAX_PIXELS,
        max_frames: int = MAX_FRAMES,
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if tail not in ("drop", "repeat"):
            raise ValueError(f"tail must be 'drop' or 'repeat', got {tail!r}")
        if on_truncated not in ("error", "keep"):
            raise ValueError(f"on_truncated must be 'error' or 'keep', got {on_truncated!r}")
        self.path, self.max_frames = path, max_frames
        with self._named():
            self.info = probe(path, fps=fps, max_pixels=max_pixels)
        self.length, self.tail, self.on_truncated = length, tail, on_truncated
        self.size = size or (self.info.width, self.info.height)
        self._corruption = FrameCorruption(Corruptions.parse(corrupt), name) if corrupt else None
        self.frames_read = 0
        self.frames_dropped = 0
        self.truncated = False
        self.seconds = 0.0
        self.starts, self.ends = array("d"), array("d")
        self._decoder = decoder_of(path, keep=on_truncated == "keep", fps=fps, max_pixels=max_pixels)
        self._segments = self._run(path)

    @property
    def clock(self) -> ClockReport:
        """Where the times come from, which frames are lost, and what is damaged. Complete after iteration."""
        return replace(self._decoder.clock.report(), damage=self._decoder.damage)

    def __iter__(self) -> Segments:
        return self

    def __next__(self) -> np.ndarray:
        begin = time.perf_counter()
        try:
            with self._named():
                return next(self._segments)
        finally:
            self.seconds += time.perf_counter() - begin

    def close(self) -> None:
        """Close the file before its end is reached."""
        self._segments.close()

    def _run(self, path: PathLike) -> Generator[np.ndarray, None, None]:
        decoder = self._decoder
        filled, start = 0, 0.0
        segment = self._empty()
        for frame in decoder:
            if filled == self.length:  # this frame tells when the segment before it ends
                self._time(start, decoder.clock.time)
                yield segment
                filled, segment = 0, self._empty()
            start = start if filled else decoder.clock.time
            self.frames_read += 1
            if self.frames_read > self.max_frames:
                raise UserError(
                    f"{path} has more than the {self.max_frames} frames of --max-frames; cut it, leave it out, or raise"
                    " --max-frames"
                )
            resize_into(frame, segment[filled])
            if self._corruption is not None:
                self._corruption.apply(segment[filled])
            filled += 1
        if filled == self.length:
            self._time(start, decoder.end)
            yield segment
            filled, segment = 0, self._empty()
        self.truncated = decoder.problem is not None
        if decoder.problem and (self.on_truncated == "error" or not self.frames_read):
            raise UserError(decoder.problem)
        if self.frames_read == 1 and not decoder.problem:
            raise single_picture(path)
        if filled and self.tail == "repeat":
            segment[filled:] = segment[filled - 1]
            self._time(start, decoder.end)
            yield segment
            filled = 0
        self.frames_dropped = filled
        if not self.starts:
            raise UserError(
                f"{path} has {self.frames_read} frames, fewer than the {self.length} of one segment; "
                "leave it out, or pass --tail repeat to fill the segment with its last frame"
            )

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Let every error of decoding name the video, so that it costs this video alone."""
        try:
            yield
        except (UserError, StopIteration):
            raise
        except OSError as error:
            raise unreadable(Path(self.path), error) from error
        except MemoryError as error:
            raise UserError(f"{self.path} needs more memory than there is; leave it out, or lower --workers") from error
        except Exception as error:  # a library fails at one video of thousands
            raise UserError(f"{self.path} cannot be decoded ({type(error).__name__}: {error})") from error

    def _time(self, start: float, end: float) -> None:
        self.starts.append(start)
        self.ends.append(end)

    def _empty(self) -> np.ndarray:
        width, height = self.size
        return np.empty((self.length, height, width, 3), np.uint8)
