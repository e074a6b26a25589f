"""Cut one long annotated recording into clips: training clips with a label each, test clips with frame truth."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np

from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text
from iefvad.utils.intervals import runs
from iefvad.video import SEGMENT


def read_frame_labels(path: Path) -> np.ndarray:
    """Read one 0/1 a frame, one a line; a header or further columns before it are allowed. Returns (frames,) uint8.

    Raises UserError for a missing file and for lines that do not end in 0 or 1.
    """
    if not path.is_file():
        raise UserError(f"there is no label file {path}: it holds one 0 or 1 a frame, one a line.")
    last = [row[-1].strip() for row in csv.reader(io.StringIO(path.read_text())) if row]
    if last and last[0] not in ("0", "1"):
        last = last[1:]
    wrong = next((index for index, value in enumerate(last) if value not in ("0", "1")), None)
    if wrong is not None or not last:
        found = repr(last[wrong]) if wrong is not None else "nothing"
        raise UserError(f"{path} must hold one 0 or 1 a frame, one a line, but has {found}.")
    return np.array([value == "1" for value in last], dtype=np.uint8)


def cut_recording(
    source: FeatureStore,
    name: str,
    truth: np.ndarray,
    out: Path,
    *,
    segments: int = 30,
    train_share: float = 0.6,
    label: str = "Anomaly",
) -> FeatureStore:
    """Cut the stored video `name` into clips of `segments` segments and store them in `out` with their lists.

    `truth`: (frames,) 0/1. The first `train_share` of the clips, in time, are for training: train.csv gives them
    `label` if any of their frames is abnormal, else Normal, and nothing else of the truth. The rest are in test.csv,
    with intervals in annotations.txt. Raises UserError where truth and video differ in length by a segment or more.
    """
    image, event, sidecar = source.read(name)
    frames = SEGMENT * sidecar.segments
    if not 0 <= len(truth) - frames < SEGMENT and abs(len(truth) - sidecar.frames) > 0:
        raise UserError(
            f"{name} has {sidecar.frames} frames, but the labels are {len(truth)}: they must be of one length."
        )
    clips = FeatureStore(out, settings=source.settings, create=True)
    starts = range(0, sidecar.segments, segments)
    train = round(len(starts) * train_share)
    lists: dict[str, list[str]] = {"train": ["path,label"], "test": ["path,label"]}
    annotations = []
    for index, start in enumerate(starts):
        part = slice(start, min(start + segments, sidecar.segments))
        clip, count = f"{name}_{index:03d}", part.stop - part.start
        clips.write(
            clip,
            image[:, part],
            event[:, part],
            dataclasses.replace(
                sidecar,
                name=clip,
                source_hash=f"{sidecar.source_hash}:{part.start}-{part.stop}",
                frames=SEGMENT * count,
                segments=count,
                frames_dropped=0,
                event_density=sidecar.event_density[part],
            ),
        )
        inside = truth[SEGMENT * part.start : SEGMENT * part.stop]
        kind = label if inside.any() else "Normal"
        lists["train" if index < train else "test"].append(f"{clip}.mp4,{kind}")
        if index >= train:
            bounds = [str(bound) for interval in runs(inside) for bound in interval] or ["-1", "-1"]
            annotations.append("  ".join([f"{clip}.mp4", kind, *bounds]))
    for split, rows in lists.items():
        write_text(out / f"{split}.csv", "\n".join(rows) + "\n")
    write_text(out / "annotations.txt", "\n".join(annotations) + "\n")
    clips.write_index()
    return clips
