"""Loads a benchmark from a feature store, from a packed store, or from the field's lists of .npy files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iefvad.data.annotations import Unmarked, frame_truth, read_annotations
from iefvad.data.lists import ALONE, ListEntry, Relocator, StoredNames, classes_of, event_path, form_of_lists, read_list
from iefvad.features.npy import crop_axis, open_npy, split_crop
from iefvad.features.packed import SPLITS, PackedReader, PackedStore
from iefvad.features.readers import Nan, NpyReader, StoreReader
from iefvad.features.store import FeatureStore, Sidecar
from iefvad.features.videos import Benchmark, Video
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.utils.text import few
from iefvad.video import SEGMENT, ClockReport

Modality = Literal["fusion", "image", "event"]

_EAGER_FILES, _EAGER_BYTES = 2000, 1 << 30
"""Sets of at most this size are searched for NaN before training starts, larger sets when features are read."""


def load_store(
    root: PathLike,
    *,
    train_list: PathLike | None = None,
    test_list: PathLike | None = None,
    annotations: PathLike | None = None,
    gt: PathLike | None = None,
    nan: Nan = "error",
    verify: bool = True,
) -> Benchmark:
    """Load a benchmark whose features are in a feature store.

    Rows of the lists are matched with stored videos by relative name, else by base name. Test videos that are also
    trained on, and labels that contradict the truth, become notes.

    Args:
        root: Folder of the store.
        train_list: CSV list. Default: ``train.csv`` of the store, which may be missing.
        test_list: CSV list. Default: ``test.csv`` of the store, which may be missing.
        annotations: Frame annotations of the test videos. Default: ``annotations.txt`` of the store, if it exists.
        gt: gt.npy in the order of the test list. It replaces the annotations.
        nan: "error", or "zero" to replace NaN and infinity by 0.
        verify: Compare features with their checksums when they are read first.

    Raises:
        UserError: The folder is not a store, a list names videos that the store lacks, or the truth does not fit.
    """
    store = FeatureStore(root, verify=verify)
    notes: list[str] = []
    lists = [_default(store.root, given, name) for given, name in ((train_list, "train.csv"), (test_list, "test.csv"))]
    if not any(lists):
        raise UserError(
            f"{store.root} has neither train.csv nor test.csv; give --train-list and --test-list, or"
            f" {form_of_lists(store.root, store.names())}"
        )
    sidecars = {sidecar.name: sidecar for sidecar in store.sidecars()}
    train, test = (_stored_videos(path, store, sidecars, nan, notes) if path else [] for path in lists)
    if gt is not None:
        attach_gt(test, gt)
    elif (found := _default(store.root, annotations, "annotations.txt")) is not None:
        attach_annotations(test, found)
    notes += (
        _damage(store.settings)
        + _overlap(train, test)
        + _doubtful(test)
        + _clocks([sidecars[video.name] for video in test])
    )
    dim = store.settings.get("dim") or int((train or test)[0].features((train or test)[0].crops[0])[0].shape[1])
    return Benchmark(store.root.resolve().name, train, test, dim, notes, dict(store.settings))


def _damage(settings: Mapping[str, Any]) -> list[str]:
    """Say with what the videos were damaged before their features were made, where they were."""
    return (
        [f"the features are those of damaged videos: {text} (--corrupt)"] if (text := settings.get("corrupt")) else []
    )


def _clocks(sidecars: Sequence[Sidecar]) -> list[str]:
    """Say what is particular about the times of videos, once for all of them."""
    reports = [side.clock and ClockReport.from_dict(side.clock) for side in sidecars]
    counted = sum(side.starts is None for side in sidecars)
    assumed = sum(bool(report and report.origin == "assumed") for report in reports)
    jumping = sum(bool(report and report.lost) for report in reports)
    notes = []
    if counted:
        notes.append(
            f"{counted} of {len(sidecars)} test videos have no time stamps in the store (features made elsewhere, or by"
            " an earlier version): their times are counted from frames at the average rate; extract them again for the"
            " times of a player"
        )
    if assumed:
        notes.append(f"{assumed} of {len(sidecars)} test videos state no rate: their times assume one")
    if jumping:
        notes.append(f"{jumping} of {len(sidecars)} test videos have lost frames: their time stamps jump")
    return notes


def _stored_videos(
    path: Path, store: FeatureStore, sidecars: dict[str, Sidecar], nan: Nan, notes: list[str]
) -> list[Video]:
    """The videos of a list, with readers of a feature store."""
    names = StoredNames(sidecars)
    groups: dict[str, list[ListEntry]] = {}
    absent: list[str] = []
    for entry in read_list(path):
        stored = names.find(entry)
        if stored is None:
            absent.append(entry.name)
        else:
            groups.setdefault(stored, []).append(entry)
    refuse_absent(dict.fromkeys(absent), f"videos of {path} are not in {store.root}", "extract them")
    videos = []
    for name, entries in groups.items():
        side = sidecars[name]
        listed = {entry.crop for entry in entries}
        video = Video(
            name=name,
            classes=_one_label(entries),
            segments=side.segments,
            fps=side.fps,
            frames=side.frames,
            event_density=np.asarray(side.event_density, np.float32) if side.event_density else None,
            source=side.source,
            starts=None if side.starts is None else np.asarray(side.starts),
            ends=None if side.ends is None else np.asarray(side.ends),
            crops=tuple(crop for crop in side.crops if crop in listed) or tuple(side.crops),
            reader=StoreReader(store, name, nan, notes),
        )
        videos.append(video)
    return videos


def load_packed(
    root: PathLike, *, annotations: PathLike | None = None, gt: PathLike | None = None, verify: bool = True
) -> Benchmark:
    """Load a benchmark from a packed store.

    Training videos that were longer than ``max_segments`` have only their averaged bins. A note says so.

    Args:
        root: Folder of the store.
        annotations: Frame annotations that replace the truth in the store.
        gt: gt.npy, in the order of the test list, that replaces the truth in the store.
        verify: Compare features with their checksums when they are read first.

    Raises:
        UserError: The folder is not a complete packed store, or the truth does not fit.
    """
    store = PackedStore(root, verify=verify)
    train, test = (store.benchmark_videos(split) for split in SPLITS)
    if gt is not None:
        attach_gt(test, gt)
    elif annotations is not None:
        attach_annotations(test, annotations)
    notes = list(store.notes) + _damage(store.settings)
    averaged = sum(isinstance(video.reader, PackedReader) and video.reader.averaged for video in train)
    if averaged:
        notes.append(
            f"{averaged} of {len(train)} training videos are longer than {store.max_segments} segments and are stored"
            f" as {store.max_segments} bins; those held out are scored on the bins"
        )
    return Benchmark(store.name, train, test, store.dim, notes, dict(store.settings))


def load_lists(
    train_list: PathLike | None,
    test_list: PathLike | None,
    gt: PathLike | None,
    *,
    features: PathLike | None = None,
    event_folder: str = "event",
    image_folder: str = "rgb",
    fps: float = 30.0,
    nan: Nan = "error",
    modality: Modality = "fusion",
) -> Benchmark:
    """Load a benchmark from the field's files: CSV lists of ``NAME__{crop}.npy``, and ``gt.npy``.

    Large sets (more than 2,000 files or 1 GiB) are searched for NaN only when features are read.

    Args:
        train_list: CSV list of the training files. None if only testing is wanted.
        test_list: CSV list of the test files. None if there are none.
        gt: gt.npy in the order of the test list, an annotation ``.txt``, or None.
        features: Folder with the files of the lists, if the lists have paths of another machine.
        event_folder: Folder name that replaces ``image_folder`` in a path to find the event features.
        image_folder: Folder name of the image features.
        fps: Frames per second of the videos. It is only used to print times.
        nan: "error", or "zero" to replace NaN and infinity by 0 and add a note.
        modality: "image" or "event" needs and reads the files of that stream alone. "fusion" needs both.

    Raises:
        UserError: Files are missing (the message names a few), the truth has a different length, image and event
            features disagree, or features contain NaN or infinity.
    """
    notes: list[str] = []
    train, test = (
        []
        if path is None
        else _listed_videos(Path(path), features, event_folder, image_folder, fps, nan, notes, modality)
        for path in (train_list, test_list)
    )
    if gt is not None and Path(gt).suffix.lower() == ".npy":
        attach_gt(test, gt)
    elif gt is not None:
        attach_annotations(test, gt)
    dims = {video.reader.dim: video for video in train + test if isinstance(video.reader, NpyReader)}
    if len(dims) > 1:
        if len({video.segments for video in train + test}) == 1:
            raise UserError(
                f"all videos have {(train + test)[0].segments} rows and different numbers of columns, so the features"
                " are transposed: save array.T of each file, (segments, dimensions)"
            )
        described = ", ".join(f"{video.name} {dim}" for dim, video in dims.items())
        raise UserError(f"features have different widths ({described}); all must come from one pair of encoders")
    _check_finite(train + test, nan)
    notes += _overlap(train, test) + _doubtful(test)
    return Benchmark(Path(test_list or train_list or ".").resolve().parent.name, train, test, next(iter(dims)), notes)


def _listed_videos(
    path: Path,
    features: PathLike | None,
    event_folder: str,
    image_folder: str,
    fps: float,
    nan: Nan,
    notes: list[str],
    modality: Modality,
) -> list[Video]:
    relocator = Relocator(features, path.parent)
    groups: dict[str, list[ListEntry]] = {}
    files: dict[str, dict[int, tuple[Path | None, Path | None]]] = {}
    absent: list[str] = []
    absent_event: list[str] = []
    repeated = 0
    for entry in read_list(path):
        image: Path | None = None
        event: Path | None = None
        if modality == "event":
            written = event_path(entry.path, event_folder, image_folder=image_folder)
            event = relocator.find(written)
            if event is None:
                absent_event.append(written)
                continue
        else:
            image = relocator.find(entry.path)
            if image is None:
                absent.append(entry.path)
                continue
        if modality == "fusion":
            event = Path(event_path(str(image), event_folder, image_folder=image_folder))
            if not relocator.exists(event):
                absent_event.append(str(event))
                continue
        key = split_crop(entry.path)[0]  # with its folder, because two folders may have videos of the same name
        crops = files.setdefault(key, {})
        repeated += (entry.crop or 0) in crops
        crops[entry.crop or 0] = (image, event)
        groups.setdefault(key, []).append(entry)
    remedy = "give their folder with --features"
    if absent and features is None and Relocator(path.parent, path.parent).find(absent[0]) is not None:
        remedy += f" (they are in {path.parent})"
    refuse_absent(absent, f"feature files of {path} are missing", remedy)
    remedy = "extract them or set --event-folder" + (f" ({ALONE})" if modality == "fusion" else "")
    refuse_absent(absent_event, f"event features of {path} are missing", remedy)
    if repeated:
        notes.append(f"{path.name} lists {repeated} files twice; each is used once")
    uses = Counter(entries[0].name for entries in groups.values())
    videos = []
    axis = crop_axis([path for crops in files.values() for pair in crops.values() for path in pair if path is not None])
    for key, entries in groups.items():
        name = entries[0].name
        if uses[name] > 1:
            name = "/".join(key.replace("\\", "/").split("/")[-2:])
        reader = NpyReader(files[key], nan, notes, axis)
        video = Video(
            name=name,
            classes=_one_label(entries),
            segments=reader.segments,
            fps=fps,
            frames=SEGMENT * reader.segments,
            crops=tuple(sorted(reader.pairs)),
            reader=reader,
        )
        videos.append(video)
    return videos


def _check_finite(videos: Sequence[Video], nan: Nan) -> None:
    readers = [video.reader for video in videos if isinstance(video.reader, NpyReader)]
    files = list(dict.fromkeys(path for reader in readers for crop in reader.pairs for path in reader.files(crop)))
    size = sum(len(reader.pairs) * reader.segments * reader.dim * 8 for reader in readers)
    if len(files) > _EAGER_FILES or size > _EAGER_BYTES:
        return
    bad = [str(path) for path in files if not np.isfinite(open_npy(path)).all()]
    if bad and nan == "error":
        raise UserError(
            f"NaN or infinity in {len(bad)} of {len(files)} feature files: {few(bad)}; extract them again, or "
            "pass --nan zero to replace them by 0"
        )
    if bad:
        for reader in readers:
            reader.noted = True
        readers[0].notes.append(f"NaN or infinity replaced by 0 in {len(bad)} feature files: {few(bad)}")


def attach_gt(videos: Sequence[Video], path: PathLike) -> None:
    """Set the truth of test videos from gt.npy.

    Args:
        videos: Test videos, in the order of the file.
        path: The file, with 16·T frame labels per video.

    Raises:
        UserError: The length is different, or there are values other than 0 and 1.
    """
    truth = open_npy(path)
    expected = sum(SEGMENT * video.segments for video in videos)
    if truth.ndim != 1 or len(truth) != expected:
        found = f"{len(truth):,}" if truth.ndim == 1 else f"an array of shape {truth.shape}"
        raise UserError(
            f"{path} has the wrong length: expected {expected:,} frame labels (16 for each segment of the "
            f"{len(videos)} test videos), found {found}; {_misfit(videos, len(truth))}"
        )
    truth = np.asarray(truth)
    if not np.isin(truth, (0, 1)).all():
        raise UserError(
            f"{path} must contain only 0 and 1, but it also contains {truth[~np.isin(truth, (0, 1))][0]}; make it again"
        )
    end = 0
    for video in videos:
        start, end = end, end + SEGMENT * video.segments
        video.truth = truth[start:end].astype(np.uint8)


def _misfit(videos: Sequence[Video], found: int) -> str:
    """Return what the length of gt.npy tells about features and truth, and what to do."""
    rows = sum(video.segments for video in videos)
    dims = [video.reader.dim for video in videos if isinstance(video.reader, NpyReader)]
    if found == rows:
        return (
            "it has one label per row of the features: if the rows are frames, average 16 of them each; if they are"
            " segments of 16 frames, repeat each label 16 times (numpy.repeat)"
        )
    if len(dims) == len(videos) and found == SEGMENT * sum(dims):
        return "it fits the columns of the features, so they are transposed: save array.T of each file"
    if rows and found % rows == 0:
        return f"it has {found // rows} labels per row: the rows must be segments of 16 frames, extract them so"
    return (
        "make it again for these features: `iefvad data gt --annotations FILE --test-list FILE --features FOLDER (or"
        " --store STORE) --out gt.npy`"
    )


def attach_annotations(videos: Sequence[Video], path: PathLike) -> None:
    """Set the truth of test videos from frame annotations.

    Args:
        videos: Test videos.
        path: The annotation file.

    Raises:
        UserError: The file cannot be read, or an abnormal video has no line in it.
    """
    annotations = read_annotations(path)
    unmarked = Unmarked(annotations)
    absent = []
    for video in videos:
        annotation = annotations.get(video.name) or annotations.get(video.name.rsplit("/", 1)[-1])
        if annotation is None and (same := unmarked.name(video.name.rsplit("/", 1)[-1])):
            annotation = annotations[same]
        if annotation is None and video.classes:
            absent.append(video.name)
        length = SEGMENT * video.segments
        truth = frame_truth(annotation.intervals if annotation else (), length)
        if 0 < video.frames < length:
            truth[video.frames :] = truth[video.frames - 1]  # frames that repeat the last one (--tail repeat)
        video.truth = truth
    refuse_absent(absent, f"abnormal test videos are not annotated in {path}", "add their lines")


def _overlap(train: Sequence[Video], test: Sequence[Video]) -> list[str]:
    seen = {video.name for video in train}
    both = [video.name for video in test if video.name in seen]
    if not both:
        return []
    return [f"{len(both)} of {len(test)} test videos are also trained on, so results are too good: {few(both)}"]


def _doubtful(test: Sequence[Video]) -> list[str]:
    judged = [(video, bool(video.truth.any())) for video in test if video.truth is not None]
    notes = []
    for abnormal, text in ((True, "labelled normal have abnormal frames"), (False, "labelled abnormal have none")):
        names = [video.name for video, positive in judged if positive == abnormal and bool(video.classes) != abnormal]
        if names:
            notes.append(f"{len(names)} test videos {text}: {few(names)}")
    return notes


def _one_label(entries: Sequence[ListEntry]) -> tuple[str, ...]:
    labels = sorted({entry.label for entry in entries})
    if len(labels) > 1:
        raise UserError(f"{entries[0].name} is listed with several labels ({', '.join(labels)}); keep one")
    return classes_of(labels[0])


def _default(root: Path, given: PathLike | None, name: str) -> Path | None:
    if given is not None:
        return Path(given)
    return root / name if (root / name).is_file() else None


def refuse_absent(names: Iterable[str], what: str, remedy: str) -> None:
    """Raise UserError if `names` is not empty. The message has their number, a few of them, `what` and `remedy`."""
    names = list(names)
    if names:
        raise UserError(f"{len(names)} {what}: {few(names)}; {remedy} or take them out of the list")
