"""The files of each video's result: NAME.csv, NAME_intervals.csv, NAME.json, NAME.html and NAME_overlay.mp4."""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from iefvad.checkpoints.calibration import fingerprint
from iefvad.checkpoints.hub import NormalOnly
from iefvad.detection.addresses import INDEX, address_of_video
from iefvad.detection.detector import Detector, stem_of
from iefvad.detection.overlay import write_overlay
from iefvad.detection.result import Detection
from iefvad.detection.threshold import Rule
from iefvad.model.normality.config import CAVEAT
from iefvad.scoring.video_scores import Interval, VideoScores, write_scores_csv
from iefvad.utils.advice import as_json, score_text
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import read_regular, rescued, write_text, write_with
from iefvad.utils.memory import is_shortage, shortage
from iefvad.utils.plain_json import parse_json
from iefvad.utils.text import file_name, readable
from iefvad.video import SEGMENT

_SUFFIXES = (".csv", "_intervals.csv", ".json", ".html", "_overlay.mp4")


class Names:
    """Gives each video of a folder its own file name.

    A name is not used for two videos, neither by one object nor by earlier results in the folder: their JSON files say
    to which video they belong. A video's own earlier results are replaced.
    """

    def __init__(self, folder: Path) -> None:
        """Give names for files in `folder`, which need not exist."""
        self.folder = folder
        self._taken: dict[str, str] = {INDEX: ""}  # of no video

    def of(self, video: Path) -> str:
        """Return the stem of the video; where it is taken, with the suffix, with its folders, or with a number."""
        owner, stem = readable(os.path.realpath(video)), stem_of(video)
        parts = [readable(part) for part in Path(os.path.realpath(video)).parts[:-1] if part != os.sep]
        candidates = itertools.chain(
            [stem],
            [f"{stem}_{video.suffix[1:]}"] if video.suffix else [],
            ("_".join([*parts[-depth:], stem]) for depth in range(1, len(parts) + 1)),
            (f"{stem}_{number}" for number in itertools.count(2)),
        )
        name = next(name for name in map(file_name, candidates) if self._free(name, owner))
        for suffix in _SUFFIXES:
            self._taken[(name + suffix).lower()] = owner  # some file systems ignore case
        return name

    def fresh(self, stem: str) -> str:
        """Return a name that is free, and give it only once: live input never replaces an earlier recording."""
        name, number = stem, 2
        while any((self.folder / file).exists() or file.lower() in self._taken for file in _files(name)):
            name, number = f"{stem}_{number}", number + 1
        self._taken |= {file.lower(): name for file in _files(name)}
        return name

    def _free(self, name: str, owner: str) -> bool:
        if any(self._taken.get((name + suffix).lower(), owner) != owner for suffix in _SUFFIXES):
            return False
        try:
            before = parse_json(read_regular(self.folder / f"{name}.json"))
        except (OSError, ValueError):
            return True
        return not isinstance(before, dict) or before.get("path", owner) == owner


def _files(name: str) -> list[str]:
    return [name + suffix for suffix in _SUFFIXES]


def write_results(detection: Detection, folder: Path, name: str, detector: Detector) -> list[Path]:
    """Write all files of one video, each completely or not at all. If the folder fails, they are written elsewhere.

    Args:
        detection: The result; its `files` become the paths.
        folder: Folder for the files; it is created.
        name: Common first part of the file names.
        detector: The detector. Its settings say whether the overlay video is written, for a video file.

    Returns:
        The paths of the files.

    Raises:
        UserError: a file cannot be written. Where a full disk or the folder is the reason, the message names the folder
            that has the results instead.
    """

    def write(folder: Path) -> list[Path]:
        return _write_results(detection, folder, name, detector)

    return rescued(write, folder, f"the results of {readable(detection.scores.source or name)}")


def _write_results(detection: Detection, folder: Path, name: str, detector: Detector) -> list[Path]:
    from iefvad.report.video_page import write_timeline  # here, because matplotlib is slow to import and large

    scores = replace(detection.scores, name=name)
    paths = [folder / f"{name}{suffix}" for suffix in _SUFFIXES[:4]]
    write_scores_csv(paths[0], [scores])
    _write_intervals(paths[1], scores, detection.intervals)
    if detector.config.overlay and isinstance(detection.video, Path):
        paths.append(folder / f"{name}{_SUFFIXES[4]}")
        limit = detector.config.max_pixels
        write_overlay(paths[-1], detection.video, scores, detection.intervals, detection.rule.threshold, limit)
    write_timeline(
        paths[3],
        title=scores.source or name,
        video=scores,
        intervals=detection.intervals,
        threshold=detection.rule.threshold,
        thumbnails=detection.pictures,
        address=address_of_video(detection, folder),
        notes=_notes(detection, detector),
        warnings=detection.warnings,
    )
    # Last: where the JSON file is, all others are.
    write_with(paths[2], lambda path: _write_json(path, detection, detector, [p.name for p in paths]))
    detection.files = paths
    return paths


def page_of(detection: Detection) -> Path:
    """Return the path of the page among the files of a detection."""
    return next(path for path in detection.files if path.suffix == ".html")


