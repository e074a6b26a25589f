"""Feature store: one safetensors file and one JSON sidecar per video. Writing can be interrupted and resumed.

- ``ROOT/store.json``: the settings that all videos share.
- ``ROOT/NAME.safetensors``: ``image`` and ``event``, float16 (crops, T, D) each. The header has
  the checksum of each crop.
- ``ROOT/NAME.json``: the sidecar. It is written last and marks the video as complete.
- ``ROOT/index.csv``: a summary, rebuilt from the sidecars.

Equal input gives equal bytes. Several processes may write to one store.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError

from iefvad.utils import checksums
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import (
    PathLike,
    flush,
    open_regular,
    read_regular,
    replacing_durably,
    storage_errors,
    too_many_files,
)
from iefvad.utils.plain_json import parse_json
from iefvad.utils.tensors import header, opened, to_half
from iefvad.utils.text import utf8
from iefvad.video import ClockReport

FORMAT = 1
_SETTINGS, _INDEX = "store.json", "index.csv"
_INDEX_COLUMNS = ("name", "source", "source_hash", "fps", "frames", "segments", "frames_dropped", "crops")
_LATER = ("starts", "ends", "clock")  # keys that stores of earlier versions lack
_WHOLE_FILE, _BLOCK = 64 << 20, 8 << 20


UNRECORDED: dict[str, Any] = {"carry": False, "frames_per_segment": 16, "keyframes": None, "corrupt": None}
"""Settings that older stores do not have, and what that means. With these values no store records them."""


@dataclass
class Sidecar:
    """What is known of one stored video.

    Attributes:
        name: Name of the video in the store.
        source: Path of the video file.
        source_hash: `hash_file` of the video file, or `hash_folder` of the folder of frames.
        fps: Frames per second.
        frames: Number of decoded frames.
        segments: Number of segments T.
        frames_dropped: Number of frames after the last segment.
        crops: Stored crop numbers, in the order of the first axis of the features.
        settings: Settings of the store; `FeatureStore.write` fills them in.
        event_density: Mean of the event map per segment, T values.
        starts: Start of each segment in seconds, T values. None in stores of earlier versions, as are the next two.
        ends: End of each segment in seconds, T values.
        clock: Where the times come from: `iefvad.video.ClockReport` as a dictionary.
    """

    name: str
    source: str
    source_hash: str
    fps: float
    frames: int
    segments: int
    frames_dropped: int = 0
    crops: list[int] = field(default_factory=lambda: [0])
    settings: dict[str, Any] = field(default_factory=dict)
    event_density: list[float] = field(default_factory=list)
    starts: list[float] | None = None
    ends: list[float] | None = None
    clock: dict[str, Any] | None = None


def is_store(root: PathLike) -> bool:
    """Return whether a folder is a feature store."""
    return (Path(root) / _SETTINGS).is_file()


def with_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a store with the values that absent ones stand for: no `carry`, all frames encoded.

    Settings of something else, such as features without a record of their origin, are returned as they are.
    """
    return {**UNRECORDED, **settings} if "crops" in settings else dict(settings)


