"""Settings of `iefvad data split` and `iefvad data cut`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.utils.options import option
from iefvad.utils.values import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Range


@dataclass
class SplitConfig:
    """Settings of `iefvad data split`."""

    out: str | None = option(None, "folder for train.csv and test.csv, or for the folds [required]")
    test_fraction: float = option(0.3, "fraction of the videos that are tested", Range(above=0, most=0.9))
    folds: int | None = option(
        None, "write fold0 to foldK-1, each with train.csv and test.csv; every video is tested once", Range(2, 1000)
    )
    seed: int = option(0, "another seed gives another division", SEED)
    source_column: str | None = option(
        None, "column of the list that names the source of a video; an empty cell is a source of its own"
    )
    source_pattern: str | None = option(
        None,
        "regular expression that finds the source in the name of a video: its first group, or the whole match; '.+'"
        " makes every video a source of its own",
    )
    features: str | None = option(None, "feature store of the videos, for --similar and --whole")
    similar: float | None = option(
        None,
        "with --features: join sources that have videos whose mean image features have at least this cosine, after the"
        " mean of the store is taken away; try 0.9",
        Range(above=0, most=1),
    )
    annotations: str | None = option(
        None,
        "annotations of the videos; those of the tested ones are copied [default: annotations.txt beside the list]",
    )
    whole: bool = option(
        False, "with --features, without annotations: abnormal videos are abnormal from the first to the last frame"
    )
    overwrite: bool = option(False, "replace lists that are already in the folder")


@dataclass
class CutConfig:
    """Settings of `iefvad data cut`."""

    out: str | None = option(None, "folder for the clips and their lists [required]")
    length: float = option(60.0, "length of a clip in seconds", POSITIVE)
    overlap: float = option(0.0, "seconds that a clip shares with the one before it", NOT_NEGATIVE)
    segments: int | None = option(
        None, "length of a clip in segments of 16 frames, instead of --length; --overlap is in segments then", COUNT
    )
    labels: str | None = option(None, "truth of one recording: a text file with one 0 or 1 per frame and line")
    annotations: str | None = option(
        None, "truth of the recordings: annotations, one line NAME CLASS start end ... per recording"
    )
    label: str = option("Anomaly", "class of abnormal clips where the truth names none")
    least: int = option(1, "number of abnormal frames from which a clip is abnormal", COUNT)
    train_fraction: float | None = option(
        None,
        "also write train.csv and test.csv: the first clips of each recording, up to this fraction, are for training",
        Range(above=0, most=1),
    )
    exact: bool = option(
        False,
        "encode the clips again, so that they start at the exact frame; without it pictures are copied, and a clip"
        " starts at the nearest key frame before its time",
    )
    quality: int = option(
        18, "with --exact: H.264's constant rate factor; 0 is lossless, 51 is the worst", Range(0, 51)
    )
    on_truncated: Literal["error", "keep"] = option(
        "error", "with --exact: refuse a truncated or damaged recording, or keep what decodes"
    )
    overwrite: bool = option(False, "replace clips and lists that are already in the folder")
