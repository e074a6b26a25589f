"""Small feature stores and lists, for tests that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from iefvad.features.store import FeatureStore, Sidecar

DIM = 16
SETTINGS = {
    "format": 1,
    "image_encoder": "test",
    "image_weights_hash": "0",
    "event_encoder": "test",
    "event_weights_hash": "0",
    "dim": DIM,
    "crops": [0],
    "threshold": 10,
    "clamp": 10,
    "normalize": "clamp",
    "tail": "drop",
}


def features(random: np.random.Generator, segments: int, shift: slice, dimension: int) -> np.ndarray:
    """Return noise, float16 (1, T, D), with five larger dimensions within `shift`."""
    values = random.normal(size=(1, segments, DIM)).astype(np.float32)
    values[:, shift, dimension : dimension + 5] += 4.0
    return values.astype(np.float16)


def write_store(root: Path, *, train: int = 32, test: int = 8, seed: int = 0, corrupt: str | None = None) -> Path:
    """Write a store with lists and annotations. Class Run is visible only in events, class Smoke only in images."""
    random = np.random.default_rng(seed)
    store = FeatureStore(root, settings=SETTINGS | {"corrupt": corrupt}, create=True)
    lines = []
    for split, count in (("train", train), ("test", test)):
        rows = ["path,label"]
        for index in range(count):
            label = ("Normal", "Run", "Normal", "Smoke")[index % 4]
            name, segments = f"{split}{index:03d}", int(random.integers(6, 20))
            start = int(random.integers(0, segments - 3))
            shown = slice(start, start + 3)
            nothing = slice(0, 0)
            image = features(random, segments, shown if label == "Smoke" else nothing, 3)
            event = features(random, segments, shown if label == "Run" else nothing, 9)
            sidecar = Sidecar(
                name=name,
                source=f"{name}.mp4",
                source_hash=name,
                fps=25.0,
                frames=16 * segments,
                segments=segments,
                frames_dropped=0,
                crops=[0],
                settings=SETTINGS,
                event_density=[float(value) for value in random.random(segments)],
                starts=[0.64 * number for number in range(segments)],
                ends=[0.64 * (number + 1) for number in range(segments)],
            )
            store.write(name, image, event, sidecar)
            rows.append(f"{name}.mp4,{label}")
            interval = f"{16 * start}  {16 * (start + 3)}" if label != "Normal" else "-1  -1"
            lines.append(f"{name}.mp4  {label}  {interval}  -1  -1")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (root / "annotations.txt").write_text("\n".join(lines) + "\n")
    store.write_index()
    return root


def training_flags(store: Path, out: Path, *more: str) -> list[str]:
    """Return the command line of a training run of a few seconds on such a store."""
    fast = ["--epochs", "4", "--batch", "8", "--lr", "5e-3", "--heads", "2", "--refine-steps", "2", "--device", "cpu"]
    return ["--features", str(store), "--preset", "synth", "--out", str(out), *fast, *more]


def without_checksums(path: Path) -> None:
    """Make a file of features that of an earlier version, whose header has no checksums."""
    with safe_open(path, "np") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in ("image", "event")}, file.metadata()
    save_file(tensors, path, {"source_hash": metadata["source_hash"]})
