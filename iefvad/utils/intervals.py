"""Runs of true values in a sequence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def runs(mask: npt.ArrayLike) -> list[tuple[int, int]]:
    """Return the maximal runs of true (non-zero) values of (n,) as half-open intervals [start, end), in order."""
    padded = np.concatenate([[False], np.asarray(mask, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
    return list(zip(edges[0::2], edges[1::2], strict=True))
