"""How videos look: the mean image features of each, from a feature store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iefvad.data.lists import ListEntry, StoredNames
from iefvad.features.store import FeatureStore
from iefvad.utils.files import PathLike


def mean_image_features(folder: PathLike, entries: Sequence[ListEntry]) -> tuple[list[int], np.ndarray]:
    """Return the mean image features of the videos that are in a store, from the first crop.

    Args:
        folder: The feature store.
        entries: The videos.

    Returns:
        Positions in `entries` of the N videos that are in the store, and their features, (N, D) float32.

    Raises:
        UserError: The folder is not a store, or features cannot be read.
    """
    store = FeatureStore(folder)
    stored = StoredNames(store.names())
    positions, means = [], []
    for position, entry in enumerate(entries):
        if (name := stored.find(entry)) is not None:
            image, _ = store.read_crop(name, store.sidecar(name).crops[0])
            positions.append(position)
            means.append(np.nan_to_num(image.astype(np.float32)).mean(axis=0))
    return positions, np.stack(means) if means else np.zeros((0, 0), np.float32)
