"""Frame annotations: one line per video with its name, optionally its class, and pairs of frame numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from iefvad.data.lists import base_name, classes_of, without_video_suffix
from iefvad.data.text_files import text_lines
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike

MOST_FRAMES = 1_000_000_000
"""Maximum length of a video in frames: a year at 30 frames per second. A larger number is a fault of the file."""

_INTEGER = re.compile(r"[+-]?\d+(?:\.0*)?")
_MSAD_NORMAL = re.compile(r"MSAD_normal_", re.IGNORECASE)
_MSAD_NAME = re.compile(r"(.+?)_\d+")
_XD_LABEL = re.compile(r"_label_([A-Z0-9-]+)$")


@dataclass(frozen=True)
class Annotation:
    """The annotation of one video.

    Attributes:
        name: Name of the video without suffix.
        classes: Its anomaly classes, empty if it is normal.
        intervals: Abnormal intervals [start, end) in frames.
        frames: Length of the video in frames, if the file tells it.
    """

    name: str
    classes: tuple[str, ...]
    intervals: tuple[tuple[int, int], ...]
    frames: int | None = None


def read_annotations(
    path: PathLike,
    *,
    scene_column: Literal["auto", "yes", "no"] = "auto",
    inverted: Literal["refuse", "keep"] = "refuse",
) -> dict[str, Annotation]:
    """Read an annotation file of UCF-Crime, MSAD, ShanghaiTech, XD-Violence or your own data set.

    A line is ``NAME [CLASS] s e [s e ...]`` or ``NAME CLASS s e [CLASS s e ...]``. Intervals are half-open, [s, e) in
    frames; a pair of -1 means no interval. Without a written class, names as in XD-Violence (``..._label_B2-G-0``) tell
    the classes; any other video with intervals has the class "Anomaly". In MSAD the second column is the scene, and
    the name tells the class. See `docs/specification.md#data-conventions`.

    Args:
        path: The file.
        scene_column: Whether the second column is a scene. "auto" means yes if a video is called ``MSAD_normal_...``.
        inverted: What to do with an interval that ends before it starts: "refuse" raises, "keep" keeps it (it has no
            frame), so that it can be reported.

    Returns:
        {name: annotation}.

    Raises:
        UserError: The file cannot be read or annotates nothing. Or, with the number of the line: an odd number of frame
            numbers, an inverted interval, a word that is neither a class nor a number, or two different lines for one
            video.
    """
    lines = text_lines(path, "annotations")
    scenes = scene_column == "yes" or (scene_column == "auto" and any(_MSAD_NORMAL.match(line) for _, line in lines))
    annotations: dict[str, Annotation] = {}
    for number, line in lines:
        try:
            annotation = _parse(line, scenes, inverted)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; expected NAME CLASS start end start end ...") from error
        if annotations.setdefault(annotation.name, annotation) != annotation:
            raise UserError(f"{path}, line {number}: {annotation.name} has two different annotations; keep one line")
    if not annotations:
        raise UserError(f"{path} annotates no video; expected lines NAME CLASS start end ...")
    return annotations


def parts_of(annotations: Mapping[str, Annotation], name: str) -> list[str]:
    """Return the names of a video's annotated parts: ShanghaiTech has ``04_0012_0``, ``04_0012_1`` for ``04_0012``."""
    found: list[str] = []
    while (part := f"{name}_{len(found)}") in annotations:
        found.append(part)
    return found


def annotation_of(annotations: Mapping[str, Annotation], name: str) -> Annotation | None:
    """Return the annotation of a video, or None.

    A name with a folder also matches the name without it. Annotations of parts are joined.
    """
    for key in (name, name.rsplit("/", 1)[-1]):
        if key in annotations:
            return annotations[key]
        if parts := [annotations[part] for part in parts_of(annotations, key)]:
            classes = tuple(dict.fromkeys(kind for part in parts for kind in part.classes))
            return Annotation(key, classes, tuple(interval for part in parts for interval in part.intervals))
    return None


