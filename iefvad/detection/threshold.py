"""What is flagged, and where that rule comes from: a flag, a calibration on normal footage, or the model's own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iefvad.checkpoint import CALIBRATION
from iefvad.detection.config import DetectConfig
from iefvad.errors import UserError
from iefvad.files import write_json
from iefvad.model import IEFVAD
from iefvad.video_scores import VideoScores, intervals_above


@dataclass(frozen=True)
class Rule:
    """How scores become flagged intervals: `threshold` and `low` are scores, `merge_gap` and `min_length` seconds.

    `origin` says, for people, where the threshold comes from.
    """

    threshold: float
    low: float
    merge_gap: float = 0.0
    min_length: float = 0.0
    origin: str = ""

    def intervals(self, scores: VideoScores) -> list[tuple[float, float, float]]:
        """Flagged (start s, end s, peak score) of a video, in order of time."""
        return intervals_above(
            scores.scores,
            scores.fps,
            self.threshold,
            low=self.low,
            merge_gap_s=self.merge_gap,
            min_length_s=self.min_length,
        )


@dataclass(frozen=True)
class Calibration:
    """A threshold measured on normal footage, as calibration.json holds it; rates are flagged intervals an hour.

    `upper_bound` is the 95% confidence bound of the rate. `model` is the fingerprint of the weights that were measured,
    `hop` and `context` how they were run. `videos` has a row a video: its path, segments and flagged intervals.
    """

    threshold: float
    low: float
    merge_gap: float
    min_length: float
    allowed: float
    measured: float
    upper_bound: float
    hours: float
    hop: int
    context: int
    model: str
    videos: list[dict[str, Any]]

    def write(self, path: Path) -> None:
        """Write calibration.json."""
        write_json(path, {"format": 1, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read calibration.json. Raises UserError where it is missing or something else."""
        try:
            values = json.loads(path.read_text())
            fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
            numbers = [float(value) for name, value in fields.items() if name not in ("model", "videos")]
        except FileNotFoundError:
            raise UserError(f"there is no calibration {path}: write one with `iefvad calibrate`.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no calibration ({error!r}): write it anew with `iefvad calibrate`.") from None
        if not all(value == value for value in numbers):
            raise UserError(f"{path} holds a number that is none: write it anew with `iefvad calibrate`.")
        return cls(**fields)


def choose_rule(
    config: DetectConfig,
    *,
    folder: Path | None,
    model: IEFVAD,
    provenance: Mapping[str, Any],
    hop: int,
    context: int,
) -> Rule:
    """Find the rule: --threshold wins, then the calibration (of `folder` where none is named), then the model's own.

    Raises UserError for a calibration of other weights or one that cannot be read, and for low > threshold.
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
            f"{path}: at most {found.allowed:g} false alarms an hour allowed, {found.measured:.3g} measured"
            f" on {found.hours:.3g} h of normal footage"
        )
        changed = [
            f"--{name.replace('_', '-')}" for name, value in base.items() if getattr(config, name) not in (None, value)
        ]
        if (hop, context) != (found.hop, found.context):
            changed.append(f"hop {hop} and context {context} instead of {found.hop} and {found.context}")
        if changed:
            origin += f"; that rate does not hold for {', '.join(changed)}"
    elif provenance.get("threshold") is not None:
        threshold = float(provenance["threshold"])
        origin = "the model's own: 1% of its held-out normal segments exceed it"
    else:
        threshold, origin = 0.5, "nothing is known of this model's scores: calibrate it with `iefvad calibrate`"
    base = {"low": threshold, "merge_gap": 0.0, "min_length": 0.0} | base
    given = {name: getattr(config, name) for name in base if getattr(config, name) is not None}
    rule = Rule(threshold=threshold, origin=origin, **(base | given))
    if not rule.low <= rule.threshold:
        raise UserError(f"--low {rule.low} exceeds the threshold {rule.threshold:.4g}: give a lower one.")
    return rule


def copy_calibration(model: IEFVAD, folder: Path) -> None:
    """Put the calibration that lies beside a model's own weights into a folder that gets them too.

    Of the footage it keeps the names alone. Weights that have changed since they were calibrated go without.
    """
    source = model.folder / CALIBRATION if model.folder else None
    if source is None or not source.is_file() or folder.resolve() == source.parent.resolve():
        return
    calibration = Calibration.read(source)
    if calibration.model == fingerprint(model):
        videos = [row | {"path": re.split(r"[\\/]", row["path"])[-1]} for row in calibration.videos]
        dataclasses.replace(calibration, videos=videos).write(folder / CALIBRATION)


@torch.no_grad()
def fingerprint(model: IEFVAD) -> str:
    """Twelve hexadecimal digits that tell one set of weights and settings from another."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(model.config), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]
