"""Reading a packed store: a whole benchmark in two memory-mapped files, from which a batch is one gather.

`iefvad.features.packing` writes such a store (`iefvad features import`).

- ``ROOT/train.safetensors``: every crop of every training video, averaged once to at most ``max_segments`` bins.
- ``ROOT/test.safetensors``: the test videos in full length.
- ``ROOT/packed.json``: the catalogue that names the videos. It is written last and marks the store as complete.

Both safetensors files contain these tensors:

- ``features``, float16 (2, R, D), 0 = image and 1 = event: the rows of all clips one after the other, then one row of
  zeros that padding points to.
- ``offsets``, int64 (clips + 1): the first row of each clip.
- ``truth``, uint8: the frame labels of the videos that have them.
- ``event_density``, float32: one number per segment of the videos that have it.
- ``starts`` and ``ends``, float64: the times of these segments in seconds, of the videos that have them. Stores of
  earlier versions lack both.
- ``checks``, uint8 (clips, 8): the checksum of each clip's image rows and event rows, one after the other. Stores of
  earlier versions have none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from iefvad.features.readers import Reader
from iefvad.features.store import in_order
from iefvad.features.videos import Video
from iefvad.utils import checksums
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, read_regular, too_many_files
from iefvad.utils.plain_json import parse_json
from iefvad.utils.tensors import map_half, opened
from iefvad.video import SEGMENT

FORMAT = 1
SPLITS = ("train", "test")
CATALOGUE, JOURNAL = "packed.json", "import.journal"
_FLAGS = {"truth": "truth", "event_density": "event_density", "starts": "times", "ends": "times"}
"""Small tensor -> key of a catalogue's entry that says whether the video has it."""
_TYPES = {"truth": np.uint8, "event_density": np.float32, "starts": np.float64, "ends": np.float64}
_IN_FILE = ("event_density", "starts", "ends", "truth")
"""The small tensors in the order of the file."""
_UNKNOWN_TYPE = (TypeError, AttributeError)  # what safetensors raises for a type that numpy does not have
_AGAIN = "run the same `iefvad features import` again"


def is_packed(root: PathLike) -> bool:
    """Return whether the folder is a packed store, even an unfinished one."""
    return any((Path(root) / name).is_file() for name in (CATALOGUE, JOURNAL))


def table_name(split: str) -> str:
    """Return the name of the file with a split's features."""
    return f"{split}.safetensors"


