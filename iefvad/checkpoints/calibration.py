"""A threshold measured on normal footage: the file calibration.json, and the weights that it belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iefvad.model.config import saved_values
from iefvad.model.networks import AnyNetwork
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_json
from iefvad.utils.plain_json import read_object
from iefvad.utils.text import few
from iefvad.utils.values import COUNT, NATURAL, NOT_NEGATIVE, limited, problems

CALIBRATION = "calibration.json"
"""Name of the file, in the folder of a run or of a saved model."""


@dataclass(frozen=True)
class Calibration:
    """A threshold measured on normal footage, as calibration.json contains it.

    Attributes:
        threshold: Score from which an interval is flagged.
        low: Score down to which a flagged interval goes on.
        merge_gap: Flagged intervals closer than this number of seconds become one.
        min_length: Flagged intervals shorter than this number of seconds are left out.
        allowed: Maximum false alarms per hour that were asked for.
        measured: False alarms per hour on the footage.
        upper_bound: Upper 95% confidence bound of that rate.
        hours: Length of the footage.
        hop: Segments that were scored at a time.
        context: Segments before these that the attention also saw.
        model: Fingerprint of the weights that were measured (`fingerprint`).
        videos: One row per video: path, segments and flagged intervals.
    """

    threshold: float
    low: float
    merge_gap: float = field(metadata=limited(NOT_NEGATIVE))
    min_length: float = field(metadata=limited(NOT_NEGATIVE))
    allowed: float = field(metadata=limited(NOT_NEGATIVE))
    measured: float = field(metadata=limited(NOT_NEGATIVE))
    upper_bound: float = field(metadata=limited(NOT_NEGATIVE))
    hours: float = field(metadata=limited(NOT_NEGATIVE))
    hop: int = field(metadata=limited(COUNT))
    context: int = field(metadata=limited(NATURAL))
    model: str
    videos: list[dict[str, Any]]

    def write(self, path: Path) -> None:
        """Write calibration.json. Raises UserError where the folder cannot be written."""
        write_json(path, {"format": 1, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read calibration.json. Raises UserError if it is missing or not a calibration."""
        remedy = "write it anew with `iefvad calibrate`"
        try:
            values = read_object(path, remedy)
        except FileNotFoundError:
            raise UserError(f"there is no calibration {path}: write one with `iefvad calibrate`.") from None
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise UserError(f"{path} is not a calibration: {few(missing)} is missing; {remedy}.")
        for name, problem in problems(values, cls):
            raise UserError(f"{path} is damaged: {name} {problem}; {remedy}.")
        found = cls(**{name: values[name] for name in names})
        if not found.low <= found.threshold:
            raise UserError(f"{path} is damaged: low {found.low} exceeds the threshold {found.threshold}; {remedy}.")
        if not all(isinstance(row, dict) and isinstance(row.get("path"), str) for row in found.videos):
            raise UserError(f"{path} is damaged: a row of its videos has no path; {remedy}.")
        return found


def copy_calibration(network: AnyNetwork, source: Path, folder: Path) -> None:
    """Copy the calibration of a network's weights into a folder that receives these weights.

    Of the footage it keeps the names and drops the paths. Weights that have changed since they were calibrated get no
    calibration.

    Args:
        network: The network that is saved.
        source: The folder that it was loaded from.
        folder: The folder that it is saved to.
    """
    path = source / CALIBRATION
    if not path.is_file() or folder.resolve() == source.resolve():
        return
    calibration = Calibration.read(path)
    if calibration.model == fingerprint(network):
        videos = [row | {"path": re.split(r"[\\/]", row["path"])[-1]} for row in calibration.videos]
        dataclasses.replace(calibration, videos=videos).write(folder / CALIBRATION)


@torch.no_grad()
def fingerprint(network: AnyNetwork) -> str:
    """Return twelve hexadecimal digits that tell one set of weights and settings from another."""
    digest = hashlib.sha256(json.dumps(saved_values(network.config), sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:12]
