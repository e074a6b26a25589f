"""Documents as a sweep writes them, with figures that are made up from the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iefvad.scoring.robustness import RATIOS
from iefvad.sweep.trainings import Document, Training

CLASSES = ("Fall", "Fight", "Fire", "Run")


def made_up(
    trainings: Sequence[Training], out: Path, *, classes: Sequence[str] = CLASSES, **_: Any
) -> dict[str, Document]:
    """Return a document for each training: AUC 0.80, plus 0.01 at ν = 8, plus noise of the seed."""
    united: dict[str, Training] = {}
    for training in trainings:
        before = united.get(training.key, training)
        united[training.key] = dataclasses.replace(before, measures=before.measures | training.measures)
    return {key: _document(training, classes) for key, training in united.items()}


def _document(training: Training, classes: Sequence[str]) -> Document:
    settings = training.settings
    random = np.random.default_rng([training.seed, int(training.key[:6], 16)])
    common = np.random.default_rng(training.seed).normal(0, 0.01)
    auc = 0.80 + 0.01 * (settings.nu == 8) + common + random.normal(0, 0.001)
    auc -= {"fusion": 0.0, "image": 0.1, "event": 0.05}[settings.modality] + 0.2 * (settings.model != "ief-vad")
    per_class = {
        name: {"auc": auc - 0.02 * i + random.normal(0, 0.03), "ap": auc - 0.3 - 0.02 * i, "videos": 3 + i}
        for i, name in enumerate(classes)
    }
    damages = [("none", 0.0), *((masked, ratio) for masked in ("image", "event") for ratio in RATIOS)]
    shifts = {
        masked: {str(ratio): (random.normal(0, ratio / 10, 64) + ratio / 50).tolist() for ratio in (0.1, 0.3, 0.5)}
        for masked in ("image", "event")
    }
    return {
        "key": training.key,
        "seed": training.seed,
        "data": {"name": "made up"},
        "metrics": {"auc": auc, "ap": auc - 0.3, "ano_auc": auc - 0.1, "brier": 0.1, "per_class": per_class},
        "robustness": [_damaged(auc, *damage) for damage in damages] if "robustness" in training.measures else None,
        "shifts": shifts if "shifts" in training.measures else None,
    }


def _damaged(auc: float, masked: str, ratio: float) -> dict[str, Any]:
    areas = {"auc": auc - ratio / 5, "ap": auc - 0.3 - ratio / 5, "ano_auc": auc - 0.1, "brier": 0.1, "kl": ratio / 10}
    moved = ratio / 100 if masked == "image" else 0.0
    weights = {"w_img": 0.47 + moved, "w_evt": 0.53 - moved}
    parts = {f"{name}{part}": value for name, value in weights.items() for part in ("", "_abnormal", "_normal")}
    shift = {} if masked == "none" else {"shift": moved if masked == "image" else 0.0}
    how = {"damage": "features", "mask": "mean", "draws": 5}
    return {"masked": masked, "ratio": ratio} | areas | parts | how | shift
