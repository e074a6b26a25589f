"""Calibration: find the threshold for a maximum rate of false alarms on normal videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from iefvad.checkpoints.calibration import Calibration, fingerprint
from iefvad.checkpoints.hub import Trained
from iefvad.detection.config import CalibrateConfig, DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.outputs import describe_failure
from iefvad.detection.threshold import Rule
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError
from iefvad.utils.options import checked
from iefvad.utils.text import clock, readable
from iefvad.video import find_videos, require_rate


def calibrate(
    model: str | Path | Trained, videos: Sequence[str | Path], config: CalibrateConfig
) -> tuple[Calibration, list[str]]:
    """Score normal videos and find the threshold for them.

    Args:
        model: A run folder, anything else that `load_pretrained` takes, or the model itself.
        videos: Video files or folders of videos, without anomalies.
        config: The settings.

    Returns:
        The calibration, and one message for each video that could not be read. It is also printed on stderr.

    Raises:
        UserError: no video could be read; otherwise as `find_threshold`.
    """
    checked(config)
    reading = ("tail", "on_truncated", "fps", "max_pixels", "max_frames")
    shared = ("hop", "context", *reading, "image_weights", "event_weights", "device")
    # The threshold is arbitrary: only the scores are used, and an older calibration must not be read.
    settings = DetectConfig(threshold=1.0, thumbnails=0, **{name: getattr(config, name) for name in shared})
    found = find_videos(videos)
    require_rate(found, config.fps)
    detector = Detector(model, settings)
    scores: list[VideoScores] = []
    paths: list[str] = []
    failed: list[str] = []
    for video in found:
        try:
            detection = detector(video)
        except Exception as error:  # of one video: the others go on
            failed.append(describe_failure(video, error))
            print(f"iefvad calibrate: {failed[-1]}", file=sys.stderr, flush=True)
            continue
        scores.append(detection.scores)
        paths.append(readable(video))
        print(f"{paths[-1]}: {clock(scores[-1].seconds)}, highest score {scores[-1].scores.max():.3f}", flush=True)
        for note in detection.clock.notes() if detection.clock is not None else []:
            print(f"  {readable(note)}", flush=True)
    if not scores:
        raise UserError("no video could be read, so there is nothing to calibrate: " + "; ".join(failed))
    rule = find_threshold(
        scores,
        config.false_alarms_per_hour,
        low_share=config.low_share,
        merge_gap=config.merge_gap,
        min_length=config.min_length,
    )
    counts = [len(rule.intervals(video)) for video in scores]
    hours = sum(video.seconds for video in scores) / 3600
    calibration = Calibration(
        threshold=rule.threshold,
        low=rule.low,
        merge_gap=rule.merge_gap,
        min_length=rule.min_length,
        allowed=config.false_alarms_per_hour,
        measured=sum(counts) / hours,
        upper_bound=poisson_bound(sum(counts)) / hours,
        hours=hours,
        hop=detector.hop,
        context=detector.context,
        model=fingerprint(detector.model),
        videos=[
            {"path": path, "segments": int(video.scores.size), "flagged": count}
            for path, video, count in zip(paths, scores, counts, strict=True)
        ],
    )
    return calibration, failed


def find_threshold(
    videos: Sequence[VideoScores],
    rate: float,
    *,
    low_share: float = 0.8,
    merge_gap: float = 0.0,
    min_length: float = 0.0,
) -> Rule:
    """Find the lowest threshold that keeps to a rate of flagged intervals, as do all higher thresholds.

    Args:
        videos: Scores of normal videos.
        rate: Maximum number of flagged intervals per hour.
        low_share: A flagged interval goes on down to this fraction of the threshold.
        merge_gap: Intervals at most this many seconds apart become one.
        min_length: Intervals shorter than this many seconds are left out.

    Returns:
        The rule with this threshold.

    Raises:
        UserError: a setting is out of range, there is no footage, or every threshold keeps to the rate.
    """
    if not rate >= 0:
        raise UserError(f"--false-alarms-per-hour must be 0 or more, not {rate}.")
    if not 0 < low_share <= 1:
        raise UserError(f"--low-share must be above 0 and at most 1, not {low_share}.")
    hours = sum(video.seconds for video in videos) / 3600
    if not hours > 0:
        raise UserError("there is no footage to calibrate with: give normal videos.")

    def rule(threshold: float) -> Rule:
        return Rule(threshold, low_share * threshold, merge_gap, min_length)

    def allowed(threshold: float) -> bool:
        return sum(len(rule(threshold).intervals(video)) for video in videos) <= rate * hours * (1 + 1e-12)

    # While the threshold falls, runs of flagged segments only grow and merge. Their number rises only where the
    # threshold reaches a new peak, or where a growing run becomes long enough. The first violation is at one of these.
    values = [_peaks(video.scores.astype(np.float64)) for video in videos]
    if min_length > 0:
        values += [video.scores.astype(np.float64) / low_share for video in videos]
    candidates = np.unique(np.concatenate(values))[::-1].tolist()
    violated = next((value for value in candidates if not allowed(value)), None)
    if violated is None:
        raise UserError(
            f"every threshold flags at most {rate:g} intervals per hour of this footage ({clock(hours * 3600)}):"
            " lower --false-alarms-per-hour, or give more normal videos."
        )
    threshold = float(np.nextafter(violated, np.inf))
    while not allowed(threshold):  # rounding of the low threshold may take a few steps
        threshold = float(np.nextafter(threshold, np.inf))
    return rule(threshold)


def poisson_bound(count: int, confidence: float = 0.95) -> float:
    """Compute the upper confidence bound of a Poisson mean: the m at which P(N ≤ count | m) = 1 - confidence.

    Source: Garwood (1936), one-sided. No event gives 3.0, the rule of three.

    Args:
        count: Number of observed events.
        confidence: Probability that the bound exceeds the mean.
    """
    low, high = 0.0, 10.0 + 3.0 * count
    for _ in range(60):
        middle = (low + high) / 2
        # P(N ≤ count | m) is the regularised upper incomplete gamma function Q(count + 1, m).
        above = torch.special.gammaincc(
            torch.tensor(count + 1.0, dtype=torch.float64), torch.tensor(middle, dtype=torch.float64)
        )
        low, high = (middle, high) if float(above) > 1 - confidence else (low, middle)
    return high


def _peaks(scores: np.ndarray) -> np.ndarray:
    """Return the values of (T,) that no neighbour exceeds."""
    padded = np.concatenate([[-np.inf], scores, [-np.inf]])
    return scores[(scores >= padded[:-2]) & (scores >= padded[2:])]
