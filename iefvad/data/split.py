"""Splits a labelled list into training and test lists, or into folds, that share no source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iefvad.data.annotations import parts_of, read_annotations, split_name
from iefvad.data.division import divide
from iefvad.data.lists import ListEntry, StoredNames, base_name, classes_of, read_list, without_video_suffix
from iefvad.data.sources import compiled, joined, matched_source, similar_pairs, sizes, source_of
from iefvad.data.split_config import SplitConfig
from iefvad.data.text_files import csv_rows, text_lines
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, write_text
from iefvad.utils.text import few

LISTS = ("train.csv", "test.csv", "annotations.txt")
"""Names of the files of a split, as `iefvad train --features` looks for them."""


@dataclass
class SplitReport:
    """What a split contains.

    Attributes:
        folders: Folder of each fold, or the one folder.
        counts: For each folder {"train" or "test": (normal videos, abnormal videos, sources)}.
        sources: Number of videos of each source, the largest first.
        notes: What the user should know.
    """

    folders: list[Path] = field(default_factory=list)
    counts: list[dict[str, tuple[int, int, int]]] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def split_list(path: PathLike, out: PathLike, config: SplitConfig) -> SplitReport:
    """Split a labelled list and write the parts.

    Rows keep their columns and their order. Rows of one video (its crops) stay together.

    Args:
        path: CSV `path,label`, with further columns if you like.
        out: Folder for train.csv, test.csv and annotations.txt, or for the folders of the folds.
        config: How to split.

    Raises:
        UserError: The list cannot be read, no sound split exists, or lists would be replaced.
    """
    path, out = Path(path), Path(out)
    entries = read_list(path)
    header, rows = _rows(path)
    report = SplitReport()
    videos: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        videos.setdefault(_video(entry), []).append(number)
    firsts = [numbers[0] for numbers in videos.values()]
    labels = [entries[first].label for first in firsts]
    sources = _sources(list(videos), [rows[first] for first in firsts], header, config, report)
    if config.similar is not None:
        sources = _joined_alike([entries[first] for first in firsts], sources, config, report)
    report.sources = dict(sizes(sources))
    folds = config.folds
    fractions = [1 / folds] * folds if folds else [1 - config.test_fraction, config.test_fraction]
    parts = divide(sources, labels, fractions, seed=config.seed)
    truth = _truth(path, config, [entries[first] for first in firsts], report)
    report.folders = [out / f"fold{number}" for number in range(folds)] if folds else [out]
    require_new([folder / name for folder in report.folders for name in LISTS], overwrite=config.overwrite)
    for fold, folder in enumerate(report.folders):
        tested = [part == (fold if folds else 1) for part in parts]
        contents = {name: [header] for name in ("train", "test")}
        marks = []
        for is_test, name, numbers in zip(tested, videos, videos.values(), strict=True):
            contents["test" if is_test else "train"] += [rows[number] for number in numbers]
            marks += truth.get(name, []) if is_test else []
        for name, content in contents.items():
            write_text(folder / f"{name}.csv", csv_text(content))
        if marks:
            write_text(folder / "annotations.txt", "\n".join(marks) + "\n")
        counts = {}
        for name, wanted in (("train", False), ("test", True)):
            chosen = [number for number, is_test in enumerate(tested) if is_test == wanted]
            normal = sum(not classes_of(labels[number]) for number in chosen)
            counts[name] = (normal, len(chosen) - normal, len({sources[number] for number in chosen}))
        report.counts.append(counts)
    return report


def require_new(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Make sure that no file is replaced without being told to.

    Raises:
        UserError: One of the files exists.
    """
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise UserError(f"{existing[0]} exists{more}: choose another --out, or add --overwrite to replace it.")


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows that `read_list` made entries of."""
    rows = [row for _, row in csv_rows(path, "CSV list")]
    return rows[0], [row for row in rows[1:] if any(cell.strip() for cell in row)]


def _video(entry: ListEntry) -> str:
    """Return what rows of one video have in common: its path without crop and suffix."""
    parts = entry.path.replace("\\", "/").split("/")
    return "/".join([*parts[:-1], entry.name])


def _sources(
    names: Sequence[str], rows: Sequence[list[str]], header: list[str], config: SplitConfig, report: SplitReport
) -> list[str]:
    columns = [column.strip().lower() for column in header]
    column = (config.source_column or "source").strip().lower()
    if config.source_column is not None and column not in columns:
        raise UserError(f"the list has no column {config.source_column!r}, it has {few(columns, 8)}; correct it")
    if config.source_pattern is not None:
        if config.source_column is not None:
            raise UserError("--source-column and --source-pattern exclude each other; give one of them")
        pattern = compiled(config.source_pattern)
        found = [matched_source(name, pattern) for name in names]
        unmatched = [name for name, source in zip(names, found, strict=True) if source is None]
        if unmatched:
            report.notes.append(
                f"{len(unmatched)} of {len(names)} names do not match --source-pattern and are sources of their own:"
                f" {few(unmatched)}"
            )
        return [f"alone {name}" if source is None else source for name, source in zip(names, found, strict=True)]
    if column in columns:
        place = columns.index(column)
        cells = [row[place].strip() if place < len(row) else "" for row in rows]
        return [cell or f"alone {name}" for cell, name in zip(cells, names, strict=True)]
    return [source_of(name) for name in names]


def _joined_alike(
    entries: Sequence[ListEntry], sources: list[str], config: SplitConfig, report: SplitReport
) -> list[str]:
    from iefvad.data.looks import mean_image_features  # torch is needed only here

    if config.features is None or config.similar is None:
        raise UserError("--similar compares features: give the store with --features")
    places, means = mean_image_features(config.features, entries)
    if len(places) < len(entries):
        absent = [entry.name for number, entry in enumerate(entries) if number not in set(places)]
        report.notes.append(f"{len(absent)} videos are not in {config.features} and are not compared: {few(absent)}")
    pairs = [(places[a], places[b]) for a, b in similar_pairs(means, config.similar)] if places else []
    after = joined(sources, pairs)
    report.notes.append(
        f"{len(set(sources))} sources became {len(set(after))}, because {len(pairs)} pairs of videos look alike"
        f" (cosine {config.similar:g} or more)"
    )
    return after


def _truth(path: Path, config: SplitConfig, entries: Sequence[ListEntry], report: SplitReport) -> dict[str, list[str]]:
    """Return the lines of annotations of each video."""
    default = path.parent / "annotations.txt"
    source = Path(config.annotations) if config.annotations else default if default.is_file() else None
    if config.whole:
        if config.features is None or config.annotations:
            raise UserError("--whole needs --features, and no --annotations: it makes annotations from the lengths")
        return _whole(entries, config.features)
    if source is None:
        report.notes.append(
            "no annotations.txt was written, because none was given: testing needs --annotations, or --whole with"
            " --features if abnormal videos are abnormal from the first to the last frame"
        )
        return {}
    known = read_annotations(source, inverted="keep")  # refuses what is not an annotation file
    lines: dict[str, list[str]] = {}
    for _, line in text_lines(source, "annotations"):
        lines.setdefault(base_name(split_name(line)[0]), []).append(line)
    truth: dict[str, list[str]] = {}
    lacking = []
    for entry in entries:
        names = [entry.name] if entry.name in lines else parts_of(known, entry.name)
        truth[_video(entry)] = [line for name in names for line in lines.get(name, [])]
        if not names and classes_of(entry.label):
            lacking.append(entry.name)
    if lacking:
        report.notes.append(f"{source} has no line for {len(lacking)} abnormal videos: {few(lacking)}")
    return truth


def _whole(entries: Sequence[ListEntry], features: str) -> dict[str, list[str]]:
    from iefvad.features.store import FeatureStore

    store = FeatureStore(features)
    stored = StoredNames(store.names())
    truth = {}
    for entry in entries:
        name = stored.find(entry)
        if name is None:
            raise UserError(f"{entry.name} is not in {features}: extract it, or take it out of the list")
        kinds = classes_of(entry.label)
        truth[_video(entry)] = [
            annotation_line(entry.name, [(kinds[0], 0, store.sidecar(name).frames)] if kinds else [])
        ]
    return truth


def annotation_line(name: str, marks: Sequence[tuple[str, int, int]]) -> str:
    """Return a video's line of annotations.txt, with tabs, because names may have blanks.

    Args:
        name: Name of the video with or without suffix.
        marks: (class, start, end) of each interval in frames, half-open.
    """
    file = name if without_video_suffix(name) != name else f"{name}.mp4"
    return "\t".join([file, *(str(word) for mark in marks for word in mark)] if marks else [file, "Normal", "-1", "-1"])


def shown_counts(report: SplitReport) -> list[str]:
    """Return one line per list: numbers of videos and sources."""
    lines = []
    for folder, counts in zip(report.folders, report.counts, strict=True):
        for name, (normal, abnormal, sources) in counts.items():
            lines.append(
                f"{folder / f'{name}.csv'}: {normal + abnormal} videos of {sources} sources, {normal} normal and"
                f" {abnormal} abnormal"
            )
    return lines


def largest(report: SplitReport) -> str:
    """Say how many sources there are, and which have the most videos."""
    several = [f"{name} ({count})" for name, count in report.sources.items() if count > 1]
    total, single = len(report.sources), Counter(report.sources.values())[1]
    shown = f"; the largest: {few(several)}" if several else ""
    return f"{total} sources, {single} of them with one video{shown}"
