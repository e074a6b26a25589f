"""Where a run's data come from: the embedded benchmark, a feature store, or the field's lists of .npy files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from iefvad.config import TrainConfig
from iefvad.data import synth
from iefvad.data.datasets import Benchmark, load_lists, load_store
from iefvad.errors import UserError
from iefvad.extract import ExtractConfig, extract

ENCODER_NOTE = (
    "Features come from a fixed descriptor (statistics of colour, edges and event density), not from a pretrained"
    " encoder: no weights are needed, and the figures say nothing about CLIP features."
)
LISTS = ("train.csv", "test.csv", "annotations.txt")


def load_benchmark(config: TrainConfig, *, progress: bool = True) -> Benchmark:
    """The data that a resolved configuration names, checked. Raises UserError for what is missing or wrong in them."""
    if config.features is None and config.train_list is None:
        benchmark = load_store(embedded_store(config.cache, seed=config.synth_seed, progress=progress), nan=config.nan)
        benchmark.name = "synth (embedded benchmark)"
        benchmark.notes.append(ENCODER_NOTE)
        return benchmark
    if config.features is not None and (Path(config.features) / "store.json").exists():
        return load_store(
            config.features,
            train_list=config.train_list,
            test_list=config.test_list,
            annotations=config.annotations,
            gt=config.gt,
            nan=config.nan,
        )
    missing = [f"--{name.replace('_', '-')}" for name in ("train_list", "test_list", "gt") if not getattr(config, name)]
    if missing:
        raise UserError(
            f"{config.features or 'the data'}: no feature store (store.json) is there, and to train from .npy files"
            f" {', '.join(missing)} must be given as well."
        )
    assert config.train_list and config.test_list and config.gt
    return load_lists(
        config.train_list,
        config.test_list,
        config.gt,
        features=config.features,
        event_folder=config.event_folder,
        nan=config.nan,
    )


def cache_folder(cache: str | None) -> Path:
    """`cache`, else $IEFVAD_CACHE, else the user's cache folder."""
    if cache:
        return Path(cache)
    if named := os.environ.get("IEFVAD_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iefvad"


def embedded_store(cache: str | None = None, *, seed: int = 0, progress: bool = True) -> Path:
    """Render the embedded benchmark and extract its features, or find both in the cache. Returns the store's folder."""
    folder = cache_folder(cache) / f"synth-{synth.settings_of(seed)['hash']}"
    synth.generate(folder / "dataset", seed=seed, workers=os.cpu_count() or 1, progress=progress)
    store = folder / "features"
    report = extract([folder / "dataset" / "videos"], store, ExtractConfig(crops=1, quiet=not progress))
    if report.failed:
        name, reason = next(iter(report.failed.items()))
        raise UserError(
            f"the embedded benchmark could not be read back ({name}: {reason}): delete {folder} and try again."
        )
    for name in LISTS:
        shutil.copyfile(folder / "dataset" / name, store / name)
    return store
