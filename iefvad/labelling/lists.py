"""Writes train.csv, test.csv and annotations.txt from the marks, where training looks for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from iefvad.data.annotations import annotation_of, read_annotations
from iefvad.data.division import divide
from iefvad.data.lists import StoredNames, read_list
from iefvad.data.sources import matched_source, source_of
from iefvad.data.split import LISTS, annotation_line
from iefvad.labelling.labels import Labelled, Labels, checksum
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import read_regular, storage_errors, write_text
from iefvad.utils.text import few, readable


class Lists:
    """The lists in a folder. They are written again after every change of the labels.

    Args:
        folder: Their folder.
        test_fraction: Fraction of the labelled videos that are tested.
        pattern: Finds the source in the name of a video; `source_of` does where None.
        seed: Seed of the division.
        overwrite: Replace lists that someone else wrote.

    Attributes:
        sides: Name of each labelled video → "train" or "test".
        note: What is to be known of the division, or "".
    """

    def __init__(
        self, folder: Path, *, test_fraction: float, pattern: re.Pattern[str] | None, seed: int, overwrite: bool = False
    ) -> None:
        self.folder = folder
        self.sides: dict[str, str] = {}
        self.note = ""
        self._test_fraction, self._pattern, self._seed, self._overwrite = test_fraction, pattern, seed, overwrite

    def source(self, name: str) -> str:
        """Return the source of a video."""
        if self._pattern is None:
            return source_of(name)
        return matched_source(name, self._pattern) or f"alone {name}"

    def require_own(self, labels: Labels) -> None:
        """Make sure that no list is replaced that this command did not write.

        Raises:
            UserError: There is one.
        """
        if strange := self._strange(labels):
            raise UserError(
                f"{self.folder / strange[0]} exists, and `iefvad label` did not write it, or it was changed since:"
                " choose another --out, or add --overwrite to replace it"
            )

    def write(self, labels: Labels) -> None:
        """Write the lists of all labelled videos. Lists that became empty are removed.

        Where a list cannot be written, or somebody else has changed one, `note` says so: labels.json has all marks.
        """
        try:
            self._write(labels)
        except UserError as error:
            self.note = f"The lists could not be written; the marks are kept in labels.json. {readable(error)}"

    def _write(self, labels: Labels) -> None:
        with labels.lock:
            found = {name: (video, label) for name, video in sorted(labels.videos.items()) if (label := video.label)}
            self._divide(labels, found)
            contents = self._contents(found)
            if (strange := self._strange(labels)) and not self._overwrite:
                self.note = (
                    f"{few(strange)} in {self.folder} was changed by another program. The lists are not written any"
                    " more; the marks are kept in labels.json. Move the file away, or start with --overwrite."
                )
                return
            self._overwrite = False  # told once: what comes later is someone else's
            labels.note_written(contents)
            for name, text in contents.items():
                write_text(self.folder / name, text)
            for name in LISTS:
                if name not in contents and name in labels.written:
                    with storage_errors(self.folder):
                        (self.folder / name).unlink(missing_ok=True)

    def _divide(self, labels: Labels, found: dict[str, tuple[Labelled, str]]) -> None:
        self.note = ""
        sources = {name: self.source(name) for name in found}
        fixed = {source: int(side == "test") for source, side in labels.sides.items()}
        fractions = [1 - self._test_fraction, self._test_fraction]
        parts = [fixed.get(source, 0) for source in sources.values()]
        if found and self._test_fraction > 0:
            kinds = [label for _, label in found.values()]
            try:
                parts = divide(list(sources.values()), kinds, fractions, seed=self._seed, fixed=fixed)
            except UserError as error:
                self.note = f"No division yet, so videos without a fixed side are for training: {readable(error)}."
        self.sides = {name: ("train", "test")[part] for name, part in zip(found, parts, strict=True)}

    def _contents(self, found: dict[str, tuple[Labelled, str]]) -> dict[str, str]:
        contents = {}
        for side in ("train", "test"):
            rows = [(video.file, label) for name, (video, label) in found.items() if self.sides[name] == side]
            if rows:
                contents[f"{side}.csv"] = csv_text([("path", "label"), *rows])
        lines = [_annotation(video) for name, (video, _) in found.items() if self.sides[name] == "test"]
        if lines:
            contents["annotations.txt"] = "\n".join(lines) + "\n"
        return contents

    def _strange(self, labels: Labels) -> list[str]:
        if self._overwrite:
            return []
        strange = []
        for name in LISTS:
            try:
                known = checksum(read_regular(self.folder / name)) in labels.written.get(name, [])
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                known = False
            if not known:
                strange.append(name)
        return strange


def _annotation(video: Labelled) -> str:
    """Return a video's line: its intervals in order, those of one class that touch as one."""
    merged: list[tuple[str, int, int]] = []
    for kind in sorted({mark.kind for mark in video.marks.values()}):
        for mark in sorted(video.marks.values(), key=lambda mark: mark.first):
            if mark.kind != kind:
                continue
            if merged and merged[-1][0] == kind and mark.first <= merged[-1][2]:
                merged[-1] = (kind, merged[-1][1], max(merged[-1][2], mark.last))
            else:
                merged.append((kind, mark.first, mark.last))
    return annotation_line(video.file, sorted(merged, key=lambda mark: mark[1:]))


def unusable_names(files: dict[str, str], scratch: Path) -> dict[str, str]:
    """Find videos whose names lists and annotations cannot carry, by writing both and reading them back.

    Args:
        files: Name of each video → its name with suffix.
        scratch: An empty folder.

    Returns:
        Name → why it cannot be used.
    """
    stored, unusable = StoredNames(files), {}
    bases: dict[str, list[str]] = {}
    for name in files:
        bases.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    for name, file in files.items():
        if len(bases[name.rsplit("/", 1)[-1]]) > 1:
            unusable[name] = (
                "annotations.txt has names without folders, and two videos have this one: rename one of them"
            )
            continue
        try:
            write_text(scratch / "list.csv", csv_text([("path", "label"), (file, "Normal")]))
            write_text(scratch / "annotations.txt", annotation_line(file, [("Anomaly", 1, 2)]) + "\n")
            [entry] = read_list(scratch / "list.csv")
            annotation = annotation_of(read_annotations(scratch / "annotations.txt"), name)
            fits = stored.find(entry) == name and annotation is not None and annotation.intervals == ((1, 2),)
        except (UserError, ValueError):
            fits = False
        if not fits:
            unusable[name] = "lists cannot carry this name: rename the file, without blanks at its ends and backslashes"
    return unusable


def summary(labels: Labels, lists: Lists, names: Sequence[str]) -> list[str]:
    """Say how far the labelling is, one line each."""
    done = sum(labels.videos[name].label is not None for name in names)
    train, test = (sum(found == side for found in lists.sides.values()) for side in ("train", "test"))
    lines = [f"{done} of {len(names)} videos are labelled; {train} are for training and {test} for testing"]
    return [*lines, f"note: {lists.note}"] if lists.note else lines
