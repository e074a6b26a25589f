"""Imports features into a packed store, from a feature store, the field's lists, or a pair of folders."""

from __future__ import annotations

from pathlib import Path

from iefvad.data.config import ImportConfig
from iefvad.data.datasets import load_lists, load_store
from iefvad.features.packed import PackedStore
from iefvad.features.packing import folder_pair, pack
from iefvad.features.videos import Benchmark
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable
from iefvad.utils.options import checked


def import_features(store: str | None, config: ImportConfig, *, progress: bool = True) -> PackedStore:
    """Make a packed store from a feature store, the field's lists, or a pair of folders.

    Args:
        store: Folder of a feature store, or None for the sources in the settings.
        config: The settings.
        progress: Show a progress bar.

    Raises:
        UserError: The settings name no source or several, or as in `iefvad.features.packing.pack`.
    """
    if config.out is None:
        raise UserError("--out is missing: name the folder of the packed store.")
    checked(config)
    if config.gt is not None and config.annotations is not None:
        raise UserError("--gt and --annotations both tell the truth of the test videos: give one of them.")
    source = _source(store, config)
    require_writable(Path(config.out))
    return pack(source, config.out, max_segments=config.max_segments, progress=progress)


def _source(store: str | None, config: ImportConfig) -> Benchmark:
    lists = config.train_list is not None or config.test_list is not None
    pair = config.image_dir is not None or config.event_dir is not None
    if pair:
        if store is not None or lists or config.gt is not None or config.annotations is not None:
            raise UserError(
                "--image-dir and --event-dir are for features without lists: leave the store, lists and truth out."
            )
        if config.image_dir is None or config.event_dir is None:
            raise UserError("--image-dir and --event-dir belong together: give both.")
        return folder_pair(config.image_dir, config.event_dir, fps=config.fps, nan=config.nan)
    if store is not None:
        return load_store(
            store,
            train_list=config.train_list,
            test_list=config.test_list,
            annotations=config.annotations,
            gt=config.gt,
            nan=config.nan,
        )
    if config.train_list is None or config.test_list is None:
        raise UserError(
            "there is nothing to import: name a STORE, or --train-list and --test-list with --features, or --image-dir"
            " and --event-dir."
        )
    return load_lists(
        config.train_list,
        config.test_list,
        config.gt or config.annotations,
        features=config.features,
        event_folder=config.event_folder,
        image_folder=config.image_folder,
        fps=config.fps,
        nan=config.nan,
    )
