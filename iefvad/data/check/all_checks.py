"""Runs all checks of one data set: every list, annotation and truth file is compared with the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iefvad.data.check.feature_checks import check_features
from iefvad.data.check.findings import FileRow, Findings, Report, amount
from iefvad.data.check.label_checks import check_labels
from iefvad.data.check.list_checks import (
    SPLITS,
    check_names,
    check_overlap,
    check_parts,
    check_training_names,
    reference,
)
from iefvad.data.check.look_checks import check_looks
from iefvad.data.check.recognise import (
    DataSet,
    Kind,
    Source,
    Split,
    class_counts,
    data_set_of_files,
    find_data_sets,
)
from iefvad.data.check.row_checks import check_events, check_rows
from iefvad.data.check.truth_checks import check_gt, check_intervals, check_lengths, check_truth, interval_count
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike


def check_data_set(data_set: DataSet, *, features: Path | None = None) -> Report:
    """Compare all files of a data set.

    Args:
        data_set: The data set.
        features: Folder below which the feature files of the lists are searched and compared too, or a feature store,
            whose training and test videos are compared.

    Raises:
        UserError: A path in a list may lead out of `features`.
    """
    found = Findings()
    for label, reason in data_set.unreadable.items():
        found.add("problem", f"{label} cannot be read: {reason}")
    trained = check_overlap(data_set, found) + check_parts(data_set, found)
    check_labels(data_set, found)
    check_rows(data_set, found)
    check_names(data_set, found)
    check_training_names(data_set, found)
    check_events(data_set, found)
    check_intervals(data_set, found)
    check_lengths(data_set, found)
    truths = check_truth(data_set, found)
    fitting = check_gt(data_set, found)
    if features is not None:
        check_features(data_set, features, found)
        check_looks(data_set, features, found)
    classes = {}
    for split in SPLITS:
        main = reference(data_set, split)
        if main is not None:
            classes[f"{split} ({main.label})"] = class_counts(main.videos)
    rows = [_row(source, data_set) for source in data_set.sources if source.kind != "labels"]
    verdict = _verdict(data_set, trained, fitting + sorted(truths, key=lambda text: "vadclip" in text.lower()))
    return Report(data_set.name, rows, classes, verdict, found.all(), data_set.skipped, data_set.unreadable)


def _verdict(data_set: DataSet, trained: list[str], truths: list[str]) -> list[str]:
    train, main = reference(data_set, "train"), reference(data_set, "test")
    lines = []
    if train and main:
        both = set(train.videos) & set(main.videos)
        part = " (of which only the first rows are here)" if train.partial else ""
        if both:
            lines.append(
                f"{main.label} cannot be trusted after training on {train.label}{part}:"
                f" {amount(len(both), 'video')} of it are trained on."
            )
        else:
            lines.append(f"{train.label}{part} and {main.label} have no video in common.")
            lines += [f"But {text}." for text in dict.fromkeys(trained)]
    if main:
        lines += [f"The truth of {main.label} can be rebuilt: {text}." for text in truths][:1] or [
            f"The truth of {main.label} could not be compared with anything."
            if not data_set.of("truth", "gt") or not data_set.of("annotations")
            else f"The truth of {main.label} and its annotations do not say the same: see below."
        ]
    return lines


def _row(source: Source, data_set: DataSet) -> FileRow:
    row = FileRow(source.label, _what(source))
    if source.gt is not None:
        row.frames, row.abnormal_frames = len(source.gt), int(source.gt.sum())
        return row
    videos = list(source.videos.values())
    row.videos = len(videos)
    if source.kind == "truth" or source.kind == "annotations" or any(entry.label for entry in source.entries):
        row.abnormal = sum(bool(annotation.classes) for annotation in videos)
    if source.kind in ("annotations", "truth"):
        row.intervals = interval_count(videos)
    if source.kind == "list" and source.split == "test" and not source.partial:
        for truth in data_set.of("truth"):
            if set(source.videos) <= set(truth.truth):
                row.frames = sum(len(truth.truth[name]) for name in source.videos)
                row.abnormal_frames = sum(int(truth.truth[name].sum()) for name in source.videos)
    if source.kind == "truth":
        row.frames = sum(len(labels) for labels in source.truth.values())
        row.abnormal_frames = sum(int(labels.sum()) for labels in source.truth.values())
    return row


def _what(source: Source) -> str:
    if source.kind == "gt":
        return "gt.npy"
    if source.kind == "truth":
        return "frame truth"
    if source.kind == "annotations":
        return "annotations"
    words = [f"{source.split} {'list' if source.kind == 'list' else 'names'}"]
    if source.kind == "list":
        words += ["events"] if source.event else []
        per_video = max(
            len({entry.crop for entry in source.entries}), max(entry.crops or 0 for entry in source.entries)
        )
        crops = {entry.crop for entry in source.entries}
        words.append(f"crop {next(iter(crops))}" if per_video == 1 and crops != {None} else amount(per_video, "crop"))
    if source.partial:
        words.append("first rows")
    return ", ".join(words)


def check_all(
    folders: Sequence[PathLike],
    files: Sequence[tuple[Kind, Split | None, PathLike]] = (),
    *,
    features: PathLike | None = None,
) -> list[Report]:
    """Check the data sets in folders and, as one more data set, single files.

    Args:
        folders: Folders of lists and annotations, searched for files that are recognised by their content.
        files: Kind, split and path of single files.
        features: Folder in which the feature files of the lists are looked for, or a feature store.

    Returns:
        One report per data set.

    Raises:
        UserError: a folder contains no file of a data set, a single file cannot be read, or `features` is not a folder.
    """
    data_sets = find_data_sets(folders) if folders else []
    if files:
        data_sets.append(data_set_of_files(files))
    root = None if features is None else Path(features)
    if root is not None and not root.is_dir():
        raise UserError(f"--features {root} is not a folder; give the folder that contains the lists' feature files")
    return [check_data_set(data_set, features=root) for data_set in data_sets]
