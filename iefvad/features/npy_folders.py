"""Write a feature store in the field's layout: NAME__0.npy ... NAME__9.npy per modality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from iefvad.features.packed import is_packed
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, replacing_durably, storage_errors
from iefvad.utils.options import option


@dataclass
class ExportConfig:
    """Settings of `iefvad features export`."""

    out: str | None = option(None, "folder to write to [required]")
    image_folder: str = option("rgb", "folder of the image features in it")
    event_folder: str = option("event", "folder of the event features in it")
    dtype: Literal["float32", "float16"] = option("float32", "number type of the files; stores hold float16")


def export_features(store: str, config: ExportConfig) -> int:
    """Write a feature store as NAME__c.npy below --out and return the number of clips. Raises UserError."""
    if config.out is None:
        raise UserError("--out is missing: name the folder to write to.")
    if is_packed(store):
        raise UserError(f"{store} is a packed store, whose training clips are averaged: export the store it came from.")
    folders = [Path(config.out) / name for name in (config.image_folder, config.event_folder)]
    if folders[0] == folders[1]:
        raise UserError("--image-folder and --event-folder must differ.")
    return export_npy(FeatureStore(store), folders[0], folders[1], dtype=config.dtype)


def export_npy(
    store: FeatureStore,
    image_dir: PathLike,
    event_dir: PathLike,
    *,
    dtype: str = "float32",
) -> int:
    """Write every stored video in the field's layout, ``NAME__{crop}.npy`` of (T, D) in each folder.

    Sub-folders in names are kept. Returns the number of files written to each folder. float32 by default, which every
    published loader reads; "float16" is the stored value unchanged.
    """
    written = 0
    for name in store.names():
        image, event, sidecar = store.read(name)
        for row, crop in enumerate(sidecar.crops):
            for folder, features in ((Path(image_dir), image), (Path(event_dir), event)):
                path = folder / f"{name}__{crop}.npy"
                with storage_errors(folder, f"storing {name}"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with replacing_durably(path) as file:
                        np.save(file, features[row].astype(dtype), allow_pickle=False)
            written += 1
    return written
