"""Clips that are cut from recordings: what of the truth each has, and their lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iefvad.data.annotations import Annotation, annotation_of, read_annotations, split_name
from iefvad.data.lists import base_name, classes_of
from iefvad.data.split import LISTS, annotation_line, require_new
from iefvad.data.text_files import csv_rows, text_lines
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text
from iefvad.utils.intervals import runs
from iefvad.utils.plain_json import read_json
from iefvad.video import SEGMENT

Marks = list[tuple[str, int, int]]
"""Abnormal intervals: (class, first frame, frame after the last one)."""

CLIPS = "clips.csv"
"""List of all clips, for `iefvad data split`: path, label, source, and the time in the recording in seconds."""


@dataclass(frozen=True)
class Clip:
    """One clip of a recording.

    Attributes:
        file: Its name with suffix.
        source: Name of the recording.
        first: Its first frame in the recording.
        last: The frame of the recording after its last one.
        start: Time in seconds in the recording at which it starts.
        end: Time in seconds in the recording at which it ends.
        marks: Its abnormal intervals, counted from its own first frame.
    """

    file: str
    source: str
    first: int
    last: int
    start: float
    end: float
    marks: Marks = field(default_factory=list)

    def label(self, least: int = 1) -> str:
        """Return the class with most abnormal frames, or "Normal" with fewer than `least` abnormal frames in all."""
        inside = np.zeros(self.last - self.first, bool)
        lengths: dict[str, int] = {}
        for kind, first, last in self.marks:
            inside[first:last] = True
            lengths[kind] = lengths.get(kind, 0) + last - first
        return max(lengths, key=lambda kind: (lengths[kind], kind)) if inside.sum() >= least else "Normal"


def marks_within(marks: Marks, first: int, last: int) -> Marks:
    """Return the parts of marks within the frames [first, last), counted from `first`."""
    parts = [(kind, max(start, first) - first, min(end, last) - first) for kind, start, end in marks]
    return [(kind, start, end) for kind, start, end in parts if start < end]


def write_clip_lists(
    out: Path, clips: Sequence[Clip], *, least: int = 1, train_fraction: float | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Write clips.csv and annotations.txt, and with a fraction train.csv and test.csv.

    Without a fraction, annotations.txt has all clips. With one, the first clips of each recording are for training and
    get no annotations. A training clip that overlaps the first test clip is left out of both lists.

    Args:
        out: Folder of the lists.
        clips: The clips, those of a recording in order.
        least: Number of abnormal frames from which a clip is abnormal.
        train_fraction: Fraction of the clips of each recording that are for training.
        overwrite: Replace lists that are in the folder already.

    Returns:
        Number of rows of each list.

    Raises:
        UserError: A list exists already, or cannot be written.
    """
    names = [CLIPS, *(LISTS if train_fraction is not None else LISTS[2:])]
    require_new([out / name for name in names], overwrite=overwrite)
    rows: dict[str, list[Sequence[Any]]] = {CLIPS: [("path", "label", "source", "start", "end")]}
    tested = list(clips)
    if train_fraction is not None:
        rows |= {"train.csv": [("path", "label")], "test.csv": [("path", "label")]}
        tested = []
        for source in dict.fromkeys(clip.source for clip in clips):
            own = [clip for clip in clips if clip.source == source]
            count = round(len(own) * train_fraction)
            edge = own[count].first if count < len(own) else own[-1].last
            rows["train.csv"] += [(clip.file, clip.label(least)) for clip in own[:count] if clip.last <= edge]
            rows["test.csv"] += [(clip.file, clip.label(least)) for clip in own[count:]]
            tested += own[count:]
    rows[CLIPS] += [(clip.file, clip.label(least), clip.source, clip.start, clip.end) for clip in clips]
    for name, content in rows.items():
        write_text(out / name, csv_text(content))
    lines = [annotation_line(clip.file, clip.marks if clip.label(least) != "Normal" else []) for clip in tested]
    write_text(out / "annotations.txt", "\n".join(lines) + "\n" if lines else "")
    return {name: len(content) - 1 for name, content in rows.items()}


