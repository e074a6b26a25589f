"""Readers of one video's features, from a feature store or ``.npy`` files. All of them check for NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from iefvad.features.npy import load_npy, npy_crops, npy_shape
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.utils.text import few

Nan = Literal["error", "zero"]


class Reader:
    """Reads one crop of a video: ``reader(crop)`` returns image and event features, float32 (T, D) each.

    Args:
        nan: "error": NaN and infinity raise UserError. "zero": they are replaced by 0, with a line in ``notes``.
        notes: List that gets a line for each replacement.
    """

    def __init__(self, nan: Nan, notes: list[str]) -> None:
        self.nan, self.notes, self.noted = nan, notes, False

    def __call__(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the image and event features of one crop, float32 (T, D) each."""
        raise NotImplementedError

    def where(self, crop: int) -> tuple[str, str]:
        """Return how messages call the image and the event features of a crop."""
        raise NotImplementedError

    def files(self, crop: int) -> list[Path]:
        """Return the files that a crop is read from."""
        raise NotImplementedError

    def check(self, crop: int) -> None:
        """Compare the headers of a crop's files with the video. Raises UserError if they disagree."""

    def _finite(self, where: str, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, dtype=np.float32)
        good = np.isfinite(values)
        if good.all():
            return values
        what = f"{where}: {int((~good).sum())} of {good.size} features are NaN or infinite"
        if self.nan == "error":
            raise UserError(f"{what}; extract it again, or pass --nan zero to replace them by 0")
        note = f"{what}; they were replaced by 0"
        if not self.noted and note not in self.notes:
            self.notes.append(note)
        return np.where(good, values, np.float32(0))


class StoreReader(Reader):
    """Reads one video of a feature store."""

    def __init__(self, store: FeatureStore, name: str, nan: Nan, notes: list[str]) -> None:
        super().__init__(nan, notes)
        self.store, self.name = store, name

    def __call__(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the image and event features of one crop, float32 (T, D) each."""
        image, event = self.store.read_crop(self.name, crop)
        names = self.where(crop)
        return self._finite(names[0], image), self._finite(names[1], event)

    def where(self, crop: int) -> tuple[str, str]:
        """Return the video's name with the stream."""
        return f"{self.name} (image)", f"{self.name} (event)"

    def files(self, crop: int) -> list[Path]:
        """Return the file of the video's features and its sidecar."""
        return [self.store.root / f"{self.name}{suffix}" for suffix in (".safetensors", ".json")]


class NpyReader(Reader):
    """Reads one video from ``.npy`` files.

    Args:
        pairs: {crop: (image file, event file)}. One of the two is None for data of a single stream, the same one for
            all crops; features of that stream are zeros.
        nan: As for `Reader`.
        notes: As for `Reader`.
        axis: Axis of the crops in files that contain all of them (`iefvad.features.npy.crop_axis`); None for files
            (T, D). Then `pairs` has one pair of files, and gets an item for each of their crops.

    Attributes:
        segments: Number of segments, from the header of the first crop.
        dim: Width of the features, from the header of the first crop.
    """

    def __init__(
        self, pairs: dict[int, tuple[Path | None, Path | None]], nan: Nan, notes: list[str], axis: int | None = None
    ) -> None:
        super().__init__(nan, notes)
        self.pairs, self.axis = pairs, axis
        first, *others = self.files(next(iter(pairs)))
        self.segments, self.dim = npy_shape(first, axis)
        if axis is not None:
            self.pairs = dict.fromkeys(range(npy_crops(first, axis)), self._only(pairs))
            for path in others:
                if (count := npy_crops(path, axis)) != len(self.pairs):
                    raise UserError(f"{path} has {count} crops, {first} has {len(self.pairs)}: extract them again")
        if self.segments == 0:
            raise UserError(f"{first} has no segments; take the video out of the list")
        for path in others:
            self._agree(path, npy_shape(path, axis), first)

    def __call__(self, crop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the image and event features of one crop, float32 (T, D) each."""
        first = self.files(crop)[0]
        arrays = []
        for path in self.pairs[crop]:
            if path is None:
                arrays.append(np.zeros((self.segments, self.dim), np.float32))
                continue
            values = load_npy(path, self.axis, crop)
            self._agree(path, values.shape, first)
            arrays.append(self._finite(str(path), values))
        return arrays[0], arrays[1]

    def where(self, crop: int) -> tuple[str, str]:
        """Return the paths of both files. A stream without a file has the name of the other's."""
        paths = self.files(crop)
        return str(paths[0]), str(paths[-1])

    def files(self, crop: int) -> list[Path]:
        """Return both files, or the one of a single stream."""
        return [path for path in self.pairs[crop] if path is not None]

    def check(self, crop: int) -> None:
        """Compare both headers with the first crop's. Raises UserError if the shape differs or a file is damaged."""
        paths = self.files(crop)
        for path in paths:
            self._agree(path, npy_shape(path, self.axis), paths[0])

    @staticmethod
    def _only(pairs: dict[int, tuple[Path | None, Path | None]]) -> tuple[Path | None, Path | None]:
        pair, *more = pairs.values()
        if more:
            files = few(str(path) for pair in pairs.values() for path in pair[:1])
            raise UserError(f"{files} are several files of one video, and each has all crops: list one of them")
        return pair

    def _agree(self, path: Path, shape: tuple[int, ...], beside: Path) -> None:
        if shape != (self.segments, self.dim):
            raise UserError(
                f"{path} is {shape[0]} segments x {shape[1]}, but {beside if beside != path else 'another crop'} is "
                f"{self.segments} x {self.dim}; image and event features and all crops must agree: extract them again"
            )
