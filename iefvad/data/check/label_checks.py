"""Checks of labels: between files, within one file, and with the label map."""

from __future__ import annotations

from iefvad.data.check.findings import Findings, amount, listed
from iefvad.data.check.list_checks import SPLITS, reference
from iefvad.data.check.recognise import DataSet, Source, plain_class
from iefvad.data.lists import classes_of


def check_labels(data_set: DataSet, found: Findings) -> None:
    """Find labels that disagree between files, within one file, or with the label map."""
    mapping: dict[str, str] = {}
    for source in data_set.of("labels"):
        mapping.update(source.mapping)
    for split in SPLITS:
        main = reference(data_set, split)
        if main is None:
            continue
        for source in data_set.of("list", "names", "annotations"):
            if source is not main and source.split == split and any(entry.label for entry in source.entries or ()):
                _compare_labels(source, main, mapping, found)
            elif source.kind == "annotations" and source.split == split:
                _compare_classes(source, main, mapping, found)
    for source in data_set.of("list"):
        labels: dict[str, set[str]] = {}
        for entry in source.entries:
            labels.setdefault(entry.name, set()).add(entry.label)
        if several := [name for name, written in labels.items() if len(written) > 1]:
            found.add(
                "problem",
                f"{{files}} [gives/give] {amount(len(several), 'video')} several labels",
                source.label,
                names=several,
                why="training would refuse it: keep one label per video",
            )
        written = {entry.label for entry in source.entries}
        if len(written) == 1 and not source.partial and len(labels) > 1:
            found.add(
                "problem",
                f"all {amount(len(source.entries), 'row')} of {{files}} have the label {next(iter(written))!r}",
                source.label,
                why="training and testing need normal and abnormal videos",
            )
    if mapping:
        known = {plain_class(kind, mapping) for kind in (*mapping, *mapping.values())}
        for source in data_set.of("list", "annotations"):
            kinds = {kind for annotation in source.videos.values() for kind in annotation.classes}
            if unknown := sorted(
                kind for kind in kinds if not kind.isdecimal() and plain_class(kind, mapping) not in known
            ):
                found.add(
                    "note",
                    f"{{files}} [has/have] the class {listed(unknown)}, which is not in the label map",
                    source.label,
                )


def _compare_labels(source: Source, main: Source, mapping: dict[str, str], found: Findings) -> None:
    mine = {entry.name: entry.label for entry in source.entries}
    theirs = {entry.name: entry.label for entry in main.entries}
    pairs: dict[str, dict[tuple[str, str], list[str]]] = {"kind": {}, "class": {}, "written": {}}
    compared = 0
    alike = len(set(mine.values())) == 1 < len(mine)
    for name in mine.keys() & theirs.keys():
        compared += 1
        if mine[name] == theirs[name]:
            continue
        here, there = classes_of(mine[name]), classes_of(theirs[name])
        plain = [{plain_class(kind, mapping) for kind in kinds} for kinds in (here, there)]
        which = "kind" if bool(here) != bool(there) else "written" if plain[0] == plain[1] else "class"
        if which == "class" and alike:
            which = "kind"
        pairs[which].setdefault((mine[name], theirs[name]), []).append(name)
    for which, groups in pairs.items():
        if not groups:
            continue
        shown = ", ".join(f"{a!r} for {b!r}" for a, b in sorted(groups))
        names = sorted(name for group in groups.values() for name in group)
        count = f"{len(names)} of {amount(compared, 'video')}"
        if which == "written":
            found.add(
                "note",
                f"{{files}} [writes/write] the labels of {main.label} otherwise ({shown})",
                source.label,
                why="they mean the same classes",
            )
            continue
        wrong = "normal and abnormal are exchanged" if which == "kind" else "the classes disagree"
        everywhere = {entry.label for entry in source.entries}
        if len(everywhere) == 1:
            wrong = f"the label is the same in all {amount(len(source.entries), 'row')}, so it tells nothing"
        found.add(
            "problem",
            f"{{files}} [labels/label] {count} otherwise than {main.label} ({shown})",
            source.label,
            names=names,
            why=f"{wrong}; take the labels from {main.label}",
        )


def _compare_classes(source: Source, main: Source, mapping: dict[str, str], found: Findings) -> None:
    wrong, differ, compared = [], [], 0
    for name, annotation in source.videos.items():
        if name not in main.videos or not any(entry.label for entry in main.entries):
            continue
        compared += 1
        listed_as = main.videos[name].classes
        if bool(annotation.intervals) != bool(listed_as):
            wrong.append(name)
            continue
        plain = [{plain_class(kind, mapping) for kind in kinds} for kinds in (annotation.classes, listed_as)]
        if plain[0] != plain[1] and annotation.classes != ("Anomaly",):
            differ.append(f"{name} ({'-'.join(annotation.classes)}; listed as {'-'.join(listed_as)})")
    if wrong:
        found.add(
            "problem",
            f"{{files}} and {main.label} disagree whether {amount(len(wrong), 'video')} are abnormal",
            source.label,
            names=wrong,
        )
    if differ:
        found.add(
            "note",
            f"{{files}} [gives/give] {len(differ)} of {amount(compared, 'video')} other classes than {main.label}",
            source.label,
            names=differ,
            why="per-class figures depend on which of the two is taken; training takes the list's",
        )
    if compared and not wrong and not differ:
        found.add("good", f"the classes in {{files}} agree with {main.label}", source.label)
