"""AUC over source-disjoint folds, and a paired test of two ways to score the same clips.

A few source videos gave many clips, and clips of one source look alike. So the source, not the clip, is the unit that
the test resamples. Folds are few and share their training clips, so a t-test over folds alone would say little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """The test clips of one fold.

    Attributes:
        labels: (N,), 1 for a fight.
        sources: (N,), number of the source video of each clip.
    """

    labels: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Paired:
    """The difference of two ways, first minus second.

    Attributes:
        difference: Mean over folds and seeds of the difference of the AUCs.
        low: Lower end of the 95% interval, from resampled sources.
        high: Its upper end.
        p: Two-sided p value: twice the smaller fraction of resamples on one side of 0.
        wins: Number of pairs (fold, seed) in which the first way has the higher AUC.
        pairs: Number of these pairs.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    pairs: int


def wins_matrix(scores: Array, labels: npt.NDArray[np.int64]) -> Array:
    """Return for each pair of an abnormal and a normal clip whether the abnormal one is higher; 1/2 for a tie."""
    abnormal, normal = scores[labels == 1], scores[labels == 0]
    higher = abnormal[:, None] > normal[None, :]
    equal = abnormal[:, None] == normal[None, :]
    return higher + 0.5 * equal


def auc(scores: Array, labels: npt.NDArray[np.int64]) -> float:
    """Return the area under the ROC curve of clip scores."""
    return float(wins_matrix(scores, labels).mean())


def compare(
    folds: Mapping[int, Fold],
    first: Mapping[tuple[int, int], Array],
    second: Mapping[tuple[int, int], Array],
    *,
    resamples: int = 4000,
) -> Paired:
    """Compare two ways to score the clips.

    Args:
        folds: Test clips by fold.
        first: Scores (N,) by (fold, seed). A way without seeds has the seed −1 alone.
        second: Likewise. A way without seeds is paired with every seed of the other.
        resamples: Number of resamples of the sources.
    """
    seeds = {seed for ways in (first, second) for _, seed in ways}
    paired = sorted(seed for seed in seeds if seed >= 0) or [-1]

    def scores(ways: Mapping[tuple[int, int], Array], fold: int, seed: int) -> Array:
        return ways[fold, seed] if (fold, seed) in ways else ways[fold, -1]

    random = np.random.default_rng(0)
    differences: list[float] = []
    resampled = np.zeros(resamples)
    for number, fold in folds.items():
        matrices = []
        for seed in paired:
            one, other = (wins_matrix(scores(ways, number, seed), fold.labels) for ways in (first, second))
            matrices.append(one - other)
            differences.append(float((one - other).mean()))
        resampled += _resampled(np.mean(matrices, 0), fold, random, resamples) / len(folds)
    below = float(np.mean(resampled <= 0))
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Paired(
        difference=float(np.mean(differences)),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * min(below, float(np.mean(resampled >= 0)))),
        wins=sum(value > 0 for value in differences),
        pairs=len(differences),
    )


def _resampled(matrix: Array, fold: Fold, random: np.random.Generator, resamples: int) -> Array:
    """Return means of a matrix (abnormal, normal) over resampled sources of the clips; 0 without both kinds."""
    unique, index = np.unique(fold.sources, return_inverse=True)
    drawn = random.multinomial(len(unique), np.full(len(unique), 1 / len(unique)), size=resamples)
    weights = drawn[:, index].astype(np.float64)
    abnormal, normal = weights[:, fold.labels == 1], weights[:, fold.labels == 0]
    total = abnormal.sum(1) * normal.sum(1)
    sums = np.einsum("rp,pn,rn->r", abnormal, matrix, normal, optimize=True)
    return np.where(total > 0, sums / np.maximum(total, 1), 0.0)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n − 1) of values; a deviation of 0 for a single one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
