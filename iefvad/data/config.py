"""Settings of `iefvad features import`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.model.config import LONGEST_CHUNK
from iefvad.utils.options import option
from iefvad.utils.values import RATE, Range


@dataclass
class ImportConfig:
    """Settings of `iefvad features import`."""

    out: str | None = option(None, "folder of the packed store [required]")
    train_list: str | None = option(None, "CSV `path,label` of the training videos [default: train.csv of STORE]")
    test_list: str | None = option(None, "CSV `path,label` of the test videos [default: test.csv of STORE]")
    gt: str | None = option(None, "gt.npy: 16 frame labels per segment, concatenated in the order of the test list")
    annotations: str | None = option(None, "frame annotations of the test videos [default: annotations.txt of STORE]")
    features: str | None = option(None, "folder with the .npy files of the lists [default: their paths as written]")
    image_folder: str = option("rgb", "folder of the image features in a listed path")
    event_folder: str = option("event", "folder that replaces it to find the event features")
    image_dir: str | None = option(None, "folder of image features without lists, NAME.npy or NAME__c.npy")
    event_dir: str | None = option(None, "folder of their event features, with the same names")
    max_segments: int = option(
        256, "longer training clips are averaged to this number of bins", Range(1, LONGEST_CHUNK)
    )
    fps: float = option(30.0, "frames per second of the videos of .npy files, only used to print times", RATE)
    nan: Literal["error", "zero"] = option("error", "NaN or infinity in features: stop, or replace by zero")