class PackedStore:
    """A packed store, opened for reading. Values stay on disk until they are used.

    Args:
        root: Folder of the store.
        verify: Compare the rows of each clip with their checksum when they are read first.

    Attributes:
        features: Memory-mapped float16 (2, R, D) per split; the last row of each stream is zero.
        offsets: int64 (clips + 1,) per split: the first row of each clip.
        name: Name of the benchmark.
        dim: Width D of the features.
        max_segments: Maximum number of rows per training clip.
        plan: Digest of the sources and options that the store was made from.
        settings: Settings of the encoders, empty if unknown.
        notes: What a reader of results must know.
        videos: Entries of the catalogue.

    Raises:
        UserError: ``root`` is not a packed store, or the store is damaged or unfinished.
    """

    def __init__(self, root: PathLike, *, verify: bool = True) -> None:
        self.root = Path(root)
        self.verify = verify
        try:
            content = parse_json(read_regular(self.root / CATALOGUE))
            if content["format"] != FORMAT:
                raise UserError(
                    f"{self.root} has packed format {content['format']}, this version reads {FORMAT}; import"
                    " the features again into another folder"
                )
            self.name: str = content["name"]
            self.dim: int = content["dim"]
            self.max_segments: int = content["max_segments"]
            self.plan: str = content["plan"]
            self.settings: dict[str, Any] = content["settings"]
            self.notes: list[str] = content["notes"]
            self.videos: list[dict[str, Any]] = content["videos"]
            self._small: dict[str, str] = content.get("checks", {})
            if content.pop("check", None) not in (None, catalogue_check(content)):
                raise UserError(f"{self.root / CATALOGUE} is damaged: delete the folder and {_AGAIN}")
            _check_catalogue(content)
        except (FileNotFoundError, NotADirectoryError):
            if (self.root / JOURNAL).is_file():
                raise UserError(
                    f"the import into {self.root} did not finish: {_AGAIN}, it continues from there"
                ) from None
            raise UserError(
                f"{self.root} is not a packed store (no {CATALOGUE}); make one with `iefvad features import`"
            ) from None
        except OSError as error:
            raise _unreadable(self.root / CATALOGUE, error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.root / CATALOGUE} cannot be read ({error!r}); delete the folder and {_AGAIN}"
            ) from error
        self.features: dict[str, Tensor] = {}
        self.offsets: dict[str, Tensor] = {}
        self._extras: dict[str, dict[str, np.ndarray]] = {}
        self._checks: dict[str, np.ndarray | None] = {}
        self._verified: set[tuple[str, int]] = set()
        for split in SPLITS:
            self._open(split)

    def has_checks(self, split: str) -> bool:
        """Return whether the clips of a split have checksums."""
        return self._checks[split] is not None

    def check(self, split: str, clip: int) -> None:
        """Compare the rows of a clip with their checksum, once.

        Raises:
            UserError: they differ.
        """
        checks = self._checks[split]
        if not self.verify or checks is None or (split, clip) in self._verified:
            return
        start, end = self.offsets[split][clip : clip + 2].tolist()
        rows = self.features[split][:, start:end]
        if checksums.checksum(rows[0], rows[1]) != checks[clip].tobytes().hex():
            name = next(name for name, first, crops in self._clips(split) if first <= clip < first + crops)
            raise UserError(
                f"{self.root / table_name(split)} is damaged: the features of {name} changed since they were written."
                f" Delete {self.root} and {_AGAIN}; `iefvad data verify {self.root}` names all damaged videos."
            )
        self._verified.add((split, clip))

    def _clips(self, split: str) -> Iterator[tuple[str, int, int]]:
        """Yield name, first clip and number of crops of each video of a split."""
        first = 0
        for entry in self.listed(split):
            yield entry["name"], first, len(entry["crops"])
            first += len(entry["crops"])

    def listed(self, split: str) -> list[dict[str, Any]]:
        """Return the catalogue's entries of one split, in order."""
        return [video for video in self.videos if video["split"] == split]

    def benchmark_videos(self, split: str) -> list[Video]:
        """Return the videos of a split. Their ``segments`` is the number of stored rows."""
        videos = []
        clip, ends = 0, dict.fromkeys(_FLAGS, 0)
        for entry in self.listed(split):
            rows = stored_rows(entry, self.max_segments)
            video = Video(
                name=entry["name"],
                classes=tuple(entry["classes"]),
                segments=rows,
                fps=entry["fps"],
                frames=entry["frames"],
                source=entry["source"],
                crops=tuple(entry["crops"]),
            )
            video.reader = PackedReader(self, split, entry["name"], video.crops, clip, entry["segments"] > rows)
            clip += len(video.crops)
            extras = {}
            for key, flag in _FLAGS.items():
                if entry.get(flag):
                    start = ends[key]
                    ends[key] = start + (SEGMENT * rows if key == "truth" else rows)
                    extras[key] = self._extras[split][key][start : ends[key]].copy()
            video.truth, video.event_density = extras.get("truth"), extras.get("event_density")
            video.starts, video.ends = extras.get("starts"), extras.get("ends")
            if video.starts is not None and video.ends is not None and not in_order(video.starts, video.ends):
                raise UserError(
                    f"{self.root / table_name(split)} is damaged: the times of {video.name} are not in order"
                )
            videos.append(video)
        return videos

    def _open(self, split: str) -> None:
        path = self.root / table_name(split)
        entries = self.listed(split)
        rows = [stored_rows(entry, self.max_segments) for entry in entries for _ in entry["crops"]]
        expected = np.cumsum([0, *rows])
        sizes = {
            key: sum(
                stored_rows(entry, self.max_segments) * (SEGMENT if key == "truth" else 1)
                for entry in entries
                if entry.get(flag)
            )
            for key, flag in _FLAGS.items()
        }
        try:
            # safe_open compares the header with the file's length, so a truncated file fails here.
            if path.exists() and not path.is_file():
                raise OSError("it is not a file")
            with opened(path) as tensors:
                table = tensors.get_slice("features")
                shape, kind = tuple(table.get_shape()), table.get_dtype()
                offsets = tensors.get_tensor("offsets")
                sizes = {key: size for key, size in sizes.items() if size or key in tensors.keys()}  # noqa: SIM118
                self._extras[split] = {key: tensors.get_tensor(key) for key in sizes}
                known = "checks" in tensors.keys()  # noqa: SIM118
                small = [offsets, *(self._extras[split][key] for key in _IN_FILE if key in sizes)]
                checks = self._checks[split] = tensors.get_tensor("checks") if known else None
            consistent = (
                shape == (2, int(expected[-1]) + 1, self.dim)
                and kind == "F16"
                and np.array_equal(offsets, expected)
                and all(self._extras[split][key].shape == (size,) for key, size in sizes.items())
                and all(self._extras[split][key].dtype == _TYPES[key] for key in sizes)
                and all(np.isfinite(self._extras[split][key]).all() for key in sizes)
                and all(labels.max(initial=0) <= 1 for key, labels in self._extras[split].items() if key == "truth")
                and (checks is None or checks.shape == (len(rows), 8))
                and self._small.get(split) in (None, checksums.checksum(*small))
            )
        except FileNotFoundError:
            raise UserError(f"{path} is missing: delete {self.root} and {_AGAIN}") from None
        except OSError as error:
            raise _unreadable(path, error) from error
        except (SafetensorError, *_UNKNOWN_TYPE) as error:
            raise UserError(f"{path} is damaged ({error}): delete {self.root} and {_AGAIN}") from error
        if not consistent:
            raise UserError(f"{path} does not belong to the {CATALOGUE} beside it: delete {self.root} and {_AGAIN}")
        self.features[split] = map_half(path, "features")
        self.offsets[split] = torch.from_numpy(expected.astype(np.int64))


