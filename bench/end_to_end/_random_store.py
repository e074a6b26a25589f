"""A packed store of random features, as large as a benchmark's, written as fast as the disk takes it."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from iefvad.features.packed import CATALOGUE, FORMAT, table_name
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_json

# UCF-Crime's training videos are 800 normal and 810 abnormal ones, ten crops each.
NORMAL_SHARE = 800 / 1610
CROPS = 10
PERIOD = 8191
"""Rows after which the values repeat: a prime, so that no two of the first 8191 clips are alike."""


SPREAD = 1.24
"""Of the logarithm of a video's length: the mean of UCF-Crime's test videos is 2.14 times their median."""


def video_lengths(videos: int, segments: int, fill: float, random: np.random.Generator) -> list[int]:
    """Lengths of `videos` videos, averaged to at most `segments`, of which a fraction `fill` is no padding on average.

    Quantiles of a log-normal distribution in random order; 0 < `fill` ≤ 1, and 1 makes all videos of full length.
    """
    if fill == 1:
        return [segments] * videos
    normal = statistics.NormalDist()
    scores = np.array([normal.inv_cdf((index + 0.5) / videos) for index in range(videos)])

    def lengths(shift: float) -> np.ndarray:
        return np.exp(shift + SPREAD * scores).round().clip(1, segments)

    low, high = -math.log(segments) - 10, math.log(segments) + 10
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if lengths(middle).mean() < fill * segments else (low, middle)
    return [int(length) for length in random.permutation(lengths(high))]


def write_store(root: Path, *, clips: int, segments: int, dim: int, fill: float = 1.0, seed: int = 0) -> None:
    """Write `clips` training clips of at most `segments` segments and no test video into the folder `root`.

    Ten clips are a video where that divides their number, else each is one. Lengths as of `video_lengths`. Values are
    normal, in float16. Raises UserError where the disk has no room.
    """
    root.mkdir(parents=True, exist_ok=True)
    needed, free = 4 * fill * clips * segments * dim, shutil.disk_usage(root).free
    if needed > 0.95 * free:
        raise UserError(
            f"the features take {needed / 1e9:.1f} GB and {root} has {free / 1e9:.1f} GB left: lower --clips, or name"
            " another folder with TMPDIR"
        )
    random = np.random.default_rng(seed)
    crops = CROPS if clips % CROPS == 0 and clips >= 2 * CROPS else 1
    videos = clips // crops
    normal = min(max(round(videos * NORMAL_SHARE), 1), videos - 1)
    lengths = video_lengths(videos, segments, fill, random)
    offsets = np.zeros(clips + 1, "<i8")
    np.cumsum(np.repeat(lengths, crops), out=offsets[1:])
    rows = int(offsets[-1]) + 1
    tensors = {
        "features": ("F16", [2, rows, dim], 4 * rows * dim),
        "offsets": ("I64", [clips + 1], 8 * (clips + 1)),
        "event_density": ("F32", [0], 0),
        "truth": ("U8", [0], 0),
    }
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    block = random.standard_normal((PERIOD, dim), dtype=np.float32).astype("<f2")
    with (root / table_name("train")).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stream in range(2):
            _fill(file, np.roll(block, stream * (PERIOD // 2), axis=0), rows - 1)
            file.write(bytes(2 * dim))
        file.write(offsets.tobytes())
    nothing: dict[str, np.ndarray] = {"features": np.zeros((2, 1, dim), np.float16), "offsets": np.zeros(1, np.int64)}
    nothing |= {"event_density": np.zeros(0, np.float32), "truth": np.zeros(0, np.uint8)}
    save_file(nothing, root / table_name("test"))
    entries = [
        {
            "name": f"video{number:05d}",
            "classes": [] if number < normal else ["Abnormal"],
            "split": "train",
            "segments": lengths[number],
            "fps": 30.0,
            "frames": 16 * lengths[number],
            "crops": list(range(crops)),
            "source": None,
            "truth": False,
            "event_density": False,
        }
        for number in range(videos)
    ]
    document: dict[str, object] = {
        "format": FORMAT,
        "name": "random",
        "dim": dim,
        "max_segments": segments,
        "settings": {},
    }
    write_json(root / CATALOGUE, document | {"plan": f"random {seed}", "notes": [], "videos": entries})


def _fill(file: BinaryIO, block: np.ndarray, rows: int) -> None:
    for start in range(0, rows, PERIOD):
        block[: rows - start].tofile(file)
