"""The field's lists: CSV files with ``path,label``, one row per feature file (so one row per crop)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from iefvad.data.text_files import csv_rows
from iefvad.features.npy import split_crop
from iefvad.utils.csv_text import csv_line
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.video import VIDEO_SUFFIXES

_PATH_HEADINGS = ("path", "video")
ALONE = "training with --modality image needs no event features"
_EXAMPLES = ("Normal", "Fighting")
_NORMAL = frozenset({"normal", "a", "0", ""})
_XD_CODES = re.compile(r"(?:A|G|B\d|0)(?:-(?:A|G|B\d|0))+")


@dataclass(frozen=True)
class ListEntry:
    """One row of a list.

    Attributes:
        path: Path as written.
        name: Name of the video, without folder, suffix and crop.
        crop: Crop number, or None if the path has none.
        label: Label as written.
        crops: Number of crops, if the list has a column for it (lists with one row per video).
    """

    path: str
    name: str
    crop: int | None
    label: str
    crops: int | None = None


def read_list(path: PathLike) -> list[ListEntry]:
    """Read a CSV list with the columns ``path`` (or ``video``), ``label`` and optionally ``crops``.

    Other columns are ignored. Paths may come from another machine, with slashes or backslashes.

    Raises:
        UserError: The file is missing, has a different header or no rows, or a row has no path.
    """
    rows = csv_rows(path, "CSV list")
    header = [column.strip().lower() for column in rows[0][1]] if rows else []
    path_column = next((header.index(heading) for heading in _PATH_HEADINGS if heading in header), None)
    if path_column is None or "label" not in header:
        raise UserError(f"{path} must begin with the header 'path,label', it begins with {_shown(header)}")
    label_column = header.index("label")
    crops_column = header.index("crops") if "crops" in header else None
    entries = []
    for line, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(path_column, label_column) or not row[path_column].strip():
            raise UserError(f"{path}, line {line}: expected path,label, found {_shown(row)}")
        written = row[path_column].strip()
        name, crop = split_crop(base_name(written))
        counted = row[crops_column].strip() if crops_column is not None and crops_column < len(row) else ""
        if counted and not (counted.isdecimal() and len(counted) < 10):
            raise UserError(f"{path}, line {line}: {counted[:40]!r} is not a number of crops")
        entries.append(ListEntry(written, name, crop, row[label_column].strip(), int(counted) if counted else None))
    if not entries:
        raise UserError(f"{path} lists no videos below its header; add rows path,label")
    return entries


def _shown(cells: Sequence[str]) -> str:
    text = ",".join(cells)
    return repr(text if len(text) <= 200 else text[:200] + "...")


def classes_of(label: str) -> tuple[str, ...]:
    """Return the classes of a label: () for ``Normal``, ``normal`` and XD's ``A``; ("B2", "G") for ``B2-G-0``."""
    label = label.strip()
    parts = label.split("-") if _XD_CODES.fullmatch(label) else [label]
    return tuple(dict.fromkeys(part for part in parts if part.lower() not in _NORMAL))


def form_of_lists(folder: PathLike, names: Iterable[str]) -> str:
    """Say how lists are made, for messages: their form, with names that are in the store, and the commands.

    Args:
        folder: Folder where the lists are looked for.
        names: Names of stored videos.
    """
    chosen = [*islice(names, 2)]
    chosen += ["monday", "tuesday"][len(chosen) :]
    lines = [csv_line((f"{name}.mp4", label)).strip() for name, label in zip(chosen, _EXAMPLES, strict=True)]
    return (
        f"mark the videos with `iefvad label VIDEO... --out {folder}`, or write {Path(folder) / 'train.csv'}: the first"
        f" line is path,label and each other line is a video, such as {lines[0]} or {lines[1]} (Normal, or a class)."
        f" `iefvad data split LIST --out {folder}` divides one such list into train.csv and test.csv"
    )


