"""One file with the scores of all models and seeds of a run, from which its pages are made again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.archives import read_npz
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_bytes

SCORES = "scores.npz"
"""Name of the file in a run folder."""

_FIELDS = ("scores", "w_img", "w_evt", "gain")

AllScores = Mapping[str, Mapping[int, Sequence[VideoScores]]]
"""Model → seed → scores of the test videos."""


def test_set(videos: Sequence[VideoScores]) -> str:
    """Return a digest of the test videos: names, numbers of segments and truth. Equal digests: metrics compare."""
    digest = hashlib.sha256()
    for video in videos:
        truth = b"" if video.truth is None else np.packbits(video.truth).tobytes()
        digest.update(json.dumps([video.name, video.scores.size, len(truth)]).encode() + truth)
    return digest.hexdigest()[:16]


def write_all_scores(path: Path, scores: AllScores) -> None:
    """Write the scores of all models and seeds. The same scores give the same bytes.

    Args:
        path: The file.
        scores: Scores of the same test videos, in the same order, for every model and seed.

    Raises:
        UserError: the file cannot be written.
        ValueError: models were tested on different videos.
    """
    videos = next(iter(next(iter(scores.values())).values()))
    arrays: dict[str, np.ndarray] = {
        "starts": _joined([v.starts for v in videos]),
        "ends": _joined([v.ends for v in videos]),
        "truth": np.packbits(_joined([v.truth for v in videos if v.truth is not None], np.uint8)),
    }
    shape = [(v.name, v.scores.size) for v in videos]
    entries: list[dict[str, Any]] = []
    for model, seeds in scores.items():
        for seed, tested in seeds.items():
            if [(v.name, v.scores.size) for v in tested] != shape:
                raise ValueError(f"{model} was tested on other videos than the first model")
            fields = [name for name in _FIELDS if all(getattr(v, name) is not None for v in tested)]
            for name in fields:
                arrays[f"{len(entries)}.{name}"] = _joined([getattr(v, name) for v in tested], np.float32)
            entries.append({"model": model, "seed": seed, "fields": fields})
    listed = [
        {"name": v.name, "classes": v.classes, "fps": v.fps, "segments": v.scores.size, "truth": v.truth is not None}
        for v in videos
    ]
    index = json.dumps({"videos": listed, "entries": entries}).encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, index=np.frombuffer(index, np.uint8), **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_all_scores(path: Path) -> dict[str, dict[int, list[VideoScores]]]:
    """Read what `write_all_scores` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        arrays = read_npz(path)
        index = json.loads(arrays.pop("index").tobytes())
        return _unpacked(index, arrays)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): `iefvad evaluate {path.parent}` writes it again.") from error


def _unpacked(index: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, dict[int, list[VideoScores]]]:
    videos = index["videos"]
    bounds = np.cumsum([0, *(video["segments"] for video in videos)])
    frames = 16 * np.cumsum([0, *(video["segments"] * video["truth"] for video in videos)])
    truth = np.unpackbits(arrays["truth"])
    times = {name: arrays[name] for name in ("starts", "ends")}
    result: dict[str, dict[int, list[VideoScores]]] = {}
    for number, entry in enumerate(index["entries"]):
        fields: dict[str, Any] = {name: arrays[f"{number}.{name}"] for name in entry["fields"]}
        result.setdefault(entry["model"], {})[entry["seed"]] = [
            VideoScores(
                video["name"],
                tuple(video["classes"]),
                video["fps"],
                truth[frames[i] : frames[i + 1]] if video["truth"] else None,
                **{name: values[bounds[i] : bounds[i + 1]] for name, values in (fields | times).items()},
            )
            for i, video in enumerate(videos)
        ]
    return result


def _joined(parts: Sequence[np.ndarray], dtype: Any = np.float64) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)