class FeatureStore:
    """Features of many videos in one folder, all made with the same settings.

    Args:
        root: Folder of the store.
        settings: Settings of the features. Required to create a store; compared with an existing one.
        create: Create the store if it does not exist.
        verify: Compare the features of each crop with their checksum when they are read first. Stores of earlier
            versions have no checksums.

    Attributes:
        root: Folder of the store.
        settings: Settings of the features.

    Raises:
        UserError: ``root`` is not a store, or ``settings`` differ from the store's. The message names each differing
            key with both values.
    """

    def __init__(
        self, root: PathLike, *, settings: dict[str, Any] | None = None, create: bool = False, verify: bool = True
    ) -> None:
        self.root = Path(root)
        wanted = None if settings is None else _recorded({"format": FORMAT, **settings})
        stored = self._read_settings()
        if stored is None:
            if not create:
                raise UserError(f"{self.root} is not a feature store (no {_SETTINGS}); make one with `iefvad extract`")
            if wanted is None:
                raise ValueError("settings are required to create a store")
            with storage_errors(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                with replacing_durably(self.root / _SETTINGS) as file:
                    file.write(_json(wanted))
            stored = self._read_settings() or {}  # read back: another process may have been faster
        if stored.get("format") != FORMAT:
            raise UserError(
                f"{self.root} has store format {stored.get('format')}, this version reads {FORMAT}; extract the videos"
                " again into another folder"
            )
        if wanted is not None and wanted != _recorded(stored):
            there, here = {**UNRECORDED, **stored}, {**UNRECORDED, **wanted}
            keys = [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]
            differences = "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)
            raise UserError(
                f"{self.root} was made with other settings ({differences}); use these settings or another folder"
            )
        self.settings: dict[str, Any] = stored
        self.verify = verify
        self._verified: set[tuple[str, int]] = set()  # name and index of crops whose checksums agreed

    def names(self) -> list[str]:
        """Return the names of the complete videos, sorted. Names may contain ``/`` (sub-folders)."""
        return [sidecar.name for sidecar in self.sidecars()]

    def sidecars(self) -> list[Sidecar]:
        """Return the sidecars of the complete videos, sorted by name."""
        return list(self._complete(sorted(self._candidates())))

    def incomplete(self) -> list[str]:
        """Return the names of the videos that are damaged or not complete, sorted."""
        names = set(self._candidates())
        for path in self.root.rglob("*.json"):
            name = path.relative_to(self.root).as_posix().removesuffix(".json")
            if name not in names and path.is_file() and b'"source_hash"' in path.read_bytes():
                names.add(name)  # a sidecar without features
        return sorted(name for name in names if self._load(name) is None)

    def __contains__(self, name: object) -> bool:
        """Return whether both files of the video exist, can be read, and are complete and consistent."""
        return isinstance(name, str) and any(True for _ in self._complete([name]))

    def __len__(self) -> int:
        return len(self.names())

    def is_current(self, name: str, source_hash: str) -> bool:
        """Return whether the video is complete and was made from a file with this hash and the store's settings."""
        return any(side.source_hash == source_hash for side in self._complete([name]))

    def write(self, name: str, image: np.ndarray, event: np.ndarray, sidecar: Sidecar) -> None:
        """Store the features of one video as float16, completely or not at all. Replaces older ones.

        Args:
            name: Name of the video; ``/`` makes sub-folders.
            image: Image features (crops, T, D).
            event: Event features of the same shape.
            sidecar: What is known of the video. ``name`` and ``settings`` are filled in.

        Raises:
            UserError: Features contain NaN, infinity or values beyond float16, or the disk is full. The message names
                the video.
            ValueError: Shapes do not agree with each other, the sidecar or the store.
        """
        features, side_path = self._paths(name)
        sidecar = replace(
            sidecar,
            name=name,
            settings=self.settings,
            crops=[int(crop) for crop in sidecar.crops],
            event_density=[float(value) for value in sidecar.event_density],
        )
        self._check_shapes(name, image, event, sidecar)
        tensors = {"event": _to_half(name, "event", event), "image": _to_half(name, "image", image)}
        with storage_errors(self.root, f"storing {name}"):
            features.parent.mkdir(parents=True, exist_ok=True)
            # Both files are written in full before either of them takes its place. The old sidecar is removed first.
            # Otherwise a kill between the two renames would leave an old sidecar beside new features, which looks
            # complete.
            side = _json(asdict(sidecar))
            with replacing_durably(side_path) as side_file:
                side_file.write(side)
                flush(side_file)
                with replacing_durably(features, before=lambda: side_path.unlink(missing_ok=True)) as file:
                    metadata = {"source_hash": sidecar.source_hash, "sidecar": checksums.checksum(memoryview(side))}
                    _write_safetensors(file, tensors, metadata)
            self._verified -= {(name, index) for index in range(len(sidecar.crops))}

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray, Sidecar]:
        """Read one video.

        Returns:
            Image and event features, float16 (crops, T, D) each, and the sidecar.

        Raises:
            UserError: The video is missing, not complete or damaged.
        """
        sidecar = self.sidecar(name)
        with opened(self._paths(name)[0]) as tensors:
            image, event = tensors.get_tensor("image"), tensors.get_tensor("event")
            for index in range(len(sidecar.crops)):
                self._check(name, index, image[index], event[index], tensors.metadata())
        return image, event, sidecar

    def read_crop(self, name: str, crop_index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read one crop of a video, without reading the others.

        Args:
            name: Name of the video.
            crop_index: Crop number, 0 to 9 in the field's order.

        Returns:
            Image and event features, float16 (T, D) each.

        Raises:
            UserError: The video is missing, not complete or damaged, or the store does not have this crop.
        """
        sidecar = self.sidecar(name)
        if crop_index not in sidecar.crops:
            raise UserError(f"{name} in {self.root} has crops {sidecar.crops}, not {crop_index}; choose one of them")
        row = sidecar.crops.index(crop_index)
        with opened(self._paths(name)[0]) as tensors:
            image, event = tensors.get_slice("image")[row], tensors.get_slice("event")[row]
            self._check(name, row, image, event, tensors.metadata())
        return image, event

    def _check(
        self, name: str, index: int, image: np.ndarray, event: np.ndarray, metadata: Mapping[str, str] | None
    ) -> None:
        """Compare a crop's features with their checksum, once. Raises UserError if they differ."""
        if not self.verify or (name, index) in self._verified:
            return
        try:
            known = checksums.from_header(metadata)
            for stream, values in (("image", image), ("event", event)):
                if known and known[stream][index] != checksums.checksum(np.ascontiguousarray(values)):
                    raise ValueError(f"the {stream} features of crop {index} changed since they were written")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{self._paths(name)[0]} is damaged ({error}): extract {name} again. `iefvad data verify {self.root}`"
                " names all damaged videos."
            ) from None
        self._verified.add((name, index))

    def sidecar(self, name: str) -> Sidecar:
        """Return the sidecar of a video. Raises UserError if the video is missing or not complete."""
        for sidecar in self._complete([name]):
            return sidecar
        raise UserError(f"{self.root} has no complete video {name!r}; extract it (again)")

    def write_index(self) -> Path:
        """Rebuild ``index.csv`` from the sidecars, one row per complete video, and return its path."""
        rows: list[list[Any]] = [list(_INDEX_COLUMNS)]
        for side in self.sidecars():
            row = [getattr(side, column) for column in _INDEX_COLUMNS[:-1]]
            rows.append([*row, " ".join(map(str, side.crops))])
        with storage_errors(self.root), replacing_durably(self.root / _INDEX) as file:
            file.write(utf8(csv_text(rows)))
        return self.root / _INDEX

    def _paths(self, name: str) -> tuple[Path, Path]:
        parts = name.split("/")
        if (
            not name
            or any(part in ("", ".", "..") or "\0" in part for part in parts)
            or re.match(r"[A-Za-z]:|\\", name)
        ):
            raise UserError(f"{name!r} cannot name a stored video: use a relative name without empty parts or '..'")
        if name.lower() == Path(_SETTINGS).stem:
            raise UserError(f"a stored video cannot be named {name!r} ({_SETTINGS} belongs to the store); rename it")
        return self.root / f"{name}.safetensors", self.root / f"{name}.json"

    def _candidates(self) -> Iterator[str]:
        for path in self.root.rglob("*.safetensors"):
            yield path.relative_to(self.root).as_posix().removesuffix(".safetensors")

    def _complete(self, names: Iterable[str]) -> Iterator[Sidecar]:
        for name in names:
            sidecar = self._load(name)
            if sidecar is not None:
                yield sidecar

    def _load(self, name: str) -> Sidecar | None:
        try:
            features, side_path = self._paths(name)
            text = read_regular(side_path)
            sidecar = read_sidecar(parse_json(text))
            if not features.is_file():  # opening a pipe would wait
                return None
            # safe_open compares the header with the file's length, so a truncated file fails here.
            with opened(features) as tensors:
                slices = [tensors.get_slice(key) for key in ("image", "event")]
                shapes, kinds = [part.get_shape() for part in slices], {part.get_dtype() for part in slices}
                metadata = tensors.metadata() or {}
            consistent = (
                sidecar.name == name
                and kinds == {"F16"}
                and shapes[0] == shapes[1]
                and len(shapes[0]) == 3
                and shapes[0][2] == self.settings.get("dim", shapes[0][2])
                and shapes[0][:2] == [len(sidecar.crops), sidecar.segments]
                and metadata.get("source_hash") == sidecar.source_hash
                and metadata.get("sidecar") in (None, checksums.checksum(memoryview(text)))
                and sidecar.settings == self.settings
            )
        except (OSError, UserError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and too_many_files(error):
                raise  # it says nothing about the video
            return None  # with any error in the files, the video counts as missing and is extracted again
        return sidecar if consistent else None

    def _check_shapes(self, name: str, image: np.ndarray, event: np.ndarray, sidecar: Sidecar) -> None:
        expected = (len(sidecar.crops), sidecar.segments)
        if image.shape != event.shape:
            raise ValueError(f"{name}: image features are {image.shape}, event features {event.shape}; they must agree")
        if image.ndim != 3 or image.shape[:2] != expected:
            raise ValueError(f"{name}: features are {image.shape}, the sidecar says {expected} (crops, segments)")
        if "dim" in self.settings and image.shape[2] != self.settings["dim"]:
            raise ValueError(f"{name}: features are {image.shape[2]} wide, the store's are {self.settings['dim']}")
        if sidecar.event_density and len(sidecar.event_density) != sidecar.segments:
            raise ValueError(f"{name}: {len(sidecar.event_density)} event densities for {sidecar.segments} segments")
        for times in (sidecar.starts, sidecar.ends):
            if times is not None and len(times) != sidecar.segments:
                raise ValueError(f"{name}: {len(times)} times for {sidecar.segments} segments")

    def _read_settings(self) -> dict[str, Any] | None:
        try:
            settings = parse_json(read_regular(self.root / _SETTINGS))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.root / _SETTINGS} cannot be read ({error}); restore it or use another folder"
            ) from error
        if not isinstance(settings, dict):
            raise UserError(f"{self.root / _SETTINGS} is not a store's settings; use another folder")
        return settings


