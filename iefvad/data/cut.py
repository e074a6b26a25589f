"""Cuts one long annotated recording into clips: training clips with one label each, test clips with frame truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from iefvad.data.text_files import csv_rows
from iefvad.features.store import FeatureStore
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text
from iefvad.utils.intervals import runs
from iefvad.video import SEGMENT


def read_frame_labels(path: Path) -> np.ndarray:
    """Read frame labels from a text file, one 0 or 1 per line. A header and other columns before it are allowed.

    Returns:
        uint8 (frames,).

    Raises:
        UserError: The file is missing, or a line does not end with 0 or 1.
    """
    if not path.is_file():
        raise UserError(f"there is no label file {path}: give a text file with one 0 or 1 per frame and line.")
    last = [row[-1].strip() for _, row in csv_rows(path, "frame labels") if row]
    if last and last[0] not in ("0", "1"):
        last = last[1:]
    wrong = next((index for index, value in enumerate(last) if value not in ("0", "1")), None)
    if wrong is not None or not last:
        found = repr(last[wrong][:40]) if wrong is not None else "nothing"
        raise UserError(f"{path} must contain one 0 or 1 per frame and line, but has {found}.")
    return np.array([value == "1" for value in last], dtype=np.uint8)


def cut_recording(
    source: FeatureStore,
    name: str,
    truth: np.ndarray,
    out: Path,
    *,
    segments: int = 30,
    train_fraction: float = 0.6,
    label: str = "Anomaly",
) -> FeatureStore:
    """Cut a stored video into clips, and store them with lists and annotations.

    The first clips are for training. train.csv gives them `label` if any of their frames is abnormal, else Normal, and
    nothing else of the truth. The other clips are in test.csv, with their intervals in annotations.txt.

    Args:
        source: Store of the recording.
        name: Name of the recording in it.
        truth: Frame labels (frames,), 0 or 1.
        out: Folder of the store of the clips.
        segments: Number of segments per clip.
        train_fraction: Fraction of the clips, from the beginning, that are for training.
        label: Class of abnormal clips.

    Returns:
        The store of the clips.

    Raises:
        UserError: The lengths of truth and video differ.
    """
    image, event, sidecar = source.read(name)
    frames = SEGMENT * sidecar.segments
    if not 0 <= len(truth) - frames < SEGMENT and abs(len(truth) - sidecar.frames) > 0:
        raise UserError(
            f"{name} has {sidecar.frames} frames, but there are {len(truth)} labels: give one label per frame."
        )
    clips = FeatureStore(out, settings=source.settings, create=True)
    starts = range(0, sidecar.segments, segments)
    train = round(len(starts) * train_fraction)
    lists = {"train": [("path", "label")], "test": [("path", "label")]}
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
                starts=_shifted(sidecar.starts, part, sidecar.starts),
                ends=_shifted(sidecar.ends, part, sidecar.starts),
                clock=None if sidecar.clock is None else sidecar.clock | {"lost": [], "restarts": []},
            ),
        )
        inside = truth[SEGMENT * part.start : SEGMENT * part.stop]
        kind = label if inside.any() else "Normal"
        lists["train" if index < train else "test"].append((f"{clip}.mp4", kind))
        if index >= train:
            bounds = [str(bound) for interval in runs(inside) for bound in interval] or ["-1", "-1"]
            annotations.append("  ".join([f"{clip}.mp4", kind, *bounds]))
    for split, rows in lists.items():
        write_text(out / f"{split}.csv", csv_text(rows))
    write_text(out / "annotations.txt", "\n".join(annotations) + "\n")
    clips.write_index()
    return clips


def _shifted(times: list[float] | None, part: slice, starts: list[float] | None) -> list[float] | None:
    """Return the times of a part, counted from its beginning."""
    if times is None or starts is None:
        return None
    return [round(time - starts[part.start], 6) for time in times[part]]
