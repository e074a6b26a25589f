"""Train one network of a sweep and measure it: what each process of a sweep does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

from iefvad.features.videos import Benchmark
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.robustness import robustness
from iefvad.scoring.weight_shifts import weight_shifts
from iefvad.sweep.data import Prepared, data_key
from iefvad.sweep.documents import text_of
from iefvad.sweep.trainings import Document, Training, effective
from iefvad.training.fitting import TrainingData, fit_and_score
from iefvad.training.run import Run
from iefvad.training.settings import Settings
from iefvad.training.trainer import DivergedError

_LOADED: dict[str, tuple[Benchmark, Benchmark]] = {}
"""The data that this process has loaded."""


def make_document(training: Training, prepared: Prepared, out: Path, device: str) -> str:
    """Train and measure one network. An interrupted training goes on after its last finished epoch.

    Args:
        training: The training.
        prepared: Its data.
        out: Folder of the sweep. The state of the training is in `work/KEY` until its document is written.
        device: Where to compute.

    Returns:
        The text of the document.

    Raises:
        UserError: data or settings are wrong. A training that diverges is not an error: its document says so.
    """
    folder = out / "work" / training.key
    settings = dataclasses.replace(training.settings, device=device, out=str(folder), resume=True)
    begun: Document = {"key": training.key, "settings": effective(training.settings), "seed": training.seed}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            document = begun | _measure(training, settings, prepared)
        except DivergedError as error:
            document = begun | {"failed": str(error)}
    return text_of(document)


def _measure(training: Training, settings: Settings, prepared: Prepared) -> dict[str, Any]:
    benchmark, table = _loaded(prepared, f"{prepared.table} {data_key(training.settings)}")
    data = TrainingData.of(benchmark, settings, table=table.train)
    run = Run(settings.run_dir, settings)
    fitted, scores = fit_and_score(run, run.variants[0], training.seed, data, progress=False)
    model = fitted.model
    how: dict[str, Any] = {"crops": settings.test_crops, "chunk": settings.max_segments}
    two = settings.modality == "fusion"
    rows = shifts = damage = None
    if "robustness" in training.measures and two:
        damage = settings.robustness
        rows = robustness(model, data.test, damage=damage, progress=False, **how)
    if "shifts" in training.measures and two:
        shifts = weight_shifts(model, data.test, **how)
    return {
        "data": {
            "name": prepared.name,
            "dim": prepared.dim,
            "train_videos": len(data.whole.videos),
            "held_out_videos": len(data.held_out),
            "test_videos": len(data.test),
        },
        "epoch": fitted.epoch,
        "metrics": evaluate(scores),
        "learned": model.learned(),
        "measures": sorted(training.measures),
        "damage": damage,
        "robustness": rows,
        "shifts": shifts,
    }


def _loaded(prepared: Prepared, key: str) -> tuple[Benchmark, Benchmark]:
    """Load data once for many trainings. The last two are kept."""
    if key not in _LOADED:
        while len(_LOADED) > 1:
            del _LOADED[next(iter(_LOADED))]
        _LOADED[key] = prepared.load()
    return _LOADED[key]
