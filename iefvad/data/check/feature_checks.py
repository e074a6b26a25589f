"""Checks of feature files: whether those of the lists exist, agree in length and fit the gt.npy."""

from __future__ import annotations

import contextlib
from pathlib import Path

from iefvad.data.check.findings import Findings, amount
from iefvad.data.check.list_checks import reference
from iefvad.data.check.recognise import DataSet, Source
from iefvad.data.lists import Relocator
from iefvad.features.npy import crop_axis, npy_shape
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT


def check_features(data_set: DataSet, features: Path, found: Findings) -> None:
    """Find feature files that are missing, damaged or of a wrong length.

    Args:
        data_set: The data set.
        features: Folder below which the files of the lists are searched.
        found: Gets the findings.

    Raises:
        UserError: A path in a list may lead out of `features`.
    """
    main = reference(data_set, "test")
    tested: dict[str, int] | None = None  # segments of each video of the reference, if all its files are good
    for source in data_set.of("list"):
        if any(entry.crop is not None or entry.path.endswith(".npy") for entry in source.entries):
            segments = _check_files(source, features, found)
            if source is main:
                tested = segments
    for gt in data_set.of("gt"):
        if main is not None and tested is not None and gt.gt is not None:
            expected = SEGMENT * sum(tested.values())
            fits = expected == len(gt.gt)
            relation = "fits" if fits else "does not fit"
            found.add(
                "good" if fits else "problem",
                f"{gt.label} ({amount(len(gt.gt), 'frame')}) {relation} the features of {main.label}"
                f" ({amount(expected, 'frame')})",
            )


def _check_files(source: Source, features: Path, found: Findings) -> dict[str, int] | None:
    """Check the files of one list. Returns the number of segments per video, or None if a file is missing or bad."""
    relocator = Relocator(features, source.path.parent)
    absent, differing, bad = [], set(), []
    segments: dict[str, int] = {}
    paths = [relocator.find(entry.path) for entry in source.entries]
    axis = None
    with contextlib.suppress(UserError):  # said below, file by file
        axis = crop_axis([path for path in paths if path is not None])
    for entry, path in zip(source.entries, paths, strict=True):
        if path is None:
            absent.append(entry.path)
            continue
        try:
            count = npy_shape(path, axis)[0]
        except UserError as error:
            bad.append(str(error))
            continue
        if segments.setdefault(entry.name, count) != count:
            differing.add(entry.name)
    files = amount(len(source.entries), "file")
    if absent:
        text = f"{len(absent)} of {files} of {{files}} are not below the features folder"
        found.add("problem", text, source.label, names=absent)
    elif not bad:
        found.add("good", f"all {files} of {{files}} are below the features folder", source.label)
    if bad:
        text = f"{amount(len(bad), 'file')} of {{files}} cannot be read as features"
        found.add("problem", text, source.label, names=bad)
    if differing:
        text = f"crops of {amount(len(differing), 'video')} of {{files}} differ in length"
        found.add("problem", text, source.label, names=sorted(differing))
    return None if absent or bad else segments
