"""Recognises the files of data sets by their content, and groups them by data set."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from iefvad.data.annotations import Annotation, read_annotations
from iefvad.data.ground_truth import listed_videos
from iefvad.data.lists import ListEntry, base_name, classes_of, is_windows_path, read_list
from iefvad.data.text_files import read_text
from iefvad.data.truth_files import (
    is_label_map,
    is_segment_labels,
    is_segments,
    labels_beside,
    read_json,
    read_label_map,
    read_names,
    read_segments,
    read_truth,
    truth_annotations,
)
from iefvad.features.npy import open_npy
from iefvad.features.store import is_store
from iefvad.utils.csv_text import CsvRows
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.video import VIDEO_SUFFIXES

Kind = Literal["annotations", "list", "names", "truth", "gt", "labels"]
Split = Literal["train", "test"]

_DATA_SET = re.compile(r"(?<![a-z])(ucf|xd|shang|msad)", re.IGNORECASE)
_TITLES = {"ucf": "UCF-Crime", "xd": "XD-Violence", "shang": "ShanghaiTech", "msad": "MSAD"}
_PROSE = re.compile(r"readme|licen[cs]e|requirements|notes", re.IGNORECASE)
_NUMBER = re.compile(r"\s[+-]?\d+(\.0*)?(\s|$)")


@dataclass
class Source:
    """One file and its content.

    Attributes:
        path: The file.
        label: How reports call it.
        kind: Kind of file.
        split: "train" or "test", or None if it belongs to no split.
        event: Whether it lists event features.
        partial: Whether it has only the first rows of a longer list.
        videos: {name: annotation} of the videos that the file names.
        entries: Rows of a list.
        truth: {name: frame labels} of frame truth.
        gt: Frame labels of a gt.npy, (16·ΣT,).
        mapping: Content of a label map.
        order: Label of the list whose order the file follows.
    """

    path: Path
    label: str
    kind: Kind
    split: Split | None = None
    event: bool = False
    partial: bool = False
    videos: dict[str, Annotation] = field(default_factory=dict)
    entries: list[ListEntry] = field(default_factory=list)
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    gt: np.ndarray | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    order: str = ""


@dataclass
class DataSet:
    """All files of one data set.

    Attributes:
        name: Name of the data set.
        sources: Files that were read.
        skipped: Labels of the files that were not recognised.
        unreadable: {label: reason} of the files that look damaged.
    """

    name: str
    sources: list[Source] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def of(self, *kinds: Kind) -> list[Source]:
        """Return the files of the given kinds, in order."""
        return [source for source in self.sources if source.kind in kinds]


def read_source(
    path: Path, label: str | None = None, *, kind: Kind | None = None, split: Split | None = None
) -> Source:
    """Read one file of any kind except VadCLIP's JSON pair (see `pair_segments`).

    Args:
        path: The file, or a folder of frame truth.
        label: How reports call it. Default: its name.
        kind: Kind of file. Default: recognised by content.
        split: Split of the file. Default: recognised by its label.

    Raises:
        UserError: The file is not recognised or cannot be read.
    """
    label = label or path.name
    kind = kind or _kind(path)
    if kind is None:
        raise UserError(f"{path} is not a known file of a data set; give lists, annotations or frame truth")
    lower = label.lower()
    if split is None and kind != "labels":
        split = "train" if "train" in lower else "test"
    source = Source(path, label, kind, split, bool(re.search(r"event|thr_\d", lower)), "_head" in lower)
    if kind == "list":
        source.entries = read_list(path)
    elif kind == "names":
        source.entries = read_names(path)
    elif kind == "annotations":
        source.videos = read_annotations(path, inverted="keep")
    elif kind == "truth":
        source.truth = read_truth(path)
        source.videos = truth_annotations(source.truth)
    elif kind == "labels":
        source.mapping = read_label_map(path)
    else:
        source.gt = _read_gt(path)
    for entry in source.entries:
        source.videos.setdefault(entry.name, Annotation(entry.name, classes_of(entry.label), ()))
    return source


def find_data_sets(folders: Iterable[PathLike]) -> list[DataSet]:
    """Search folders, with their sub-folders, for files of data sets.

    A file belongs to the data set that its path names (ucf, xd, shang, msad), else to the data set of its folder.

    Raises:
        UserError: A folder does not exist, or there are no files of data sets.
    """
    found: dict[str, list[Path]] = {}
    for folder in folders:
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; give the folder of lists and annotations, or files by option")
        for path in _files(root):
            found.setdefault(_data_set(path, root), []).append(path)
    data_sets = [_read_all(name, paths) for name, paths in sorted(found.items())]
    data_sets = [data_set for data_set in data_sets if data_set.sources or data_set.unreadable]
    if not data_sets:
        raise UserError(
            f"{', '.join(str(folder) for folder in folders)}: no lists (path,label), annotations or frame truth there"
        )
    return data_sets


def pair_segments(data_set: DataSet, path: Path, label: str) -> None:
    """Add VadCLIP's JSON pair of intervals and classes to a data set, in the order of the test list that fits best.

    Args:
        data_set: The data set, with its test lists.
        path: File of the intervals. The file of the classes is beside it.
        label: How reports call it.

    Raises:
        UserError: The file of the classes is missing, or no test list fits.
    """
    known: dict[str, Annotation] = {}
    for source in data_set.of("annotations"):
        known.update(source.videos)
    best: tuple[int, dict[str, Annotation], str] | None = None
    problem = UserError(f"{path} names no videos: a test list in whose order it is must be given too")
    for source in data_set.of("list"):
        if source.split != "test" or source.partial:
            continue
        try:
            rows = [entries[0] for entries in listed_videos(source.entries).values()]  # a list may name each crop
            videos = read_segments(path, labels_beside(path), rows, inverted="keep")
        except UserError as error:
            problem = error
            continue
        score = sum(set(found.classes) == set(source.videos[name].classes) for name, found in videos.items())
        score += sum(name in known and known[name].intervals == found.intervals for name, found in videos.items())
        if best is None or score > best[0]:
            best = (score, videos, source.label)
    if best is None:
        raise problem
    data_set.sources.append(Source(path, label, "annotations", "test", videos=best[1], order=best[2]))


def _files(root: Path) -> list[Path]:
    paths: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = _without_features(Path(folder), names)
        arrays = sorted(name for name in names if name.endswith(".npy") and not name.startswith("gt"))
        paths += [Path(folder, name) for name in sorted(names) if name not in arrays and not name.startswith(".")]
        if arrays and _is_truth_folder(Path(folder, arrays[0])):
            paths.append(Path(folder))
    return paths


def _without_features(folder: Path, names: list[str]) -> list[str]:
    """Leave out what a feature store keeps: `data verify` reads that."""
    if not is_store(folder):
        return names
    stored = {name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    own = {f"{name}{suffix}" for name in stored for suffix in (".safetensors", ".json")}
    return [name for name in names if name not in own | {"store.json", "index.csv", "failed.csv", "labels.json"}]


def _is_truth_folder(first: Path) -> bool:
    # The folder may have thousands of feature files. One header tells what they are.
    try:
        return open_npy(first).ndim == 1
    except UserError:
        return False


def _data_set(path: Path, root: Path) -> str:
    relative = path.relative_to(root)
    for part in (*reversed(relative.parts), root.resolve().name):
        if match := _DATA_SET.search(part):
            return _TITLES[match[0].lower()]
    return root.resolve().name if len(relative.parts) == 1 else relative.parts[0]


def _read_all(name: str, paths: Sequence[Path]) -> DataSet:
    data_set = DataSet(name)
    parents = [str(path.parent) for path in paths]
    base = Path(os.path.commonpath(parents))
    segments: list[Path] = []
    for path in paths:
        label = path.relative_to(base).as_posix() if path != base else path.name
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device: reading may never end
            data_set.skipped.append(label)
            continue
        try:
            if path.suffix.lower() == ".json" and is_segments(content := read_json(path)) and content:
                segments.append(path)
            elif path.suffix.lower() == ".json" and is_segment_labels(content) and content:
                continue  # read with its intervals
            elif (kind := _kind(path)) is None:
                data_set.skipped.append(label)
            else:
                data_set.sources.append(read_source(path, label, kind=kind))
        except UserError as error:
            data_set.unreadable[label] = str(error)
    _tell_splits(data_set)
    for path in segments:
        try:
            pair_segments(data_set, path, path.relative_to(base).as_posix())
        except UserError as error:
            data_set.unreadable[path.relative_to(base).as_posix()] = str(error)
    return data_set


def _tell_splits(data_set: DataSet) -> None:
    # VadCLIP has `ucf_CLIP_rgb.csv` beside `ucf_CLIP_rgbtest.csv`: the training list has no "train" in its name, but
    # it lists every crop.
    for source in data_set.of("list"):
        if not re.search("train|test", source.label, re.IGNORECASE):
            crops = {entry.crop for entry in source.entries}
            source.split = "train" if len(crops) > 1 else "test"


def _kind(path: Path) -> Kind | None:
    # A damaged file of a known kind has that kind, so that reading it tells what is wrong.
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".npz":
        return "truth"
    if suffix == ".npy":
        return "gt"
    if suffix == ".json":
        content = read_json(path)
        if is_label_map(content):
            return "labels"
        if isinstance(content, list):
            raise UserError(f"{path} is JSON of another shape than intervals [[[s, e], ...], ...] or classes; check it")
        return None
    if suffix == ".csv":
        return "list" if _is_list(path) else None
    if suffix == ".txt" and not _PROSE.search(path.stem):
        text = read_text(path, "annotations")
        return "annotations" if any(_NUMBER.search(line) for line in text.splitlines()) else "names"
    return None


def _is_list(path: Path) -> bool:
    first = read_text(path, "CSV list").splitlines()[:1]
    try:
        cells = [cell.strip().lower() for cell in next(CsvRows(first), [])]
    except csv.Error as error:
        raise UserError(f"{path}, line 1: cannot be read as CSV list: {error}; mend this line") from error
    headed = "label" in cells and ("path" in cells or "video" in cells)
    endings = (".npy", *VIDEO_SUFFIXES)
    return headed or not cells or any(cell.endswith(endings) or is_windows_path(cell) for cell in cells)


def _read_gt(path: Path) -> np.ndarray:
    labels = open_npy(path)
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise UserError(f"{path} is not frame labels: expected one row of 0 and 1, found {labels.dtype} {labels.shape}")
    return np.asarray(labels).astype(np.uint8)


def class_counts(videos: Mapping[str, Annotation]) -> dict[str, int]:
    """Return the number of videos per class, and of "normal" ones. A video with several classes counts in each."""
    counts: dict[str, int] = {}
    for annotation in videos.values():
        for kind in annotation.classes or ("normal",):
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (item[0] == "normal", item[0].lower())))


def plain_class(kind: str, mapping: Mapping[str, str]) -> str:
    """Return one spelling of a class: by the label map, lower case, only letters and digits ("B6" → "caraccident")."""
    return re.sub(r"[^a-z0-9]", "", mapping.get(kind, kind).lower())


def plain_name(name: str) -> str:
    """Return a video's name without case and folder, to find the same video with another spelling."""
    return base_name(name).casefold()


def data_set_of_files(files: Iterable[tuple[Kind, Split | None, PathLike]]) -> DataSet:
    """Read single files as one data set.

    Args:
        files: Kind, split and path of each file. Annotations may be any file that contains intervals: text, VadCLIP's
            JSON, or frame truth.

    Raises:
        UserError: a file cannot be read as what it was given for.
    """
    data_set = DataSet("given files")
    segments = []
    for kind, split, name in files:
        path = Path(name)
        if kind == "annotations" and path.suffix.lower() == ".json":
            segments.append(path)
            continue
        if kind == "annotations" and (path.is_dir() or path.suffix.lower() == ".npz"):
            kind = "truth"
        data_set.sources.append(read_source(path, path.name, kind=kind, split=split))
    for path in segments:  # they take their videos from the lists
        pair_segments(data_set, path, path.name)
    return data_set
