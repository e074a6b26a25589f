"""Makes gt.npy, the field's frame labels of a test list, from annotations and the lengths of the videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from iefvad.data.annotations import (
    Annotation,
    Unmarked,
    annotation_of,
    frame_truth,
    inclusive,
    parts_of,
    read_annotations,
)
from iefvad.data.lists import ListEntry, Relocator, StoredNames, classes_of, read_list, without_video_suffix
from iefvad.data.truth_files import labels_beside, read_lengths, read_segments, read_truth, truth_annotations
from iefvad.features.npy import crop_axis, npy_shape, split_crop
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, write_with
from iefvad.utils.text import few
from iefvad.video import SEGMENT

MOST_LABELS = 1 << 31
"""Maximum number of frame labels of a list: 800 days at 30 frames per second."""


@dataclass(frozen=True)
class Length:
    """Length of one video.

    Attributes:
        segments: Number of segments T.
        frames: Number of decoded frames. Below 16·T, the last frame was repeated to fill the last segment.
    """

    segments: int
    frames: int


@dataclass
class GroundTruth:
    """Frame labels of a test list.

    Attributes:
        labels: uint8 (16·ΣT,), in the order of the list.
        videos: Number of videos.
        notes: What a reader must know.
    """

    labels: np.ndarray
    videos: int
    notes: list[str] = field(default_factory=list)


def listed_videos(entries: Sequence[ListEntry]) -> dict[str, list[ListEntry]]:
    """Group the rows of a list by video (its path without crop and suffix), in the order of the list."""
    videos: dict[str, list[ListEntry]] = {}
    for entry in entries:
        videos.setdefault(without_video_suffix(split_crop(entry.path)[0]), []).append(entry)
    return videos


def make_ground_truth(
    videos: Mapping[str, Sequence[ListEntry]],
    annotations: Mapping[str, Annotation],
    lengths: Mapping[str, Length],
    *,
    inclusive_ends: bool = False,
) -> GroundTruth:
    """Make the frame labels of all listed videos, one video after the other.

    Normal videos need no annotation. Videos that are annotated but not listed, and labels that contradict the truth,
    become notes.

    Args:
        videos: Rows of the list by video, from `listed_videos`.
        annotations: {name: annotation}.
        lengths: Length of each video, with the keys of `videos`.
        inclusive_ends: The end of an interval is its last abnormal frame.

    Raises:
        UserError: An abnormal video has no annotation.
    """
    total = sum(SEGMENT * lengths[key].segments for key in videos)
    if total > MOST_LABELS:
        longest = max(videos, key=lambda key: lengths[key].segments)
        raise UserError(
            f"the videos have {total:,} frames, more than {MOST_LABELS:,} ({longest} alone has"
            f" {lengths[longest].frames:,}); correct their lengths, or divide the list"
        )
    unmarked = Unmarked(annotations)
    truth, end = np.zeros(total, np.uint8), 0
    absent, joined, used, doubtful = [], [], set(), []
    for key, entries in videos.items():
        name, abnormal = entries[0].name, bool(classes_of(entries[0].label))
        annotation = annotation_of(annotations, name)
        if annotation is None and (same := unmarked.name(name)):
            name, annotation = same, annotations[same]
        used.add(name)
        if name not in annotations and (parts := parts_of(annotations, name)):
            joined.append(f"{name} ({', '.join(parts)})")
            used.update(parts)
        if annotation is None:
            if abnormal:
                absent.append(name)
            annotation = Annotation(name, (), ())
        length = lengths[key]
        labels = frame_truth(inclusive(annotation) if inclusive_ends else annotation, SEGMENT * length.segments)
        if 0 < length.frames < len(labels):
            labels[length.frames :] = labels[length.frames - 1]
        if bool(labels.any()) != abnormal:
            doubtful.append(f"{name} ({'abnormal, no frame is' if abnormal else 'normal, frames are abnormal'})")
        truth[end : end + len(labels)] = labels
        end += len(labels)
    if absent:
        raise UserError(
            f"{len(absent)} abnormal videos of the list are not annotated: {few(absent)}; add their lines, or take"
            " them out of the list"
        )
    notes = []
    names = Counter(entries[0].name for entries in videos.values())
    if several := [name for name, count in names.items() if count > 1]:
        notes.append(
            f"{len(several)} names are listed in several folders, which count as videos of their own with the same"
            f" annotation: {few(several)}"
        )
    if joined:
        notes.append(f"{len(joined)} videos are annotated in parts, which were joined: {few(joined)}")
    if unused := [name for name in annotations if name not in used]:
        notes.append(f"{len(unused)} annotated videos are not in the list: {few(unused)}")
    if doubtful:
        notes.append(f"{len(doubtful)} videos are listed otherwise than their frames say: {few(doubtful)}")
    return GroundTruth(truth, len(videos), notes)


def lengths_of_features(videos: Mapping[str, Sequence[ListEntry]], root: PathLike) -> dict[str, Length]:
    """Return the length of each listed video, from the headers of its feature files below `root`.

    Raises:
        UserError: Files are missing, or the crops of one video have different lengths.
    """
    relocator = Relocator(root, Path())
    lengths: dict[str, Length] = {}
    files = {entry.path: relocator.find(entry.path) for entries in videos.values() for entry in entries}
    absent = [written for written, path in files.items() if path is None]
    axis = crop_axis([path for path in files.values() if path is not None])
    for key, entries in videos.items():
        counts = {}
        for entry in entries:
            if (path := files[entry.path]) is not None:
                counts[entry.path] = npy_shape(path, axis)[0]
        if len(set(counts.values())) > 1:
            raise UserError(f"the crops of {entries[0].name} differ in length ({counts}); extract them again")
        if counts:
            count = next(iter(counts.values()))
            lengths[key] = Length(count, SEGMENT * count)
    if absent:
        raise UserError(f"{len(absent)} feature files are not below {root}: {few(absent)}; give their folder")
    return lengths


def lengths_of_store(videos: Mapping[str, Sequence[ListEntry]], root: PathLike) -> dict[str, Length]:
    """Return the length of each listed video, from a feature store.

    Raises:
        UserError: The folder is not a store, or it lacks videos of the list.
    """
    sidecars = {sidecar.name: sidecar for sidecar in FeatureStore(root).sidecars()}
    names = StoredNames(sidecars)
    lengths: dict[str, Length] = {}
    absent = []
    for key, entries in videos.items():
        name = names.find(entries[0])
        if name is None:
            absent.append(entries[0].name)
        else:
            lengths[key] = Length(sidecars[name].segments, sidecars[name].frames)
    if absent:
        raise UserError(f"{len(absent)} videos of the list are not in {root}: {few(absent)}; extract them")
    return lengths


def lengths_of_file(
    videos: Mapping[str, Sequence[ListEntry]], path: PathLike, *, round_up: bool = False
) -> dict[str, Length]:
    """Return the length of each listed video, from a file of frame numbers.

    Args:
        videos: Rows of the list by video, from `listed_videos`.
        path: A file as for `iefvad.data.truth_files.read_lengths`.
        round_up: T is ⌈frames/16⌉ instead of ⌊frames/16⌋.

    Raises:
        UserError: The file cannot be read, or it lacks videos of the list.
    """
    frames = read_lengths(path)
    absent = [entries[0].name for entries in videos.values() if entries[0].name not in frames]
    if absent:
        raise UserError(f"{len(absent)} videos of the list have no length in {path}: {few(absent)}; add them")
    return {
        key: Length(-(-count // SEGMENT) if round_up else count // SEGMENT, count)
        for key, count in ((key, frames[entries[0].name]) for key, entries in videos.items())
    }


def write_ground_truth(path: Path, truth: GroundTruth) -> None:
    """Write gt.npy, completely or not at all.

    Raises:
        UserError: The path does not end with .npy, or it cannot be written.
    """
    if path.suffix.lower() != ".npy":
        raise UserError(f"--out {path}: frame labels are written as .npy; choose a name with this ending")

    def save(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # numpy.save would add .npy to a name
            np.save(file, truth.labels, allow_pickle=False)

    write_with(path, save)


def ground_truth_of_list(
    test_list: PathLike,
    annotations: PathLike,
    *,
    features: PathLike | None = None,
    store: PathLike | None = None,
    lengths: PathLike | None = None,
    round_up: bool = False,
    inclusive_ends: bool = False,
) -> GroundTruth:
    """Read a test list, its annotations and the lengths of its videos, and make the frame labels.

    Exactly one of `features`, `store` and `lengths` must be given.

    Args:
        test_list: CSV `path,label`. The labels follow its order.
        annotations: Annotations (.txt, VadCLIP's .json) or frame truth (.npz, a folder of .npy).
        features: Folder of feature files that tell the lengths.
        store: Feature store that tells the lengths.
        lengths: File of frame numbers, as for `iefvad.data.truth_files.read_lengths`.
        round_up: With `lengths`: an incomplete last segment counts.
        inclusive_ends: The end of an interval is its last abnormal frame.

    Raises:
        UserError: a file cannot be read, or the files do not belong together.
    """
    if sum(source is not None for source in (features, store, lengths)) != 1:
        raise UserError("the lengths of videos come from --features, from --store or from --lengths: give one of them")
    if round_up and lengths is None:
        raise UserError("--round-up belongs to --lengths; features and stores tell their segments themselves")
    videos = listed_videos(read_list(test_list))
    annotated = _read_any_annotations(Path(annotations), [entries[0] for entries in videos.values()])
    if features is not None:
        found = lengths_of_features(videos, features)
    elif store is not None:
        found = lengths_of_store(videos, store)
    else:
        assert lengths is not None
        found = lengths_of_file(videos, lengths, round_up=round_up)
    return make_ground_truth(videos, annotated, found, inclusive_ends=inclusive_ends)


def _read_any_annotations(path: Path, entries: Sequence[ListEntry]) -> dict[str, Annotation]:
    """Read annotations of any format; VadCLIP's JSON takes its videos from the rows of the list."""
    if path.suffix.lower() == ".json":
        return read_segments(path, labels_beside(path), entries)
    if path.is_dir() or path.suffix.lower() == ".npz":
        return truth_annotations(read_truth(path))
    return read_annotations(path)