def read_frame_labels(path: Path) -> np.ndarray:
    """Read frame labels from a text file, one 0 or 1 per line. A header and other columns before it are allowed.

    Returns:
        uint8 (frames,).

    Raises:
        UserError: The file is missing, or a line does not end with 0 or 1.
    """
    if not path.is_file():
        raise UserError(f"there is no label file {path}: give a text file with one 0 or 1 per frame and line.")
    last = [row[-1].strip() for _, row in csv_rows(path, "frame labels") if row]
    if last and last[0] not in ("0", "1"):
        last = last[1:]
    wrong = next((index for index, value in enumerate(last) if value not in ("0", "1")), None)
    if wrong is not None or not last:
        found = repr(last[wrong][:40]) if wrong is not None else "nothing"
        raise UserError(f"{path} must contain one 0 or 1 per frame and line, but has {found}.")
    return np.array([value == "1" for value in last], dtype=np.uint8)


class Truth:
    """The abnormal intervals of recordings, from frame labels, annotations or labels.json.

    Args:
        labels: File of frame labels of the only recording.
        annotations: Annotations, or labels.json of `iefvad label`.
        label: Class of intervals where the file names none.

    Raises:
        UserError: A file cannot be read, or not exactly one is given.
    """

    def __init__(self, labels: str | None, annotations: str | None, label: str) -> None:
        if (labels is None) == (annotations is None):
            raise UserError("give the truth of the recordings: either --labels (one recording) or --annotations")
        self._label = label
        self._frames = None if labels is None else read_frame_labels(Path(labels))
        self._file = labels or annotations or ""
        self._annotations: dict[str, Annotation] = {}
        self._marks: dict[str, Marks] = {}
        if annotations is not None and annotations.endswith(".json"):
            self._marks = _saved_marks(Path(annotations))
        elif annotations is not None:
            self._annotations = read_annotations(annotations)
            self._marks = _classed(annotations)

    def require_one(self, recordings: int) -> None:
        """Make sure that frame labels belong to one recording. Raises UserError."""
        if self._frames is not None and recordings > 1:
            raise UserError(f"--labels has the frames of one recording, and there are {recordings}: give --annotations")

    def of(self, name: str, frames: int, kept: int | None = None) -> Marks:
        """Return the marks of a recording.

        Args:
            name: Its name.
            frames: Its number of frames.
            kept: Number of its frames that are in whole segments; a last part of a segment needs no labels.

        Raises:
            UserError: The truth does not have the recording, or has another number of frames.
        """
        if self._frames is not None:
            if len(self._frames) != frames and not (kept is not None and 0 <= len(self._frames) - kept < SEGMENT):
                raise UserError(
                    f"{name} has {frames} frames, but there are {len(self._frames)} labels: give one label per frame."
                )
            return [(self._label, start, end) for start, end in runs(self._frames)]
        if name in self._marks:
            found = self._marks[name]
        elif (annotation := annotation_of(self._annotations, name)) is not None:
            kind = annotation.classes[0] if len(annotation.classes) == 1 else None
            base = name.rsplit("/", 1)[-1]
            classed = self._marks.get(base, [])
            if kind is None and len(classed) == len(annotation.intervals):
                found = classed
            else:
                found = [(kind or self._label, start, end) for start, end in annotation.intervals]
            if kind == "Anomaly":  # that a file without classes is read as
                found = [(self._label, start, end) for _, start, end in found]
        else:
            raise UserError(f"{self._file} says nothing about {name}: add a line, with -1 -1 if it is normal")
        return [(kind, start, min(end, frames)) for kind, start, end in found if start < frames]


def _saved_marks(path: Path) -> dict[str, Marks]:
    """Return the marks in labels.json of the videos that are labelled."""
    content = read_json(path, "give the labels.json that `iefvad label` wrote, or annotations")
    try:
        return {
            name: [(str(mark["kind"]), int(mark["first"]), int(mark["last"])) for mark in video["marks"].values()]
            for name, video in content["videos"].items()
            if video["normal"] or video["marks"]
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not a file of `iefvad label`: give its labels.json, or annotations") from None


def _classed(path: str) -> dict[str, Marks]:
    """Return the intervals with their own classes of lines NAME CLASS s e [CLASS s e ...]."""
    found: dict[str, Marks] = {}
    for _, line in text_lines(path, "annotations"):
        name, words = split_name(line)
        kind = ""
        numbers: list[int] = []
        marks: Marks = []
        for word in words:
            if word.lstrip("+-").replace(".", "", 1).isdigit():
                numbers.append(int(float(word)))
                if len(numbers) == 2:
                    marks.append((kind, numbers[0], numbers[1]))
                    numbers = []
            else:
                kind = word
        kept = [(kind, start, end) for kind, start, end in marks if start >= 0 or end >= 0]
        if len({kind for kind, _, _ in kept}) > 1 and all(classes_of(kind) for kind, _, _ in kept):
            found[base_name(name)] = kept
    return found