def describe_failure(video: Path, error: Exception) -> str:
    """Return a message that names the video once. Most messages name it themselves."""
    if not isinstance(error, UserError) and is_shortage(error):
        return readable(f"{video}: there is {shortage(error)} for its frames")
    if not isinstance(error, (UserError, OSError)):  # of a library, at one video of many
        return readable(f"{video}: {type(error).__name__}: {error}")
    return readable(str(error) if str(video) in str(error) else f"{video}: {error}")


def describe_rule(rule: Rule) -> str:
    """Say in words when a segment is flagged: threshold, low threshold, gaps, minimum length."""
    text = f"flagged where the score reaches {score_text(rule.threshold)}"
    if rule.low < rule.threshold:
        text += f", until it falls below {score_text(rule.low)}"
    if rule.merge_gap:
        text += f"; gaps up to {rule.merge_gap:g} s are closed"
    if rule.min_length:
        text += f"; intervals shorter than {rule.min_length:g} s are left out"
    return text


def _notes(detection: Detection, detector: Detector) -> list[str]:
    notes = [
        *([CAVEAT] if isinstance(detector.model, NormalOnly) else []),
        f"model {detector.name}, method {detector.provenance.get('method', 'unknown')}",
        f"features: {detector.encoder.description}",
        f"{describe_rule(detection.rule)} ({detection.rule.origin})",
        f"the model sees {detector.chunk} segments of {SEGMENT} frames at once and scores {detector.hop} at a time",
    ]
    if detection.clock is not None:
        notes += detection.clock.notes()
    if detection.live is not None:
        live = detection.live
        notes.append(
            f"live input: {live['frames_read']} frames read, {live['frames_dropped']} dropped, connection lost"
            f" {sum(live['connections_lost'].values())} time(s); times are those of arrival, since the first frame"
        )
        if live["lost_seconds"]:
            notes.append(f"without scores: {live['lost_seconds']:.1f} s of this time; the JSON file lists where")
    return notes


def _write_intervals(path: Path, scores: VideoScores, intervals: list[Interval]) -> None:
    rows: list[list[Any]] = [["start s", "end s", "peak", "first frame", "last frame"]]
    for start, end, peak in intervals:
        rows.append([f"{start:.3f}", f"{end:.3f}", f"{peak:.6f}", *scores.frames(start, end)])
    write_text(path, csv_text(rows))


def _write_json(path: Path, detection: Detection, detector: Detector, files: list[str]) -> None:
    scores, timing, live = detection.scores, detection.timing, detection.live
    clocks = None if live is None else live["clock"]
    rule = detection.rule
    document: dict[str, Any] = {
        "format": 1,
        "video": str(scores.source),
        "path": str(detection.video) if live is not None else readable(os.path.realpath(detection.video)),
        "fps": scores.fps,
        "segment_frames": SEGMENT,
        "seconds": scores.seconds,
        "clock": None if detection.clock is None else detection.clock.as_dict() | {"notes": detection.clock.notes()},
        "model": {
            "source": detector.name,
            "fingerprint": fingerprint(detector.model),
            "method": detector.provenance.get("method"),
            "encoder": detector.encoder.description,
            "crops": detector.settings["crops"],
            "chunk": detector.chunk,
            "hop": detector.hop,
            "context": detector.context,
        },
        "rule": {
            "threshold": rule.threshold,
            "low": rule.low,
            "merge_gap": rule.merge_gap,
            "min_length": rule.min_length,
            "origin": rule.origin,
        },
        "timing": {
            "frames_per_second": timing.frames_per_second,
            "ms_per_segment": timing.milliseconds(),
            "latency": timing.latency(),
        },
        "live": None if live is None else {key: value for key, value in live.items() if key != "clock"},
        "files": files,
        "warnings": as_json(detection.warnings),
        "intervals": [_interval(scores, *interval) for interval in detection.intervals],
    }
    # One segment per line, written one by one, so that hours of them need no further memory.
    head = json.dumps(document, indent=2, allow_nan=False)
    with path.open("w", encoding="utf-8") as file:
        file.write(head[: head.rindex("\n}")] + ',\n  "segments": [')
        for t in range(scores.scores.size):
            start, end = scores.times(t)
            row: dict[str, Any] = {
                "frame": SEGMENT * t,
                "start": start,
                "end": end,
                "score": _short(scores.scores[t]),
            }
            for column in ("w_img", "w_evt", "gain"):
                values = getattr(scores, column)
                row[column] = None if values is None else _short(values[t])
            if clocks is not None:
                row["clock"] = round(clocks[t], 3)
                row["latency_ms"] = round(1000 * timing.latencies[t], 1)
            file.write(("," if t else "") + "\n    " + json.dumps(row, allow_nan=False))
        file.write("\n  ]\n}\n")


def _interval(scores: VideoScores, start: float, end: float, peak: float) -> dict[str, Any]:
    first, last = scores.frames(start, end)
    return {"start": start, "end": end, "peak": peak, "first_frame": first, "last_frame": last}


def _short(value: Any) -> float:
    """Round to nine digits, which are enough to restore a float32 exactly."""
    number = float(value)
    return float(f"{number:.9g}") if math.isfinite(number) else number
