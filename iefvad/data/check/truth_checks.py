"""Checks of truth: impossible intervals, and whether annotations and frame truth agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iefvad.data.annotations import Annotation, annotation_of, frame_truth, inclusive
from iefvad.data.check.alignment import align
from iefvad.data.check.findings import Findings, amount
from iefvad.data.check.list_checks import reference
from iefvad.data.check.recognise import DataSet, Source
from iefvad.utils.intervals import runs
from iefvad.video import SEGMENT


def check_intervals(data_set: DataSet, found: Findings) -> None:
    """Find intervals without a frame, that end before they start, or that end after their video."""
    inclusive = {source.label for source in data_set.of("annotations") if _ends_are_inclusive(data_set, source)}
    for source in data_set.of("annotations"):
        empty, inverted = [], []
        for name, annotation in source.videos.items():
            empty += [f"{name} {start} {end}" for start, end in annotation.intervals if start == end]
            inverted += [f"{name} {start} {end}" for start, end in annotation.intervals if end < start or start < 0]
        if empty:
            why = "[s, s) has no frame"
            if source.label in inclusive:
                why += "; the ends in this file are the last abnormal frame (see below), so one frame was meant"
            found.add(
                "note",
                f"{{files}} [has/have] {amount(len(empty), 'interval')} of length zero",
                source.label,
                names=empty,
                why=why,
            )
        if inverted:
            found.add(
                "problem",
                f"{{files}} [has/have] {amount(len(inverted), 'interval')} that end before they start or start"
                " before 0",
                source.label,
                names=inverted,
                why="they give no frame; loading refuses the file: correct these lines",
            )
        for truth in data_set.of("truth"):
            lengths = {name: len(labels) for name, labels in truth.truth.items()}
            _beyond(source, lengths, f"the lengths in {truth.label}", found)


def _beyond(source: Source, lengths: dict[str, int], where: str, found: Findings) -> None:
    over = {}
    for name, annotation in source.videos.items():
        end = max((end for _, end in annotation.intervals), default=0)
        if name in lengths and end > lengths[name]:
            over[name] = end - lengths[name]
    for slight in (True, False):
        names = sorted(name for name in over if (over[name] <= SEGMENT) == slight)
        if not names:
            continue
        most, least = max(over[name] for name in names), min(over[name] for name in names)
        whole = slight and all(length % SEGMENT == 0 for length in lengths.values())
        why = "they are clipped to the video"
        if whole:
            why = (
                f"{where[0].lower() + where[1:]} count whole segments of {SEGMENT} frames: the annotations run on into"
                " the frames left over after the last one, and are clipped"
            )
            if most == SEGMENT:
                why += f"; where it is {SEGMENT}, the end lies one past the last frame left over as well"
        found.add(
            "note" if slight else "problem",
            f"{{files}} [has/have] {amount(len(names), 'video')} whose intervals go beyond the end ({where}), by"
            f" {least} to {most} frames"
            if least < most
            else f"{{files}} [has/have] {amount(len(names), 'video')}"
            f" whose intervals go beyond the end ({where}), by {most} frames",
            source.label,
            names=[f"{name} (ends at {over[name] + lengths[name]}, video at {lengths[name]})" for name in names],
            why=why,
        )


def check_truth(data_set: DataSet, found: Findings) -> list[str]:
    """Rebuild the frame truth of each video from each file of annotations, and find every difference.

    Returns:
        One sentence per file of annotations that gives the truth exactly and annotates all abnormal videos.
    """
    exact = []
    for truth in data_set.of("truth"):
        for source in data_set.of("annotations"):
            differing: dict[str, list[str]] = {}
            kinds: set[str] = set()
            absent: list[str] = []
            compared = frames = abnormal = 0
            for name, labels in truth.truth.items():
                annotation = annotation_of(source.videos, name)
                if annotation is None:
                    if labels.any():
                        absent.append(name)
                        continue
                    annotation = Annotation(name, (), ())
                compared, frames, abnormal = compared + 1, frames + len(labels), abnormal + int(labels.sum())
                if differences := _differences(annotation, labels):
                    differing[name] = [text for text, _ in differences]
                    kinds |= {kind for _, kind in differences}
            total = f"{amount(compared, 'video')}, {amount(frames, 'frame')}, {abnormal:,} abnormal"
            if absent and data_set.name and compared:
                _say_absent(data_set, source, truth, absent, found)
            if not differing:
                found.add(
                    "good", f"{{files}} [gives/give] the frame truth of {truth.label} exactly ({total})", source.label
                )
                if compared:
                    exact.append(f"{source.label} gives the frame truth of {truth.label} exactly ({total})")
                continue
            _say_differences(source, truth, differing, kinds, (compared, abnormal), found)
    return exact


def _say_absent(data_set: DataSet, source: Source, truth: Source, absent: list[str], found: Findings) -> None:
    train = reference(data_set, "train")
    trained = sum(name in train.videos for name in absent) if train else 0
    if train and trained == len(absent):
        why = f"all of them are in {train.label}, not in the released test list"
    else:
        why = f"{trained} of them are in {train.label}" if train else "they cannot be rebuilt"
    found.add(
        "note",
        f"{{files}} [does/do] not annotate {amount(len(absent), 'abnormal video')} of {truth.label}",
        source.label,
        names=absent,
        why=why,
    )


def _say_differences(
    source: Source,
    truth: Source,
    differing: dict[str, list[str]],
    kinds: set[str],
    total: tuple[int, int],
    found: Findings,
) -> None:
    names = [f"{name}: {'; '.join(texts)}" for name, texts in differing.items()]
    count = sum(len(texts) for texts in differing.values())
    compared, abnormal = total
    if kinds == {"end"} and _inclusive_fits(source, truth):
        found.add(
            "note",
            f"{{files}} [leaves/leave] out the last frame of each interval in {truth.label}:"
            f" {count} of {abnormal:,} abnormal frames of {amount(compared, 'video')}",
            source.label,
            names=names,
            why="its ends are the last abnormal frame. Read so (`iefvad data gt --inclusive`), all videos agree"
            f" with {truth.label}; the field reads the ends as half-open, and so do its gt.npy and this package",
        )
        return
    why = []
    if "end" in kinds:
        why.append(
            "a difference of one frame is at the end of an interval: there the annotation's end is the last abnormal"
            " frame, and the next interval begins right after it"
        )
    if kinds - {"end"}:
        why.append(
            "a longer difference is an interval that one of the two files has and the other has not: they are not of"
            " one version"
        )
    found.add(
        "note",
        f"{{files}} [differs/differ] from {truth.label} in {len(differing)} of {amount(compared, 'video')}",
        source.label,
        names=names,
        why="; ".join(why),
    )


def _differences(annotation: Annotation, labels: np.ndarray) -> list[tuple[str, str]]:
    rebuilt = frame_truth(annotation, len(labels))
    ends = {end for _, end in annotation.intervals}
    found = []
    for mine, theirs, who in ((rebuilt, labels, "the annotation"), (labels, rebuilt, "the frame truth")):
        for start, end in runs((mine == 1) & (theirs == 0)):
            kind = "end" if end - start == 1 and start in ends and who == "the frame truth" else "other"
            where = f"frame {start}" if end - start == 1 else f"frames {start} to {end - 1}"
            found.append((f"{where} abnormal only in {who}", kind))
    return found


def _inclusive_fits(source: Source, truth: Source) -> bool:
    for name, labels in truth.truth.items():
        annotation = annotation_of(source.videos, name)
        if annotation and not np.array_equal(frame_truth(inclusive(annotation).intervals, len(labels)), labels):
            return False
    return True


def _ends_are_inclusive(data_set: DataSet, source: Source) -> bool:
    shared = [
        truth for truth in data_set.of("truth") if any(annotation_of(source.videos, name) for name in truth.truth)
    ]
    if not shared or not all(_inclusive_fits(source, truth) for truth in shared):
        return False
    return any(
        _differences(annotation, labels)
        for truth in shared
        for name, labels in truth.truth.items()
        if (annotation := annotation_of(source.videos, name))
    )


def check_lengths(data_set: DataSet, found: Findings) -> None:
    """Compare the lengths of videos if two files tell them."""
    truths = data_set.of("truth")
    for source in data_set.of("annotations"):
        told = {name: annotation.frames for name, annotation in source.videos.items() if annotation.frames}
        for truth in truths if told else ():
            both = [name for name in told if name in truth.truth]
            wrong = {name: told[name] - len(truth.truth[name]) for name in both if told[name] != len(truth.truth[name])}
            if not wrong:
                found.add(
                    "good",
                    f"{{files}} and {truth.label} agree on the length of {amount(len(both), 'video')}",
                    source.label,
                )
                continue
            why = ""
            if set(wrong.values()) == {SEGMENT}:
                why = (
                    f"each is one segment ({SEGMENT} frames) longer: the one rounds the number of segments up, the"
                    " other down, so a gt.npy of the one does not fit features of the other"
                )
            found.add(
                "note",
                f"{{files}} [tells/tell] another length than {truth.label} for {len(wrong)} of"
                f" {amount(len(both), 'normal video')}",
                source.label,
                names=sorted(wrong),
                why=why,
            )


def check_gt(data_set: DataSet, found: Findings) -> list[str]:
    """Check whether a gt.npy is what the annotations give in the order of the test list, for some lengths of videos.

    `iefvad.data.check.alignment` finds the possible lengths.

    Returns:
        One sentence per match.
    """
    main = reference(data_set, "test")
    exact: list[str] = []
    for gt in data_set.of("gt"):
        assert gt.gt is not None
        if len(gt.gt) % SEGMENT:
            found.add(
                "problem",
                f"{gt.label} has {amount(len(gt.gt), 'frame')}, no multiple of {SEGMENT}",
                why="it contains 16 labels per segment: it may be truncated",
            )
        elif main is None:
            found.add("note", f"{gt.label} cannot be checked: no test list is there to tell the order of its videos")
        else:
            for source in data_set.of("annotations"):
                if _fit(gt.label, gt.gt, source, main, data_set, found):
                    exact.append(f"{gt.label} is exactly what {source.label} gives in its order")
    return exact


def _fit(label: str, labels: np.ndarray, source: Source, main: Source, data_set: DataSet, found: Findings) -> bool:
    names = list(main.videos)
    annotations = [annotation_of(source.videos, name) for name in names]
    fit = align(labels, [annotation.intervals if annotation else () for annotation in annotations])
    if fit.starts is None:
        if fit.stuck == len(names):
            what = f"all videos fit, but end at frame {SEGMENT * fit.reached:,} of {len(labels):,}"
        else:
            assert fit.stuck is not None
            what = f"the first that does not fit is {names[fit.stuck]}, at frame {SEGMENT * fit.reached:,} or later"
        found.add(
            "problem",
            f"{label} is not what {{files}} [gives/give] in the order of {main.label}: {what}",
            source.label,
            why="list, annotations and gt do not belong together, or one of them was changed: make it again with"
            " `iefvad data gt`",
        )
        return False
    starts = [index for index, (low, high) in enumerate(fit.starts) if low == high]
    lengths = {names[index]: SEGMENT * length for index, length in fit.lengths().items()}
    shown = sum(bool(annotation and annotation.intervals) for annotation in annotations)
    found.add(
        "good",
        f"{label} is exactly what {{files}} [gives/give] in the order of {main.label}, ends half-open"
        f" ({amount(len(names), 'video')}, {amount(len(labels), 'frame')}, {int(labels.sum()):,} abnormal)",
        source.label,
        why=f"its lengths are written nowhere; the labels themselves fix where {len(starts)} videos start"
        f" ({shown} are abnormal) and how long {len(lengths)} are; the other lengths are free, their sum is"
        " not",
    )
    _beyond(source, lengths, f"the lengths that follow from {label}", found)
    for truth in data_set.of("truth"):
        both = [name for name in lengths if name in truth.truth]
        wrong = [name for name in both if lengths[name] != len(truth.truth[name]) // SEGMENT * SEGMENT]
        if both and not wrong:
            found.add(
                "good",
                f"the lengths that follow from {label} are 16·⌊frames/16⌋ of {truth.label} for all"
                f" {amount(len(both), 'video')} in both",
            )
        elif wrong:
            found.add(
                "problem",
                f"{len(wrong)} of {len(both)} lengths that follow from {label} are not 16·⌊frames/16⌋ of {truth.label}",
                names=wrong,
            )
    return True


def interval_count(annotations: Sequence[Annotation]) -> int:
    """Return the number of intervals of all annotations."""
    return sum(len(annotation.intervals) for annotation in annotations)