class Unmarked:
    """Finds the annotated video that a name means where one of both has a mark of its codec or encoder.

    Args:
        names: Names of annotated videos.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names: dict[str, list[str]] = {}
        for name in names:
            self._names.setdefault(_without_mark(name), []).append(name)

    def name(self, given: str) -> str | None:
        """Return the annotated name that differs only in such a mark; None where there is none, or several."""
        found = self._names.get(_without_mark(given), [])
        return found[0] if len(found) == 1 else None


def _without_mark(name: str) -> str:
    return re.sub(r"(_x264|_i3d)+$", "", name)


def frame_truth(annotation: Annotation | Iterable[tuple[int, int]], frames: int) -> np.ndarray:
    """Return frame labels, uint8 (frames,): 1 inside the half-open intervals, which are clipped to the video."""
    truth = np.zeros(frames, np.uint8)
    intervals = annotation.intervals if isinstance(annotation, Annotation) else annotation
    for start, end in intervals:
        truth[max(start, 0) : max(end, 0)] = 1
    return truth


def _parse(line: str, scenes: bool, inverted: str) -> Annotation:
    video, words = split_name(line)
    name = base_name(video)
    classes: list[str] = []
    numbers: list[int] = []
    for before, word in zip(["", *words], words, strict=False):
        if _INTEGER.fullmatch(word):
            numbers.append(frame_number(word))
        elif len(numbers) % 2:
            raise ValueError(f"{word!r} is between a start and its end")
        elif not any(letter.isalpha() for letter in word):
            raise ValueError(f"{word!r} is neither a class nor a whole frame number")
        elif before and not _INTEGER.fullmatch(before):
            raise ValueError(f"{before!r} and {word!r} follow each other, where one class is expected")
        else:
            classes += classes_of(word)
    if len(numbers) % 2:
        raise ValueError(f"{name} has {len(numbers)} frame numbers, not pairs")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    intervals = tuple((start, end) for start, end in pairs if start >= 0 or end >= 0)
    for start, end in intervals:
        if inverted == "refuse" and (start < 0 or end < start):
            raise ValueError(f"{name} has the interval {start} {end}")
    if scenes:
        match = _MSAD_NAME.fullmatch(name)
        kind = match[1] if match else name
        classes = [] if _MSAD_NORMAL.match(name) else [kind]
    elif not classes and (label := _XD_LABEL.search(name)):
        classes = list(classes_of(label[1]))
    if intervals and not classes:
        classes = ["Anomaly"]
    return Annotation(name, tuple(dict.fromkeys(classes)), intervals)


def frame_number(word: str) -> int:
    """Return the whole number that a word of digits means. Raises ValueError beyond `MOST_FRAMES`."""
    digits = word.partition(".")[0]
    if len(digits) > 20 or abs(number := int(digits)) > MOST_FRAMES:
        raise ValueError(f"the frame number {digits[:20]} is beyond {MOST_FRAMES:,}")
    return number


def split_name(line: str) -> tuple[str, list[str]]:
    """Split a line into the name of the video, which may contain spaces, and the words after it."""
    # The end of a name with spaces is known only from its suffix, or from a tab after it.
    if "\t" in line:
        name, _, rest = line.partition("\t")
        return name.strip(), rest.split()
    words = line.split()
    for count, word in enumerate(words, 1):
        last = word if count == 1 else f" {word}"  # a name of several words may end with " .mp4"
        if without_video_suffix(last) != last:
            return " ".join(words[:count]), words[count:]
    return words[0], words[1:]


def inclusive(annotation: Annotation) -> Annotation:
    """Return the annotation with half-open intervals, if the ends in the file are the last abnormal frames."""
    intervals = tuple((start, end + 1) for start, end in annotation.intervals)
    return Annotation(annotation.name, annotation.classes, intervals, annotation.frames)