def read_sidecar(content: Any) -> Sidecar:
    """Make a sidecar from JSON.

    Raises:
        ValueError, KeyError, TypeError: an entry is missing, or is not what a sidecar has there.
    """
    later = {key: None for key in _LATER if key not in content}
    side = Sidecar(**{key.name: (later | content)[key.name] for key in fields(Sidecar)})
    counts = (side.frames, side.segments, side.frames_dropped)
    rows = [side.event_density or None, side.starts, side.ends]
    sound = (
        all(isinstance(text, str) for text in (side.name, side.source, side.source_hash))
        and _are_numbers([side.fps])
        and side.fps > 0
        and all(type(count) is int and count >= 0 for count in counts)
        and isinstance(side.crops, list)
        and all(type(crop) is int and 0 <= crop <= 9 for crop in side.crops)
        and 0 < len(side.crops) == len(set(side.crops))
        and isinstance(side.settings, dict)
        and isinstance(side.event_density, list)
        and all(values is None or (_are_numbers(values) and len(values) == side.segments) for values in rows)
    )
    if not sound or not in_order(side.starts or (), side.ends or ()):
        raise ValueError("its entries are not those of a sidecar")
    if side.clock is not None:
        report = ClockReport.from_dict(side.clock)
        if not _are_numbers([report.rate, *report.restarts]):
            raise ValueError("its clock has no rate")
    return side


