"""A small data set in the field's layout, for the tests of packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from iefvad.data.datasets import load_lists
from iefvad.features.packed import PackedStore
from iefvad.features.packing import pack
from iefvad.features.videos import Benchmark

DIM = 6
TRAIN = (("Fire", "a", 3), ("Fire", "b", 21), ("Normal", "c", 8), ("Normal", "d", 9))
TEST = (("Fire", "e", 30), ("Normal", "f", 2))
BINS = 8


class Field:
    """Released features: four training videos with two crops, two test videos with crop 5, `gt.npy` and both lists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        random = np.random.default_rng(0)
        for split, videos, crops in (("train", TRAIN, (0, 5)), ("test", TEST, (5,))):
            rows = ["path,label"]
            for label, name, segments in videos:
                for crop in crops:
                    for folder in ("rgb", "event_thr_10"):
                        path = self.path(folder, label, name, crop)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        np.save(path, random.normal(size=(segments, DIM)).astype(np.float32))
                    rows.append(f"/media/author/rgb/{label}/{name}__{crop}.npy,{label}")
            (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
        truth = np.zeros(16 * 32)
        truth[100:140] = 1
        np.save(root / "gt.npy", truth)

    def path(self, folder: str, label: str, name: str, crop: int) -> Path:
        return self.root / folder / label / f"{name}__{crop}.npy"

    def load(self, **options: object) -> Benchmark:
        lists = self.root / "train.csv", self.root / "test.csv", self.root / "gt.npy"
        return load_lists(*lists, features=self.root, event_folder="event_thr_10", **options)

    def pack(self, out: Path, **options: object) -> PackedStore:
        return pack(self.load(**options), out, max_segments=BINS, progress=False)


def bytes_of(root: Path) -> dict[str, bytes]:
    """Return {name: content} of the files in a folder."""
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}
