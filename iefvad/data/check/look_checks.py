"""Finds test videos that look like training videos, by the features of a store."""

from __future__ import annotations

from pathlib import Path

from iefvad.data.check.findings import Findings, amount
from iefvad.data.check.list_checks import reference
from iefvad.data.check.recognise import DataSet
from iefvad.data.sources import similar_pairs

ALIKE = 0.9
"""Cosine of mean image features from which two videos probably show one place."""


def check_looks(data_set: DataSet, features: Path, found: Findings) -> None:
    """Note test videos whose mean image features are near those of a training video. Other folders than stores pass.

    It is a note and not a problem: clips of one fixed camera look alike, and a test on that camera may be what is
    wanted. Of the embedded benchmark, with four cameras on both sides, 45 of 72 test videos are noted.

    Args:
        data_set: The data set.
        features: Folder of the features.
        found: Gets the finding.
    """
    from iefvad.data.looks import mean_image_features  # torch is needed only here
    from iefvad.features.store import is_store

    train, test = reference(data_set, "train"), reference(data_set, "test")
    if train is None or test is None or not is_store(features):
        return
    first = {entry.name: entry for entry in train.entries}
    sides = [*first.values(), *({entry.name: entry for entry in test.entries if entry.name not in first}.values())]
    positions, means = mean_image_features(features, sides)
    trained = [position < len(first) for position in positions]
    if all(trained) or not any(trained):
        return
    alike = sorted(
        {
            sides[positions[b if trained[a] else a]].name
            for a, b in similar_pairs(means, ALIKE)
            if trained[a] != trained[b]
        }
    )
    tested = f"{amount(len(trained) - sum(trained), 'test video')} of {test.label}"
    if not alike:
        found.add("good", f"none of the {tested} looks like a video of {train.label} (cosine {ALIKE:g} or more)")
        return
    found.add(
        "note",
        f"{len(alike)} of the {tested} look like videos of {train.label} (cosine {ALIKE:g} or more)",
        names=alike,
        why="they probably show the same places, so figures on them are too good for new places: make the lists with"
        f" `iefvad data split --similar {ALIKE:g}`. For one fixed camera they are as wanted",
    )
