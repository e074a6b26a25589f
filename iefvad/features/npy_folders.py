"""Between feature stores and folders in the field's layout: NAME__0.npy ... NAME__9.npy per modality."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from iefvad.features.config import ExportConfig
from iefvad.features.npy import load_npy, npy_shape, split_crop
from iefvad.features.packed import is_packed
from iefvad.features.store import FeatureStore, Sidecar, hash_file
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, replacing_durably, require_writable, storage_errors
from iefvad.utils.text import few
from iefvad.video import SEGMENT


def export_features(store: str, config: ExportConfig) -> int:
    """Write a feature store in the field's layout, as the settings say.

    Returns:
        The number of files written per modality.

    Raises:
        UserError: The settings are incomplete, the store cannot be exported, or the disk is full.
    """
    if config.out is None:
        raise UserError("--out is missing: name the folder to write to.")
    if is_packed(store):
        raise UserError(f"{store} is a packed store, whose training clips are averaged: export the store it came from.")
    folders = [Path(config.out) / name for name in (config.image_folder, config.event_folder)]
    if folders[0] == folders[1]:
        raise UserError("--image-folder and --event-folder must differ.")
    for folder in folders:
        require_writable(folder)
    return export_npy(FeatureStore(store), folders[0], folders[1], dtype=config.dtype)


def export_npy(
    store: FeatureStore,
    image_dir: PathLike,
    event_dir: PathLike,
    *,
    dtype: str = "float32",
) -> int:
    """Write every stored video in the field's layout, ``NAME__{crop}.npy`` of (T, D) in each folder.

    Args:
        store: The store.
        image_dir: Folder for the image features. Sub-folders in names are kept.
        event_dir: Folder for the event features.
        dtype: "float32", which every published loader reads, or "float16", the stored values unchanged.

    Returns:
        The number of files written to each folder.

    Raises:
        UserError: The disk is full or a folder cannot be written.
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


def import_npy(
    image_dir: PathLike,
    event_dir: PathLike,
    store_root: PathLike,
    *,
    settings: dict[str, Any] | None = None,
    fps: float = 30.0,
) -> FeatureStore:
    """Make a feature store from the field's layout, ``NAME__{crop}.npy`` of (T, D) per video and crop.

    Videos that the store already has are skipped, so an interrupted import continues.

    Args:
        image_dir: Folder of the image features, with sub-folders.
        event_dir: Folder of the event features. Each file has the same relative path as its image file.
        store_root: Folder of the store.
        settings: What is known of the encoders. ``dim`` is read from the files.
        fps: Frames per second of the videos. It is only used to print times.

    Raises:
        UserError: A file is missing, damaged, pickled, not finite or beyond float16, or an image file and its event
            file have different shapes. The message names the file.
    """
    image_root, event_root = Path(image_dir), Path(event_dir)
    videos: dict[str, list[int]] = {}
    for path in sorted(image_root.rglob("*.npy")):
        name, crop = split_crop(path.relative_to(image_root).as_posix())
        if crop is not None:
            videos.setdefault(name, []).append(crop)
    if not videos:
        raise UserError(f"{image_root} contains no NAME__0.npy .. NAME__9.npy feature files; check the folder")
    absent = [f"{name}__{crop}.npy" for name in videos for crop in videos[name]]
    absent = [name for name in absent if not (event_root / name).is_file()]
    if absent:
        raise UserError(f"{len(absent)} event files are missing in {event_root}: {few(absent)}; check the folder")
    first = next(iter(videos))
    dim = npy_shape(image_root / f"{first}__{videos[first][0]}.npy")[1]
    store = FeatureStore(store_root, settings={"source": "npy", "dim": dim, **(settings or {})}, create=True)
    for name, crops in videos.items():
        paths = [[root / f"{name}__{crop}.npy" for crop in crops] for root in (image_root, event_root)]
        digest = hashlib.sha256("".join(hash_file(path) for path in paths[0] + paths[1]).encode()).hexdigest()
        if store.is_current(name, digest):
            continue
        shape = npy_shape(paths[0][0])
        for path in paths[0] + paths[1]:
            if npy_shape(path) != shape or shape[1] != dim:
                raise UserError(
                    f"{path} is {npy_shape(path)}, {paths[0][0]} is {shape}, the store is {dim} wide; "
                    "crops and modalities of a video must agree: extract this video again or leave it out"
                )
        image, event = (np.stack([load_npy(path) for path in group]) for group in paths)
        sidecar = Sidecar(name, str(image_root), digest, fps, SEGMENT * shape[0], shape[0], crops=crops)
        store.write(name, image, event, sidecar)
    store.write_index()
    return store
