"""The embedded benchmark: rendered and extracted, or found in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from iefvad.data.synth.dataset import generate, settings_of
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract
from iefvad.utils.cache import cache_folder
from iefvad.utils.errors import UserError
from iefvad.utils.threads import threads

LISTS = ("train.csv", "test.csv", "annotations.txt")


def embedded_store(cache: str | None = None, *, seed: int = 0, progress: bool = True) -> Path:
    """Render the embedded benchmark and extract its features, or find both in the cache.

    Args:
        cache: Cache folder, as for `iefvad.utils.cache.cache_folder`.
        seed: Seed of the benchmark.
        progress: Show progress bars.

    Returns:
        Folder of the feature store, which also has the lists and annotations.

    Raises:
        UserError: The cache cannot be written, or a rendered video cannot be read.
    """
    folder = cache_folder(cache) / f"synth-{settings_of(seed)['hash']}"
    generate(folder / "dataset", seed=seed, workers=threads(), progress=progress)
    store = folder / "features"
    report = extract([folder / "dataset" / "videos"], store, ExtractConfig(crops=1, carry=False, quiet=not progress))
    if report.failed:
        name, reason = next(iter(report.failed.items()))
        raise UserError(f"the embedded benchmark cannot be read ({name}: {reason}): delete {folder} and try again.")
    for name in LISTS:
        shutil.copyfile(folder / "dataset" / name, store / name)
    return store