def event_path(image_path: str, event_folder: str = "event", *, image_folder: str = "rgb") -> str:
    """Return the path of the event features that belong to image features.

    Args:
        image_path: Path of the image features.
        event_folder: Replaces the last folder named ``image_folder`` in the path.
        image_folder: Name of the folder to replace.

    Raises:
        UserError: The path has no folder of this name.
    """
    parts = re.split(r"([\\/])", image_path)  # the separators stay as they are
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == image_folder:
            return "".join([*parts[:index], event_folder, *parts[index + 1 :]])
    raise UserError(
        f"{image_path} has no folder {image_folder!r} that {event_folder!r} could replace to find the event features;"
        f" use such folders, or name the folder of the image features by --image-folder ({ALONE})"
    )


def base_name(path: str) -> str:
    """Return the last part of a path (slashes or backslashes) without the suffix of a video (``.npy`` stays)."""
    return without_video_suffix(re.split(r"[\\/]", path)[-1])


def leads_out(path: str) -> bool:
    """Return whether a path (slashes or backslashes) has a ``..`` part."""
    return ".." in re.split(r"[\\/]", path)


def is_windows_path(path: str) -> bool:
    """Return whether a path has backslashes or begins with a drive letter."""
    return "\\" in path or re.match(r"[A-Za-z]:[\\/]", path) is not None


def without_video_suffix(name: str) -> str:
    """Remove the suffix of a video file. Other dots belong to the name (``Bad.Boys.1995__#...``)."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


class StoredNames:
    """Finds the stored video that a row of a list means: by its relative name, else by its base name.

    Args:
        names: Names of the stored videos.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._by_base: dict[str, list[str]] = {}
        for name in sorted(self._names):
            self._by_base.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def find(self, entry: ListEntry) -> str | None:
        """Return the stored name that a row means, or None.

        Raises:
            UserError: Several stored videos have this base name.
        """
        parts = without_video_suffix(split_crop(entry.path.replace("\\", "/"))[0]).split("/")
        for start in range(len(parts)):
            if (name := "/".join(parts[start:])) in self._names:
                return name
        candidates = self._by_base.get(entry.name, [])
        if len(candidates) > 1:
            raise UserError(f"{entry.path} may mean {' or '.join(candidates[:3])}; write the folder in the list too")
        return candidates[0] if candidates else None


class Relocator:
    """Finds the files of a list in your own folder, if the list has paths of another machine.

    Folders are removed from the left of a path until ``ROOT/rest`` exists. The number of folders that was right for the
    last file is tried first. Each folder is listed only once. Without a root, paths are used as written; relative ones
    start at the folder of the list, else at the working folder.

    Args:
        root: Your folder, or None.
        list_folder: Folder of the list.
    """

    def __init__(self, root: PathLike | None, list_folder: Path) -> None:
        self.roots = [Path(root)] if root is not None else [list_folder, Path()]
        self.cut = root is not None
        self._kept = 0
        self._folders: dict[Path, frozenset[str]] = {}

    def exists(self, path: Path) -> bool:
        """Return whether the file exists."""
        folder = path.parent
        if folder not in self._folders:
            try:
                self._folders[folder] = frozenset(os.listdir(folder))
            except (OSError, ValueError):  # ValueError: a name that no file can have
                self._folders[folder] = frozenset()
        return path.name in self._folders[folder]

    def find(self, written: str) -> Path | None:
        """Return the file that a path of the list means, or None.

        Raises:
            UserError: The path has a ``..`` part, which may lead out of the root.
        """
        if leads_out(written):
            raise UserError(
                f"the path {written} in the list has a '..' part, which may lead out of the data; write it without '..'"
            )
        if not self.cut:
            spellings = dict.fromkeys((written, written.replace("\\", "/")))
            candidates = [root / spelling for spelling in spellings for root in self.roots]
            return next((path for path in candidates if self.exists(path)), None)
        parts = [part for part in re.split(r"[\\/]", written) if part not in ("", ".")]
        for kept in self._orders(len(parts)):
            path = self.roots[0].joinpath(*parts[len(parts) - kept :])
            if self.exists(path):
                self._kept = kept
                return path
        return None

    def _orders(self, count: int) -> Sequence[int]:
        orders = list(range(count, 0, -1))
        return sorted(orders, key=lambda kept: kept != self._kept)
