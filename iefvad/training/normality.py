"""`iefvad train --normal-only`: a detector from normal footage alone, what it says of itself, and its run folder."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from iefvad.checkpoints.files import NormalRecord, save_model
from iefvad.checkpoints.hub import NormalOnly
from iefvad.detection.calibrate import poisson_bound
from iefvad.features.packed import PackedReader
from iefvad.features.videos import Benchmark, Video
from iefvad.model.normality.config import CAVEAT, THRESHOLD
from iefvad.model.normality.fit import Features, fit_normality
from iefvad.scoring.scorer import as_scores, choose_crops, crop_notes, density_scores, score_videos
from iefvad.scoring.video_scores import VideoScores, intervals_above
from iefvad.training.results import Results, finish
from iefvad.training.run import NORMAL_ONLY, Run, Variant
from iefvad.training.settings import Settings
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.text import clock, few, readable
from iefvad.video import SEGMENT


def train_normal(run: Run, benchmark: Benchmark, begin: float) -> dict[str, Any]:
    """Make the detectors of a run and evaluate them, and write the run folder.

    Without test videos, each normal video is scored by densities that have not seen it, and that is evaluated.

    Args:
        run: The run.
        benchmark: The videos. Training videos with anomalies are left out.
        begin: When the command began, of `time.perf_counter`.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: there is too little normal footage, or its features cannot be read or do not vary.
    """
    config = run.config
    normal = [video for video in benchmark.train if not video.classes]
    if not normal:
        raise UserError("--normal-only needs normal training videos: the training list has none (label Normal).")
    averaged = [video.name for video in normal if isinstance(video.reader, PackedReader) and video.reader.averaged]
    if averaged:
        raise UserError(
            f"{len(averaged)} normal videos are stored as averages of several segments, which look less unusual than"
            f" segments ({few(averaged)}): give the store that was packed, or pack it with a larger --max-segments."
        )
    tested = bool(benchmark.test)
    # Without test videos, held-out training videos are tested; all of their frames are normal.
    quiet = [dataclasses.replace(video, truth=np.zeros(SEGMENT * video.segments, np.uint8)) for video in normal]
    benchmark = benchmark if tested else dataclasses.replace(benchmark, test=quiet)
    benchmark.notes += crop_notes(benchmark.test, config.test_crops)
    left_out = len(benchmark.train) - len(normal)
    print(
        f"{readable(benchmark.name)}: {len(normal)} normal training videos"
        f" ({sum(video.segments for video in normal)} segments), {len(benchmark.test) if tested else 0} test videos,"
        f" features {benchmark.dim} wide\n{NORMAL_ONLY}, density {config.density}, run folder {readable(run.path)}"
    )
    for note in [CAVEAT, *benchmark.notes]:
        print(f"note: {readable(note)}")
    sys.stdout.flush()
    used = {"train_videos": len(normal), "held_out_videos": 0}
    results = Results()
    notes: list[str] = []
    for variant in run.variants:
        model, held_out = _fitted(config, variant, normal, left_out)
        model.provenance |= {
            "encoder": benchmark.settings,
            "chunk": config.max_segments,
            "test_crops": config.test_crops,
            "method": NORMAL_ONLY,
            "seed": config.seeds[0],
            **used,
        }
        save_model(run.checkpoint(variant), model, model.provenance)
        if tested:
            scores = score_videos(model, benchmark.test, crops=config.test_crops, chunk=config.max_segments)
        else:
            scores = [_rows(model, video, values) for video, values in zip(quiet, held_out, strict=True)]
        results.add(variant.name, config.seeds[0], scores)
        results.facts[variant.name] = facts_of(model, scores if tested else [])
        if not tested:
            results.facts[variant.name]["tested_on"] = "held-out normal training videos"
        notes = notes or notes_of(model, results.facts[variant.name])
    if not tested:
        notes.append(
            "There are no test videos. Scores and timelines are those of the normal training videos, each scored by"
            " densities that have not seen it. They say how often it is alarmed for nothing, and not what it finds."
        )
    if tested and (density := density_scores(benchmark.test)) is not None:
        results.add("event density", config.seeds[0], density)
    for note in notes:
        print(f"note: {readable(note)}")
    return finish(run, benchmark, results, used=used, seconds=time.perf_counter() - begin, notes=notes)


def facts_of(model: NormalOnly, tested: Sequence[VideoScores]) -> dict[str, Any]:
    """Return what metrics.json says of a detector beside its metrics: threshold and false alarms per hour.

    Args:
        model: The detector.
        tested: Scores of test videos. False alarms are counted on the normal ones.
    """
    record = _record(model.provenance)
    quiet = [v for v in tested if not v.classes and (v.truth is None or not v.truth.any())]
    held_out = {
        "videos": record.videos,
        "hours": record.hours,
        "flagged": record.flagged,
        "per_hour": record.flagged / record.hours,
        "upper_bound": record.upper_bound,
    }
    alarms = {"expected_per_hour": 1.0, "held_out": held_out, "normal_test_videos": _alarms(quiet)}
    return {"threshold": THRESHOLD, "false_alarms": alarms}


def notes_of(model: NormalOnly, facts: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the results of a detector must know. `facts` are those of `facts_of`."""
    record = _record(model.provenance)
    parts = "blocks of the only normal video" if record.blocks else "groups of videos"
    notes = [
        f"Normal footage: {record.videos} videos, {record.segments} segments, {clock(3600 * record.hours)}."
        f" {record.groups} {parts} were held out in turn, for the precisions of the streams and for the scale of the"
        " scores."
    ]
    if record.left_out:
        notes.append(f"{record.left_out} training videos with anomalies were left out.")
    if record.blocks:
        notes.append(
            "With a single normal video, held-out blocks resemble the rest of it: expect more false alarms elsewhere."
        )
    if record.image_weight is not None:
        notes.append(
            f"Weights of the streams by their precision: image {record.image_weight:.2f}, event"
            f" {1 - record.image_weight:.2f}."
        )
    held_out = facts["false_alarms"]["held_out"]
    text = (
        f"Threshold {THRESHOLD}: normal footage is expected to reach it once per hour. On held-out normal footage,"
        f" {held_out['flagged']} intervals in {clock(3600 * record.hours)} reach it (95% confidence: at most"
        f" {held_out['upper_bound']:.3g} per hour)."
    )
    if record.hours < 1:
        text += (
            " That is less than an hour, so the threshold lies beyond what was seen: check it with `iefvad calibrate`."
        )
    notes.append(text)
    if (test := facts["false_alarms"]["normal_test_videos"]) is not None:
        notes.append(
            f"On {test['videos']} normal test videos ({clock(3600 * test['hours'])}), {test['flagged']} intervals reach"
            f" the threshold: {test['per_hour']:.3g} per hour (95% confidence: at most {test['upper_bound']:.3g})."
        )
    return notes