class PackedReader(Reader):
    """Reads one video of a packed store.

    Args:
        store: The store.
        split: "train" or "test".
        name: Name of the video.
        crops: Its crop numbers.
        first: Number of the clip of its first crop.
        averaged: Whether its rows are bins of several segments.
    """

    def __init__(
        self, store: PackedStore, split: str, name: str, crops: Sequence[int], first: int, averaged: bool
    ) -> None:
        super().__init__("error", [])
        self.store, self.split, self.name, self.averaged = store, split, name, averaged
        self._clips = {crop: first + index for index, crop in enumerate(crops)}

    def span(self, crop: int) -> tuple[int, int]:
        """Return the rows [start, end) of a crop in ``store.features[split]``."""
        start, end = self.store.offsets[self.split][self._clips[crop] : self._clips[crop] + 2].tolist()
        return start, end

    def check_bytes(self, crop: int) -> None:
        """Compare a crop's rows with their checksum, once. Raises UserError if they differ."""
        self.store.check(self.split, self._clips[crop])

    def __call__(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the image and event features of one crop, float32 (T, D) each."""
        self.check_bytes(crop)
        start, end = self.span(crop)
        image, event = self.store.features[self.split][:, start:end].float().numpy()
        names = self.where(crop)
        return self._finite(names[0], image), self._finite(names[1], event)

    def where(self, crop: int) -> tuple[str, str]:
        """Return the video's name with the store and the stream."""
        return f"{self.name} in {self.store.root} (image)", f"{self.name} in {self.store.root} (event)"

    def files(self, crop: int) -> list[Path]:
        """Return the file of the video's split."""
        return [self.store.root / table_name(self.split)]


def _unreadable(path: Path, error: OSError) -> Exception:
    """Return the error for a file that the file system does not give. It says nothing about what the file contains."""
    return error if too_many_files(error) else UserError(f"{path} cannot be read ({error.strerror or error}): check it")


def _check_catalogue(content: dict[str, Any]) -> None:
    """Raise ValueError if an entry is not what a catalogue has there."""
    counts = [content["dim"], content["max_segments"]]
    texts = [content["name"], content["plan"], *content["notes"], *content.get("checks", {}).values()]
    sound = isinstance(content["settings"], dict)
    for video in content["videos"]:
        counts += [video["segments"], len(video["crops"])]
        texts += [video["name"], *video["classes"]]
        sound = (
            sound
            and video["split"] in SPLITS
            and type(video["frames"]) is int
            and type(video["fps"]) in (int, float)
            and 0 < video["fps"] < math.inf
            and isinstance(video["source"], str | None)
            and all(type(crop) is int for crop in video["crops"])
            and len(set(video["crops"])) == len(video["crops"])
            and all(video.get(flag) in (None, True, False) for flag in _FLAGS.values())
        )
    sound = sound and all(type(count) is int and count > 0 for count in counts)
    if not sound or not all(isinstance(text, str) for text in texts):
        raise ValueError("its entries are not those of a packed store")


def catalogue_check(content: dict[str, Any]) -> str:
    """Return the checksum of a catalogue, a JSON value without the entry "check"."""
    return checksums.checksum(memoryview(json.dumps(content, sort_keys=True).encode()))


def stored_rows(entry: dict[str, Any], max_segments: int) -> int:
    """Return the number of rows per crop of a catalogue's entry."""
    segments: int = entry["segments"]
    return min(segments, max_segments) if entry["split"] == "train" else segments
