"""Cuts video files into clips: by copying their packets from key frame to key frame, or by encoding them again."""

from __future__ import annotations

import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np

from iefvad.data.clips import Clip, Marks, marks_within
from iefvad.data.cut import require_step
from iefvad.utils.errors import UserError
from iefvad.utils.files import replacing, storage_errors
from iefvad.video import SEGMENT, timed_frames
from iefvad.video.opening import opened
from iefvad.video.timeline import Timeline, read_timeline

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".ts": "mpegts"}
_ELSE = ".mkv"  # takes nearly every codec
_TICKS = 90_000  # per second, for clips that are encoded again
_NEAR = 0.001


@dataclass(frozen=True)
class Cutting:
    """How recordings are cut.

    Attributes:
        length: Length of a clip, in seconds, or in frames if `frames` is set.
        overlap: What a clip shares with the one before it, likewise.
        frames: Whether both are numbers of frames.
        exact: Encode again.
        quality: Constant rate factor of H.264.
        on_truncated: What to do with a damaged recording that is encoded again.
    """

    length: float
    overlap: float = 0.0
    frames: bool = False
    exact: bool = False
    quality: int = 18
    on_truncated: Literal["error", "keep"] = "error"


def cut_video(
    path: Path, name: str, truth: Callable[[int], Marks], out: Path, cutting: Cutting, notes: list[str]
) -> list[Clip]:
    """Cut a recording into clips. Sound is left out.

    Every clip keeps the times between its frames, also with a variable rate. A rest of fewer than 16 frames is left
    out.

    Args:
        path: The video file.
        name: Its name.
        truth: Returns the abnormal intervals of the recording for its number of frames.
        out: Folder of the clips.
        cutting: How to cut.
        notes: What the user should know is added.

    Returns:
        The clips, in order.

    Raises:
        UserError: The recording cannot be read, or not cut in this way, or a clip cannot be written.
    """
    require_step(cutting.length, cutting.overlap)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder of frames, and `iefvad data cut` cuts files; extract it, and cut the store"
        )
    timeline = read_timeline(path)
    marks = truth(len(timeline.times))
    ranges = _ranges(timeline, cutting)
    if cutting.exact:
        return _encoded(path, name, marks, out, cutting, ranges)
    return _copied(path, name, marks, out, timeline, ranges, notes)


def _ranges(timeline: Timeline, cutting: Cutting) -> list[tuple[int, int]]:
    """Return the frames [first, last) of each clip."""
    count, step = len(timeline.times), cutting.length - cutting.overlap
    found: list[tuple[int, int]] = []
    number = 0
    while True:
        start, end = number * step, number * step + cutting.length
        if cutting.frames:
            first, last = int(start), min(int(end), count)
        else:
            first = bisect_left(timeline.times, start - _NEAR)
            last = bisect_left(timeline.times, end - _NEAR)
        number += 1
        if last - first >= SEGMENT and (not found or last > found[-1][1]):
            found.append((first, last))
        if last >= count:
            break
    return found or [(0, count)]


def _target(name: str, number: int, suffix: str) -> str:
    return f"{name}_{number:03d}{suffix}"


def _clip(file: str, name: str, first: int, last: int, marks: Marks, timeline: Timeline) -> Clip:
    start, end = round(timeline.seconds(first), 3), round(timeline.seconds(last), 3)
    return Clip(file, name, first, last, start, end, marks_within(marks, first, last))


def _copied(
    path: Path, name: str, marks: Marks, out: Path, timeline: Timeline, ranges: list[tuple[int, int]], notes: list[str]
) -> list[Clip]:
    stamps = timeline.stamps
    if stamps is None or len(set(stamps)) < len(stamps) or path.suffix.lower() == ".avi":
        raise UserError(f"{path} has no time stamps for every frame, so it cannot be cut by copying: add --exact")
    order, keys = _order(path, stamps)
    suffix = path.suffix.lower() if path.suffix.lower() in _FORMATS else _ELSE
    spans: list[tuple[int, int]] = []  # places in `keys` of the first key frame, and of the key frame after the last
    for first, last in ranges:
        begin = max(bisect_right(keys, first) - 1, 0)
        end = len(keys) if last >= len(stamps) else bisect_right(keys, last) - 1
        if end > begin and (not spans or begin > spans[-1][0]):
            spans.append((begin, end))
    if not spans:
        spans = [(0, len(keys))]
    if spans[-1][1] < len(keys):
        spans[-1] = (spans[-1][0], len(keys))
    if len(spans) < len(ranges):
        notes.append(
            f"{name}: key frames are up to {_widest(keys, timeline):.1f} s apart, so there are {len(spans)} clips"
            f" instead of {len(ranges)}; --exact cuts at any frame"
        )
    clips = []
    for number, (begin, end) in enumerate(spans):
        stop = keys[end] if end < len(keys) else None
        file = _target(name, number, suffix)
        count = _copy(path, out / file, order, stamps[keys[begin]], None if stop is None else stamps[stop], suffix)
        clips.append(_clip(file, name, keys[begin], keys[begin] + count, marks, timeline))
    return clips


def _widest(keys: list[int], timeline: Timeline) -> float:
    edges = [timeline.seconds(key) for key in keys] + [timeline.end]
    return max(after - before for before, after in pairwise(edges))


