"""Readers of frame truth per video, and of the other small files that data sets have beside annotations."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iefvad.data.annotations import MOST_FRAMES, Annotation, split_name
from iefvad.data.lists import ListEntry, base_name, classes_of
from iefvad.data.text_files import csv_rows, read_text, text_lines
from iefvad.features.npy import open_npy
from iefvad.utils.archives import read_npz
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.utils.intervals import runs
from iefvad.utils.plain_json import parse_json

_TRUTH_SUFFIX = re.compile(r"(__\d)?(_gt)?(\.npy)?$")


def read_truth(path: PathLike) -> dict[str, np.ndarray]:
    """Read the frame labels of each video.

    Args:
        path: An .npz with one array per video; an .npz with ``names``, ``lengths`` and ``gt`` (all labels, one video
            after the other); or a folder with one .npy per video.

    Returns:
        {name: uint8 (frames,)}.

    Raises:
        UserError: A file is missing, pickled or damaged, labels are not 0 and 1, or the lengths do not fit.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise UserError(f"{path} contains no .npy file; frame truth is one file of 0/1 per video, or an .npz")
        arrays = {file.name: open_npy(file) for file in files}
    else:
        arrays = _read_npz(path)
        if {"names", "lengths", "gt"} <= set(arrays):
            arrays = _unpack(path, arrays["names"], arrays["lengths"], arrays["gt"])
    truth: dict[str, np.ndarray] = {}
    for written, values in arrays.items():
        name = _TRUTH_SUFFIX.sub("", written)
        if values.ndim != 1 or values.dtype.kind not in "fiub" or not np.isin(values, (0, 1)).all():
            raise UserError(f"{path}: {written} is not one 0 or 1 per frame (it is {values.dtype} {values.shape})")
        if name in truth:
            raise UserError(f"{path} contains {name} twice; keep one")
        truth[name] = np.asarray(values).astype(np.uint8)
    if not truth:
        raise UserError(f"{path} contains no video; expected one array of 0/1 per video")
    return truth


def truth_annotations(truth: dict[str, np.ndarray]) -> dict[str, Annotation]:
    """Convert frame truth to annotations: intervals, frames, and the class "Anomaly" for abnormal videos."""
    found = {}
    for name, labels in truth.items():
        intervals = tuple(runs(labels))
        found[name] = Annotation(name, ("Anomaly",) if intervals else (), intervals, len(labels))
    return found


def read_names(path: PathLike) -> list[ListEntry]:
    """Read a text list of videos.

    A line is ``NAME``, ``NAME CLASS`` or ``CLASS/NAME.mp4``. Folders of normal videos have "Normal" in their name.

    Raises:
        UserError: The file cannot be read or names no video, or a line has more words (with the number of the line).
    """
    entries = []
    for number, line in text_lines(path, "list of videos"):
        written, words = split_name(line)
        if len(words) > 1:
            raise UserError(f"{path}, line {number}: expected NAME or NAME CLASS, found {line[:200]!r}")
        folders = re.split(r"[\\/]", written)[:-1]
        label = words[0] if words else folders[-1] if folders else ""
        if folders and "normal" in label.lower():
            label = "Normal"
        entries.append(ListEntry(written, base_name(written), None, label))
    if not entries:
        raise UserError(f"{path} names no video; expected one name per line")
    return entries


def read_label_map(path: PathLike) -> dict[str, str]:
    """Read a JSON object {label: name of the class}. Raises UserError if the JSON has another form."""
    found = read_json(path)
    if not is_label_map(found):
        raise UserError(f"{path} is not a label map: expected an object of text to text, as {{'B1': 'fighting'}}")
    return dict(found)


def is_label_map(value: Any) -> bool:
    """Return whether a JSON value is an object of text to text."""
    return isinstance(value, dict) and bool(value) and all(isinstance(item, str) for item in value.values())


def read_segments(
    segments: PathLike,
    labels: PathLike,
    entries: Sequence[ListEntry],
    *,
    inverted: Literal["refuse", "keep"] = "refuse",
) -> dict[str, Annotation]:
    """Read VadCLIP's pair of JSON files: intervals and their classes, in the order of a test list.

    A normal video has the class "A" and one interval over the whole video, which tells its number of frames.

    Args:
        segments: File ``[[[s, e], ...], ...]`` with intervals per video.
        labels: File ``[["B1", ...], ...]`` with classes per video.
        entries: Rows of the test list.
        inverted: What to do with an interval that ends before it starts or starts before 0, as for `read_annotations`.

    Returns:
        {name: annotation}.

    Raises:
        UserError: A file has another form, or files and list have different lengths, or an interval is impossible.
    """
    intervals, classes = read_json(segments), read_json(labels)
    if not is_segments(intervals):
        raise UserError(f"{segments} is not a list of lists of [start, end] with whole numbers; check the file")
    if not is_segment_labels(classes):
        raise UserError(f"{labels} is not a list of lists of class names; check the file")
    if not len(intervals) == len(classes) == len(entries):
        raise UserError(
            f"{segments} has {len(intervals)} videos, {labels} {len(classes)} and the list {len(entries)}; they belong "
            "together row by row: give the list that they were made for"
        )
    found: dict[str, Annotation] = {}
    for row, (entry, pairs, kinds) in enumerate(zip(entries, intervals, classes, strict=True), 1):
        if len(pairs) != len(kinds):
            raise UserError(f"{segments}, video {row} has {len(pairs)} intervals, {labels} {len(kinds)} classes for it")
        for start, end in pairs:
            if max(abs(start), abs(end)) > MOST_FRAMES or (inverted == "refuse" and not 0 <= start <= end):
                raise UserError(
                    f"{segments}, video {row} has the impossible interval {start:.12g} to {end:.12g}; correct it"
                )
        named = tuple(dict.fromkeys(kind for written in kinds for kind in classes_of(written)))
        frames = max((end for _, end in pairs), default=0) if not named else None
        kept = tuple((start, end) for start, end in pairs) if named else ()
        found[entry.name] = Annotation(entry.name, named, kept, frames or None)
    return found