def in_order(starts: Sequence[float] | np.ndarray, ends: Sequence[float] | np.ndarray) -> bool:
    """Return whether times of segments increase, and no segment ends before it starts."""
    first, last = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    return first.shape == last.shape and bool((np.diff(first) >= 0).all() and (last >= first).all())


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) and math.isfinite(value) for value in values)


def hash_file(path: PathLike) -> str:
    """Return a hash that identifies a file's content.

    It is ``sha256:HEX`` of the whole content up to 64 MiB. For larger files it is ``sha256-sampled:HEX`` of the size
    and of the first, middle and last 8 MiB, so that long videos are checked quickly. A change in another place that
    keeps the size is then not noticed.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _WHOLE_FILE:
            while block := file.read(_BLOCK):
                digest.update(block)
            return f"sha256:{digest.hexdigest()}"
        digest.update(str(size).encode())
        for start in (0, (size - _BLOCK) // 2, size - _BLOCK):
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return f"sha256-sampled:{digest.hexdigest()}"


def _to_half(name: str, kind: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    half = to_half(torch.from_numpy(np.array(values, np.float32, order="C")), f"{name}: {kind} features").numpy()
    if not np.isfinite(half).all():
        bad = int((~np.isfinite(values)).any(axis=(0, 2)).sum())
        raise UserError(
            f"{name}: {kind} features contain NaN or infinity in {bad} of {values.shape[1]} segments; extract it again,"
            " or leave it out"
        )
    return half


def _write_safetensors(file: BinaryIO, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    # Not written by the library, which builds the whole file in memory first: 2 GB for the longest videos.
    checks = {
        key: [checksums.checksum(np.ascontiguousarray(crop)) for crop in tensor] for key, tensor in tensors.items()
    }
    metadata = metadata | {checksums.KEY: checksums.to_header(checks)}
    file.write(header([(key, "F16", tensor.shape, tensor.nbytes) for key, tensor in tensors.items()], metadata))
    for tensor in tensors.values():
        file.write(tensor.data if tensor.size else b"")


def _recorded(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as a store records them: tuples become lists, and what older stores do not have is left out."""
    recorded: dict[str, Any] = json.loads(_json(settings))
    return {key: value for key, value in recorded.items() if key not in UNRECORDED or value != UNRECORDED[key]}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