def _order(path: Path, stamps: list[int]) -> tuple[list[int], list[int]]:
    """Return the stamps of all frames in the order of decoding, and the numbers of the key frames.

    Decoding can start at each key frame.
    """
    order: list[int] = []
    found: list[int] = []
    with opened(path) as (container, stream, _), contextlib.suppress(av.error.FFmpegError, OSError):
        for packet in container.demux(stream):
            if not packet.size or packet.pts is None or getattr(packet, "is_discard", False):
                continue
            order.append(packet.pts)
            if packet.is_keyframe:
                found.append(packet.pts)
    places = {bisect_left(stamps, stamp) for stamp in found}
    keys = sorted(place for place in places if place < len(stamps))
    if not keys:
        raise UserError(f"{path} has no marks of key frames, so it cannot be cut by copying: add --exact")
    return order, keys


def _copy(path: Path, target: Path, order: list[int], first: int, stop: int | None, suffix: str) -> int:
    """Copy the packets from one key frame to before another. Returns the number of frames.

    Pictures that are decoded after the first key frame and shown before it need the frames before it: they are left
    out, at the end of the clip before.
    """
    try:
        return _write_copy(path, target, _within(order, first, stop), suffix)
    except (av.error.InvalidDataError, av.error.ArgumentError, ValueError) as error:
        raise UserError(f"{path} cannot be copied into {suffix} files ({error}): add --exact") from error


def _within(order: list[int], first: int, stop: int | None) -> list[int]:
    """Return the stamps of a clip in the order of decoding."""
    begin = order.index(first)
    end = len(order) if stop is None else order.index(stop, begin)
    return [stamp for stamp in order[begin:end] if stamp >= first]


def _write_copy(path: Path, target: Path, wanted: list[int], suffix: str) -> int:
    # Frames are decoded in the order of dts. Some containers do not tell it, so it is made: the stamps in order, early
    # enough that no frame is shown before it is decoded.
    first, ordered = wanted[0], sorted(wanted)
    early = max(dts - pts for dts, pts in zip(ordered, wanted, strict=True))
    count = 0
    with storage_errors(target.parent), opened(path) as (container, stream, _), replacing(target) as temporary:
        container.seek(first, stream=stream, backward=True)
        with av.open(str(temporary), "w", format=_FORMATS[suffix]) as written:
            copy = written.add_stream_from_template(stream)
            for packet in _packets(container, stream):
                if count == len(wanted):
                    break
                if packet.pts != wanted[count]:
                    continue
                packet.pts -= first
                packet.dts = ordered[count] - early - first
                packet.stream = copy
                written.mux(packet)
                count += 1
    return count


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    with contextlib.suppress(av.error.EOFError):
        yield from (packet for packet in container.demux(stream) if packet.size)


def _encoded(
    path: Path, name: str, marks: Marks, out: Path, cutting: Cutting, ranges: list[tuple[int, int]]
) -> list[Clip]:
    times: list[float] = []
    with contextlib.ExitStack() as failing:
        writing: dict[int, tuple[contextlib.ExitStack, _Encoder]] = {}
        for frame, (image, time) in enumerate(timed_frames(path, on_truncated=cutting.on_truncated)):
            times.append(time)
            for number, (first, last) in enumerate(ranges):
                if not first <= frame < last:
                    continue
                if number not in writing:
                    stack = failing.enter_context(contextlib.ExitStack())
                    target = out / _target(name, number, ".mp4")
                    temporary = stack.enter_context(replacing(target))
                    writing[number] = stack, stack.enter_context(_Encoder(temporary, image, time, cutting.quality))
                writing[number][1].write(image, time)
                if frame == last - 1:
                    writing.pop(number)[0].close()
        for stack, _ in writing.values():  # a recording that has fewer frames than its packets promise
            stack.close()
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 25.0
    decoded = Timeline(times, times[-1] + 1 / rate, rate)
    return [
        _clip(_target(name, number, ".mp4"), name, first, min(last, len(times)), marks, decoded)
        for number, (first, last) in enumerate(ranges)
        if first < len(times)
    ]


class _Encoder:
    """Writes one clip as H.264 in MP4. Its first frame is at 0 s."""

    def __init__(self, path: Path, image: np.ndarray, start: float, quality: int) -> None:
        self._start, self._last = start, -1
        self._container = av.open(str(path), "w", format="mp4")
        self._stream: Any = self._container.add_stream("libx264", rate=25)
        height, width = image.shape[:2]
        self._stream.width, self._stream.height = width, height
        even = width % 2 == 0 and height % 2 == 0
        self._stream.pix_fmt = "yuv420p" if even else "yuv444p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.options = {"crf": str(quality), "preset": "veryfast"}

    def __enter__(self) -> _Encoder:
        return self

    def write(self, image: np.ndarray, time: float) -> None:
        """Encode a frame that is shown at a time of the recording."""
        if image.shape[:2] != (self._stream.height, self._stream.width):
            raise UserError("the size of the pictures changes within a clip, which `iefvad data cut` cannot encode")
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.time_base = Fraction(1, _TICKS)
        self._last = frame.pts = max(round((time - self._start) * _TICKS), self._last + 1)
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
