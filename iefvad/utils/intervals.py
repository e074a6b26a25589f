"""Runs of true values in a sequence."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def runs(mask: npt.ArrayLike) -> list[tuple[int, int]]:
    """Find the maximal runs of true (non-zero) values.

    Args:
        mask: Values of any dtype, (n,).

    Returns:
        Half-open intervals [start, end) of positions, in order.
    """
    padded = np.concatenate([[False], np.asarray(mask, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).tolist()
    return list(zip(edges[0::2], edges[1::2], strict=True))