def labels_beside(segments: PathLike) -> Path:
    """Return the JSON file of classes that belongs to one of intervals: ``gt_label.json`` for ``gt_segment.json``.

    Raises:
        UserError: The file is missing.
    """
    path = Path(segments)
    labels = path.with_name(path.name.replace("segment", "label"))
    if labels == path or not labels.is_file():
        raise UserError(f"{path} has only intervals; put their classes beside it (gt_label.json for gt_segment.json)")
    return labels


def is_segments(value: Any) -> bool:
    """Return whether a JSON value has the form videos × intervals × [start, end]."""
    return isinstance(value, list) and all(
        isinstance(pairs, list)
        and all(isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair) for pair in pairs)
        for pairs in value
    )


def is_segment_labels(value: Any) -> bool:
    """Return whether a JSON value has the form videos × class names."""
    return isinstance(value, list) and all(
        isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds) for kinds in value
    )


def read_json(path: PathLike) -> Any:
    """Read any JSON file. Raises UserError if it is missing or damaged (with the number of the line)."""
    try:
        return parse_json(read_text(path, "JSON"))
    except ValueError as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{where}: not JSON ({getattr(error, 'msg', error)}); mend the file or fetch it again"
        ) from error


def read_lengths(path: PathLike) -> dict[str, int]:
    """Read the number of frames of each video.

    Args:
        path: A CSV with the columns ``name,frames``, or frame truth as for `read_truth`.

    Returns:
        {name: number of frames}.

    Raises:
        UserError: The file cannot be read, or a number of frames is invalid (with the number of the row).
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".npz":
        return {name: len(labels) for name, labels in read_truth(path).items()}
    rows = [row for row in csv_rows(path, "table of lengths") if any(cell.strip() for cell in row[1])]
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if "name" not in header or "frames" not in header:
        raise UserError(
            f"{path} must begin with a header that has the columns name,frames, found {','.join(header)[:200]!r}"
        )
    lengths: dict[str, int] = {}
    for line, row in rows[1:]:
        cells = dict(zip(header, row, strict=False))
        frames = cells.get("frames", "").strip()
        if not cells.get("name") or not frames.isdecimal():
            raise UserError(f"{path}, line {line}: expected name,frames, found {','.join(row)[:200]!r}")
        if len(frames) > 20 or int(frames) > MOST_FRAMES:
            raise UserError(f"{path}, line {line}: {frames[:20]} frames are beyond {MOST_FRAMES:,}; correct this line")
        name = base_name(cells["name"].strip())
        if lengths.setdefault(name, int(frames)) != int(frames):
            raise UserError(f"{path}, line {line}: {name} has two different lengths; keep one line")
    return lengths


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise UserError(
                f"{path} cannot be read as .npz; it is truncated, or was not saved by numpy.savez: fetch or make it"
                " again"
            )
        return read_npz(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path of the frame truth") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise UserError(
                f"{path} contains pickled objects, which can run code when read; save it again as plain numeric arrays"
            ) from error
        raise UserError(f"{path} cannot be read as .npz ({error}); fetch or make it again") from error


def _unpack(path: Path, names: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(
            f"{path}: names is not one row of texts (it is {names.dtype} {names.shape}); save it as"
            " numpy.array of the names"
        )
    if lengths.dtype.kind not in "iu" or lengths.shape != names.shape or labels.ndim != 1:
        raise UserError(
            f"{path}: names {names.shape}, lengths {lengths.dtype} {lengths.shape} and gt {labels.shape} do not belong"
            " together; expected a name and a whole number per video, and all frame labels in one row"
        )
    counts = [int(length) for length in lengths]
    if min(counts, default=0) < 0 or sum(counts) != len(labels):
        raise UserError(
            f"{path}: {len(names)} names, {len(lengths)} lengths and {len(labels)} frame labels do not belong together;"
            " the lengths must add up to the number of labels"
        )
    pieces: dict[str, np.ndarray] = {}
    end = 0
    for name, count in zip(map(str, names), counts, strict=True):
        if name in pieces:
            raise UserError(f"{path} contains {name} twice; keep one")
        pieces[name] = labels[end : end + count]
        end += count
    return pieces
