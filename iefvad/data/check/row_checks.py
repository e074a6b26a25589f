"""Checks of the rows of lists: repeated rows, missing crops, paths, and event lists that belong to image lists."""

from __future__ import annotations

import difflib
import re
from collections import Counter

from iefvad.data.check.findings import Findings, amount
from iefvad.data.check.recognise import DataSet
from iefvad.data.lists import is_windows_path, leads_out

CROPS = 10


def check_rows(data_set: DataSet, found: Findings) -> None:
    """Find repeated rows, missing crops, and paths that another machine will not find."""
    for source in data_set.of("list"):
        repeated = [path for path, count in Counter(entry.path for entry in source.entries).items() if count > 1]
        if repeated:
            found.add(
                "problem",
                f"{{files}} [lists/list] {amount(len(repeated), 'row')} twice",
                source.label,
                names=repeated,
                why="they would weigh twice",
            )
        crops: dict[str, set[int | None]] = {}
        told: dict[str, int] = {}
        for entry in source.entries:
            crops.setdefault(entry.name, set()).add(entry.crop)
            if entry.crops is not None:
                told[entry.name] = entry.crops
        counts = {name: told.get(name, len(numbers)) for name, numbers in crops.items()}
        if source.partial and counts:
            counts.pop(source.entries[-1].name)  # its rows may be incomplete
        if (
            counts
            and max(counts.values()) > 1
            and (fewer := [f"{name} ({count})" for name, count in counts.items() if count < CROPS])
        ):
            found.add(
                "problem",
                f"{{files}} [lists/list] {amount(len(fewer), 'video')} with fewer than ten crops",
                source.label,
                names=fewer,
                why="the other crops would not be trained on",
            )
        windows = [entry.path for entry in source.entries if is_windows_path(entry.path)]
        if windows:
            found.add(
                "note",
                f"{{files}} [has/have] {amount(len(windows), 'Windows path')}",
                source.label,
                names=windows,
                why="they are found below --features by what follows its folder, as others are",
            )
        if out := [entry.path for entry in source.entries if leads_out(entry.path)]:
            found.add(
                "problem",
                f"{{files}} [has/have] {amount(len(out), 'path')} with a '..' part",
                source.label,
                names=out,
                why="such paths may lead out of the data and are refused when loading",
            )


def check_events(data_set: DataSet, found: Findings) -> None:
    """Compare event lists with image lists: videos, crops, order, and how the path of one gives the other."""
    lists = data_set.of("list")
    for source in [source for source in lists if source.event]:
        candidates = [
            other
            for other in lists
            if not other.event
            and other.split == source.split
            and other.partial == source.partial
            and any(entry.crop is not None for entry in other.entries)
            and "vadclip" not in other.label.lower()
        ]
        if not candidates:
            continue
        image = max(candidates, key=lambda other: difflib.SequenceMatcher(None, other.label, source.label).ratio())
        mine = [(entry.name, entry.crop) for entry in source.entries]
        theirs = [(entry.name, entry.crop) for entry in image.entries]
        if mine == theirs:
            found.add("good", f"{{files}} [lists/list] the same videos, crops and order as {image.label}", source.label)
        elif set(mine) == set(theirs):
            found.add(
                "note",
                f"{{files}} [lists/list] the rows of {image.label} in another order",
                source.label,
                why="event files are found from the image list, so the order is taken from there",
            )
        else:
            absent = sorted({name for name, _ in set(theirs) - set(mine)})
            more = sorted({name for name, _ in set(mine) - set(theirs)})
            found.add(
                "problem",
                f"{{files}} [differs/differ] from {image.label}: {amount(len(absent), 'video')} without all its"
                f" event files, {len(more)} with others",
                source.label,
                names=[*absent, *more],
            )
        folders = {
            _exchanged(entry.path, other.path) for entry, other in zip(source.entries, image.entries, strict=False)
        }
        if len(folders) == 1 and (folder := folders.pop()):
            found.add(
                "note",
                f"event files of {{files}}: the folder `rgb` becomes `{folder}`"
                + ("" if folder == "event" else f" (--event-folder {folder})"),
                source.label,
            )


def _exchanged(event: str, image: str) -> str:
    ours, theirs = re.split(r"[\\/]", event), re.split(r"[\\/]", image)
    for back in range(2, min(len(ours), len(theirs)) + 1):
        if theirs[-back] == "rgb":
            return ours[-back]
    return ""
