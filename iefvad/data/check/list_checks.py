"""Checks of the videos in each list: test videos that are trained on, and names that differ between files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from iefvad.data.check.findings import Findings, amount, listed
from iefvad.data.check.recognise import DataSet, Source, Split, plain_name

SPLITS: tuple[Split, ...] = ("train", "test")
_SIMILAR, _MOST_COMPARED = 0.85, 200
_PART = re.compile(r"(.+)_\d")
_NOT_DIGIT = re.compile(r"\D")


def reference(data_set: DataSet, split: Split) -> Source | None:
    """Return the list that others of its split are compared with: complete, of images, and released, if possible."""
    lists = [source for source in data_set.of("list", "names") if source.split == split]
    order = sorted(
        lists,
        key=lambda source: (
            source.partial,
            source.kind != "list",
            source.event,
            "vadclip" in source.label.lower(),
            "vitb" in source.label.lower(),  # the smaller encoder
            -len(source.videos) if split == "train" else 0,
        ),
    )
    return order[0] if order else None


def tested_sources(data_set: DataSet) -> list[Source]:
    """Return the files that tell which videos are tested: lists, annotations, and truth that covers the test list."""
    main = reference(data_set, "test")
    found = [source for source in data_set.of("list", "names", "annotations") if source.split == "test"]
    for source in data_set.of("truth"):
        if main is None or set(main.videos) <= set(source.videos):
            found.append(source)
    return [source for source in found if not source.partial]


def check_overlap(data_set: DataSet, found: Findings) -> list[str]:
    """Find test videos that are trained on, for each file that tells which videos are tested.

    Returns:
        One sentence per overlap.
    """
    train, main = reference(data_set, "train"), reference(data_set, "test")
    if train is None:
        found.add("note", "there is no training list, so nothing is known of an overlap with the test videos")
        return []
    part = ", which holds the first rows of a training list only" if train.partial else ""
    sources = tested_sources(data_set)
    largest: dict[tuple[str, ...], int] = {}
    told: list[str] = []
    for source in sources:
        common = tuple(sorted(set(source.videos) & set(train.videos)))
        largest[common] = max(largest.get(common, 0), len(source.videos))
    for source in sources:
        both = sorted(set(source.videos) & set(train.videos))
        tested = amount(len(source.videos), "test video")
        if not both and not video_parts(source, train.videos):
            found.add("good", f"none of the {tested} of {{files}} is in {train.label}{part}", source.label)
        if not both or len(source.videos) < largest[tuple(both)]:
            continue  # the complete list tells the same as annotations without normal videos
        why = "results on them are too good: take them out of the training list"
        if main is not None and not set(both) & set(main.videos):
            why = (
                f"{main.label} ({amount(len(main.videos), 'video')}) leaves them out, so figures on it are sound;"
                " figures on the longer list are too good unless they are taken out of the training list"
            )
        several = sum(len(train.videos[name].classes) > 1 for name in both)
        if several == len(both) > 1:
            why = f"each of them has several classes; {why}"
        if main is not None and not set(both) & set(main.videos):
            told.append(f"{len(both)} of the {len(source.videos)} videos of the longer list are trained on")
        found.add(
            "problem",
            f"{len(both)} of the {tested} of {{files}} are in {train.label}{part}",
            source.label,
            names=both,
            why=why,
        )
    return told


def check_parts(data_set: DataSet, found: Findings) -> list[str]:
    """Find test videos that are annotated in parts (``NAME_0``, ``NAME_1``), whose names are not in any list.

    Returns:
        One sentence per file, if such videos are trained on.
    """
    told: list[str] = []
    train, main = reference(data_set, "train"), reference(data_set, "test")
    for source in data_set.of("annotations", "names"):
        if source.split != "test":
            continue
        for split_list in (train, main):
            if split_list is None:
                continue
            whole = video_parts(source, split_list.videos)
            names = sorted(whole)
            if not names:
                continue
            count = sum(len(parts) for parts in whole.values())
            text = f"{{files}} [names/name] {amount(len(names), 'test video')} in {count} parts"
            why = "parts: " + ", ".join(part for name in names for part in whole[name])
            if split_list is train and train.split == "train":
                rest = len(source.videos) - count
                told.append(
                    f"{len(names)} of the {rest + len(names)} videos that are annotated for testing are trained on"
                    f" ({listed(names)})"
                )
                found.add(
                    "problem",
                    f"{text}, and {train.label} trains on {'it' if len(names) == 1 else 'them'}",
                    source.label,
                    names=names,
                    why=f"{why}. So {amount(rest + len(names), 'video')} are tested officially ({rest} +"
                    f" {len(names)}), and figures on all of them are too good"
                    + (f"; {main.label} ({len(main.videos)}) leaves them out" if main else ""),
                )
            else:
                found.add("note", f"{text}; they are joined where truth is made", source.label, names=names, why=why)
    return told


def video_parts(source: Source, known: Iterable[str]) -> dict[str, list[str]]:
    """Return {video: names in `source` that are parts of it}, for the videos `known`."""
    known = set(known)
    whole: dict[str, list[str]] = {}
    for name in source.videos:
        match = _PART.fullmatch(name)
        if match and name not in known and match[1] in known:
            whole.setdefault(match[1], []).append(name)
    return whole


def check_names(data_set: DataSet, found: Findings) -> None:
    """Find videos that a test file lacks, adds, spells differently or lists in another order."""
    main = reference(data_set, "test")
    if main is None:
        return
    train = reference(data_set, "train")
    sources = tested_sources(data_set)
    for source in [*sources, *(truth for truth in data_set.of("truth") if truth not in sources)]:
        if source is main:
            continue
        if source.order:
            found.add(
                "note",
                f"{{files}} [names/name] no videos: read in the order of {source.order}, which fits best",
                source.label,
            )
        parts = {
            part
            for split in (main, train)
            if split
            for found_parts in video_parts(source, split.videos).values()
            for part in found_parts
        }
        extra = [name for name in source.videos if name not in main.videos and name not in parts]
        missing = [name for name in main.videos if name not in source.videos]
        elsewhere = {name for name in extra if train and name in train.videos}
        unknown, missing = _spellings(source, main, [name for name in extra if name not in elsewhere], missing, found)
        extra = sorted([*elsewhere, *unknown])
        if source.kind == "truth" and not set(main.videos) <= set(source.videos):
            both = len(set(main.videos) & set(source.videos))
            trained = len(set(train.videos) & set(source.videos)) if train else 0
            found.add(
                "note",
                f"{source.label} is no truth of the whole test set: it has {both} of the {len(main.videos)}"
                f" videos of {main.label}, and {trained} that are trained on",
                why=_truth_of_others(source, main, both),
            )
            continue
        if missing:
            normal = all(not main.videos[name].classes for name in missing)
            found.add(
                "note" if normal else "problem",
                f"{{files}} [lacks/lack] {amount(len(missing), 'video')} of {main.label}",
                source.label,
                names=missing,
                why="all of them are normal, and annotations need not name those"
                if normal
                else "among them are abnormal ones; their truth has to come from elsewhere",
            )
        if extra and not (train and set(extra) <= set(train.videos)):  # else the overlap has been told
            found.add(
                "note",
                f"{{files}} [names/name] {amount(len(extra), 'video')} that {main.label} lacks",
                source.label,
                names=extra,
            )
        if not extra and not missing and not parts and source.kind in ("list", "names"):
            same = [name for name in source.videos] == [name for name in main.videos]
            if set(source.videos) == set(main.videos) and not same:
                found.add(
                    "note",
                    f"{{files}} [names/name] the videos of {main.label} in another order",
                    source.label,
                    why="a gt.npy belongs to the order of one list: made for the one it does not fit the other",
                )


def check_training_names(data_set: DataSet, found: Findings) -> None:
    """Find training lists that do not name the same videos."""
    main = reference(data_set, "train")
    for source in data_set.of("list", "names"):
        if main is None or source is main or source.split != "train" or source.partial or main.partial:
            continue
        extra, missing = sorted(set(source.videos) - set(main.videos)), sorted(set(main.videos) - set(source.videos))
        if not extra and not missing:
            found.add("good", f"{{files}} [names/name] the videos of {main.label}", source.label)
        if extra:
            found.add(
                "note",
                f"{{files}} [names/name] {amount(len(extra), 'training video')} that {main.label} lacks",
                source.label,
                names=extra,
            )
        if missing:
            found.add(
                "note",
                f"{{files}} [lacks/lack] {amount(len(missing), 'training video')} of {main.label}",
                source.label,
                names=missing,
            )


def _truth_of_others(source: Source, main: Source, both: int) -> str:
    abnormal = sum(bool(annotation.classes) for annotation in source.videos.values())
    listed_abnormal = sum(bool(annotation.classes) for annotation in main.videos.values())
    if abnormal == len(source.videos) and both == listed_abnormal:
        return (
            f"all {abnormal} are abnormal, and all {both} abnormal test videos are among them: it follows another split"
            " (the data set's original one), which the weakly supervised split divides anew"
        )
    return "it follows another split"


def _spellings(
    source: Source, main: Source, extra: list[str], missing: list[str], found: Findings
) -> tuple[list[str], list[str]]:
    # Finds pairs of names that mean the same video: other case, without a suffix, or nearly the same letters.
    left = dict.fromkeys(missing)
    by_plain = {plain_name(name): name for name in missing}
    cut: dict[str, list[str]] = {}
    other: list[str] = []
    rest: list[str] = []
    starts: dict[str, list[str]] = {}
    for name in missing:
        for end in [index for index, letter in enumerate(name) if letter == "_"]:
            starts.setdefault(name[:end], []).append(name)
    for name in extra:
        longer = [candidate for candidate in starts.get(name, []) if candidate in left]
        if len(longer) == 1:
            cut.setdefault(longer[0][len(name) :], []).append(name)
            left.pop(longer[0])
        elif (same := by_plain.get(plain_name(name))) in left and same is not None:
            other.append(f"{name} for {same}")
            left.pop(same)
        else:
            rest.append(name)
    if 0 < len(rest) <= _MOST_COMPARED and 0 < len(left) <= _MOST_COMPARED:
        for name in list(rest):
            numbers = _NOT_DIGIT.sub("", name)  # names that differ in a number are different videos
            alike = [candidate for candidate in left if _NOT_DIGIT.sub("", candidate) == numbers]
            if close := difflib.get_close_matches(name, alike, 1, _SIMILAR):
                other.append(f"{name} for {close[0]}")
                left.pop(close[0])
                rest.remove(name)
    for suffix, names in cut.items():
        found.add(
            "note",
            f"{{files}} [writes/write] {amount(len(names), 'name')} without the ending {suffix!r} of {main.label}",
            source.label,
            names=names,
            why="files are found by name: add the ending before using these names in a list",
        )
    if other:
        found.add(
            "problem",
            f"{{files}} [spells/spell] {amount(len(other), 'video')} otherwise than {main.label}",
            source.label,
            names=other,
            why="files are found by name: write them alike",
        )
    return rest, list(left)
