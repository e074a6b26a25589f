"""Where a run's data come from: the embedded benchmark, a feature store, a packed one, or the field's .npy files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from iefvad.config import TrainConfig
from iefvad.data import synth
from iefvad.data.datasets import Benchmark, load_lists, load_store
from iefvad.errors import UserError
from iefvad.extract import ExtractConfig, extract
from iefvad.packed import is_packed, load_packed

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
    if config.features is not None and is_packed(config.features):
        if config.train_list is not None or config.test_list is not None:
            raise UserError(
                f"{config.features} is a packed store, which has its own lists: leave --train-list and --test-list out,"
                " or import again with other lists."
            )
        return load_packed(config.features, annotations=config.annotations, gt=config.gt)
    if config.features is not None and (Path(config.features) / "store.json").exists():
        return load_store(
            config.features,
            train_list=config.train_list,
            test_list=config.test_list,
            annotations=config.annotations,
            gt=config.gt,
            nan=config.nan,
        )
    truth = config.gt or config.annotations
    given = {"--train-list": config.train_list, "--test-list": config.test_list, "--gt": truth}
    missing = [flag for flag, value in given.items() if not value]
    if missing:
        raise UserError(
            f"{config.features or 'the data'}: no feature store (store.json, packed.json) is there, and to train from"
            f" .npy files {', '.join(missing)} must be given as well."
        )
    assert config.train_list and config.test_list
    return load_lists(
        config.train_list,
        config.test_list,
        truth,
        features=config.features,
        event_folder=config.event_folder,
        image_folder=config.image_folder,
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