def _fitted(
    config: Settings, variant: Variant, normal: Sequence[Video], left_out: int
) -> tuple[NormalOnly, list[np.ndarray]]:
    """Make a detector, and return it with the held-out scores of the videos, (T,) each."""
    streams = {"image": 0, "event": 1}
    wanted = streams if variant.modality == "fusion" else {variant.modality: streams[variant.modality]}

    def read(index: int) -> Features:
        video = normal[index]
        pairs = [video.features(crop) for crop in choose_crops(video.crops, config.test_crops)]
        return {name: torch.stack([pair[place] for pair in pairs]) for name, place in wanted.items()}

    times = [as_scores(video, np.zeros((video.segments, 4), np.float32)).seconds / 3600 for video in normal]
    hours, segments = sum(times), sum(video.segments for video in normal)
    if not hours > 0:
        raise UserError("--normal-only needs normal videos with a duration: these have no segment.")
    try:
        fitted = fit_normality(
            read,
            [video.segments for video in normal],
            density=config.density,
            modality=variant.modality,
            per_hour=segments / hours,
            device=resolve_device(config.device),
        )
    except ValueError as error:
        remedy = "give more normal video" if "too few" in str(error) else "choose the other stream with --modality"
        raise UserError(f"--normal-only: {error}; {remedy}.") from None
    model = NormalOnly(fitted.network.config)
    model.load_state_dict(fitted.network.state_dict())
    model = model.to(resolve_device(config.device)).eval()
    alarms = _alarms([_rows(model, video, scores) for video, scores in zip(normal, fitted.held_out, strict=True)])
    assert alarms is not None
    precisions = model.precisions.double()
    record = NormalRecord(
        videos=len(normal),
        left_out=left_out,
        segments=segments,
        used=fitted.used,
        hours=hours,
        groups=fitted.groups,
        blocks=fitted.blocks,
        flagged=alarms["flagged"],
        upper_bound=alarms["upper_bound"],
        image_weight=float(precisions[0] / precisions.sum()) if variant.modality == "fusion" else None,
    )
    model.provenance = {"threshold": THRESHOLD, "normal_only": dataclasses.asdict(record)}
    return model, fitted.held_out


def _rows(model: NormalOnly, video: Video, scores: np.ndarray) -> VideoScores:
    """Make the scores of a video (T,) the same object as that of `score_videos`."""
    rows = np.full((len(scores), 4), np.nan, np.float32)
    rows[:, 0] = scores
    if model.config.modality == "fusion":
        rows[:, 1:3] = (model.precisions / model.precisions.sum()).cpu().numpy()
    return as_scores(video, rows)


def _alarms(videos: Sequence[VideoScores]) -> dict[str, Any] | None:
    """Count the flagged intervals of normal videos at the default threshold. None without videos."""
    hours = sum(video.seconds for video in videos) / 3600
    if not hours > 0:
        return None
    flagged = sum(
        len(intervals_above(v.scores, v.fps, THRESHOLD, starts=v.starts, ends=v.ends)) for v in videos if v.scores.size
    )
    return {
        "videos": len(videos),
        "hours": hours,
        "flagged": flagged,
        "per_hour": flagged / hours,
        "upper_bound": poisson_bound(flagged) / hours,
    }


def _record(provenance: Mapping[str, Any]) -> NormalRecord:
    values = provenance.get("normal_only") or {}
    names = {field.name for field in dataclasses.fields(NormalRecord)}
    return NormalRecord(**{name: value for name, value in values.items() if name in names})
