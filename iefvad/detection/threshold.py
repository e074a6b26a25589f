"""Which segments are flagged, and where this rule comes from: an option, a calibration, or the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iefvad.checkpoints.calibration import CALIBRATION, Calibration, fingerprint
from iefvad.detection.alarm import AlarmTracker
from iefvad.detection.config import DetectConfig
from iefvad.model.networks import AnyNetwork
from iefvad.scoring.video_scores import Interval, VideoScores, intervals_above
from iefvad.utils.errors import UserError


@dataclass(frozen=True)
class Rule:
    """How scores become flagged intervals.

    Attributes:
        threshold: Score that an interval must reach.
        low: Score at which an interval goes on.
        merge_gap: Intervals at most this many seconds apart become one.
        min_length: Intervals shorter than this many seconds are left out.
        origin: Where the threshold comes from, in words.
    """

    threshold: float
    low: float
    merge_gap: float = 0.0
    min_length: float = 0.0
    origin: str = ""

    def intervals(self, scores: VideoScores) -> list[Interval]:
        """Find the flagged intervals of a video, in order of time."""
        return intervals_above(
            scores.scores,
            scores.fps,
            self.threshold,
            low=self.low,
            merge_gap_s=self.merge_gap,
            min_length_s=self.min_length,
            starts=scores.starts,
            ends=scores.ends,
        )

    def tracker(self, fps: float) -> AlarmTracker:
        """Make a tracker that finds the same intervals while the scores come, at this frame rate."""
        return AlarmTracker(fps, self.threshold, low=self.low, merge_gap_s=self.merge_gap, min_length_s=self.min_length)


def choose_rule(
    config: DetectConfig,
    *,
    folder: Path | None,
    model: AnyNetwork,
    provenance: Mapping[str, Any],
    hop: int,
    context: int,
) -> Rule:
    """Choose the rule: first --threshold, then a calibration, then the model's own threshold, then 0.5.

    Args:
        config: The settings. Each of their values replaces that of the calibration.
        folder: Folder of the model, where the calibration is looked for unless the settings name one.
        model: The network, to check that the calibration is its own.
        provenance: What is known of the network's training.
        hop: Number of segments scored at a time.
        context: Number of earlier segments that the attention also sees.

    Raises:
        UserError: the calibration cannot be read or is of other weights, or `low` exceeds the threshold.
    """
    path = Path(config.calibration) if config.calibration else folder / CALIBRATION if folder else None
    base: dict[str, float] = {}
    if config.threshold is not None:
        threshold, origin = config.threshold, "--threshold"
    elif path is not None and (config.calibration or path.exists()):
        found = Calibration.read(path)
        if found.model != fingerprint(model):
            raise UserError(
                f"{path} was measured with other weights than this model's: run `iefvad calibrate` again, or give"
                " --threshold."
            )
        threshold = found.threshold
        base = {"low": found.low, "merge_gap": found.merge_gap, "min_length": found.min_length}
        origin = (
            f"{path}: at most {found.allowed:g} false alarms per hour allowed, {found.measured:.3g} measured"
            f" on {found.hours:.3g} h of normal footage"
        )
        changed = [
            f"--{name.replace('_', '-')}" for name, value in base.items() if getattr(config, name) not in (None, value)
        ]
        if (hop, context) != (found.hop, found.context):
            changed.append(f"hop {hop} and context {context} instead of {found.hop} and {found.context}")
        if changed:
            origin += f"; this rate does not hold for {', '.join(changed)}"
    elif provenance.get("threshold") is not None:
        threshold = float(provenance["threshold"])
        origin = "the model's own: 1% of its held-out normal segments exceed it"
        if record := provenance.get("normal_only"):
            origin = (
                "the model's own: normal footage is expected to reach it once per hour, by"
                f" {float(record.get('hours', 0)):.2g} h of held-out normal footage"
            )
    else:
        threshold, origin = 0.5, "nothing is known about this model's scores: calibrate it with `iefvad calibrate`"
    base = {"low": threshold, "merge_gap": 0.0, "min_length": 0.0} | base
    given = {name: getattr(config, name) for name in base if getattr(config, name) is not None}
    rule = Rule(threshold=threshold, origin=origin, **(base | given))
    if not rule.low <= rule.threshold:
        raise UserError(f"--low {rule.low} exceeds the threshold {rule.threshold:.4g}: give a lower --low.")
    return rule
