"""Divides videos into parts that share no source, with the classes in each part as even as the sources allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iefvad.data.lists import classes_of
from iefvad.utils.errors import UserError
from iefvad.utils.text import few

_STARTS = 8  # orders of the sources that are tried
_ROUNDS = 20  # rounds of moving single sources
_LACKING = 100.0  # cost of a part without normal or without abnormal videos


def divide(
    sources: Sequence[str],
    labels: Sequence[str],
    fractions: Sequence[float],
    *,
    seed: int = 0,
    fixed: Mapping[str, int] | None = None,
) -> list[int]:
    """Divide videos into parts. All videos of a source are in one part.

    The result depends on the set of videos and on the seed, and not on the order of the videos.

    Args:
        sources: Source of each video.
        labels: Label of each video.
        fractions: Fraction of the videos that each part shall have, with the sum 1.
        seed: Seed of the order in which sources are placed.
        fixed: Source → its part, for sources that are divided already.

    Returns:
        The part of each video, from 0.

    Raises:
        UserError: Fewer sources than parts, or so few with normal or abnormal videos that a part would lack them.
    """
    fixed = fixed or {}
    names = sorted(set(sources))
    index = {name: number for number, name in enumerate(names)}
    normal = [not classes_of(label) for label in labels]
    _require_enough(sources, normal, len(fractions))
    kinds = sorted({"+".join(classes_of(label)) for label in labels})
    # Columns: each class, abnormal or not, and the number of videos. The last two count more than a single class.
    counts = np.zeros((len(names), len(kinds) + 3))
    for source, label, is_normal in zip(sources, labels, normal, strict=True):
        counts[index[source], kinds.index("+".join(classes_of(label)))] += 1
        counts[index[source], len(kinds) + (1 if is_normal else 0)] += 1
        counts[index[source], -1] += 1
    places = {index[name]: part for name, part in fixed.items() if name in index}
    weights = np.array([1 / len(kinds)] * len(kinds) + [1.0, 1.0, 2.0])
    target = np.asarray(fractions, np.float64)[:, None]
    portions = counts / np.maximum(counts.sum(axis=0), 1)
    random = np.random.default_rng(seed)
    best: tuple[float, np.ndarray] | None = None
    for _ in range(_STARTS):
        found = _placed(portions, target, weights, places, random)
        cost = _cost(_sums(portions, found, len(fractions)), target, weights)
        if best is None or cost < best[0] - 1e-12:
            best = cost, found
    assert best is not None
    parts = best[1]
    sums = _sums(portions, parts, len(fractions))
    if (sums[:, len(kinds) : len(kinds) + 2] <= 0).any():
        raise UserError(
            "no division gives every part normal and abnormal videos, because too few sources have one kind:"
            f" {_remedy(sources)}"
        )
    return [int(parts[index[source]]) for source in sources]


def _require_enough(sources: Sequence[str], normal: Sequence[bool], parts: int) -> None:
    for kind, wanted in (("normal", True), ("abnormal", False)):
        found = sorted({source for source, is_normal in zip(sources, normal, strict=True) if is_normal == wanted})
        if not found:
            raise UserError(f"the list has no {kind} videos: training and testing need both kinds; label some")
        if len(found) < parts:
            which = f"all {kind} videos come from {'one source' if len(found) == 1 else f'{len(found)} sources'}"
            raise UserError(
                f"{which} ({few(found)}), and {parts} parts that share no source need at least {parts}:"
                f" {_remedy(sources)}"
            )


def _remedy(sources: Sequence[str]) -> str:
    return (
        "record more places or days, or say what a source is with --source-pattern"
        f" (--source-pattern '.+' makes each of the {len(sources)} videos its own source; then clips of one recording"
        " may be on both sides)"
    )


def _placed(
    portions: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    places: Mapping[int, int],
    random: np.random.Generator,
) -> np.ndarray:
    parts = np.full(len(portions), -1)
    for number, part in places.items():
        parts[number] = part
    sums = _sums(portions, parts, len(target))
    free = [int(number) for number in random.permutation(len(portions)) if number not in places]
    free.sort(key=lambda number: -portions[number, -1])  # stable: the order of equal ones is random
    for number in free:
        costs = [_after(sums, portions[number], part, target, weights) for part in range(len(target))]
        parts[number] = int(np.argmin(costs))
        sums[parts[number]] += portions[number]
    for _ in range(_ROUNDS):
        moved = False
        for number in free:
            before = _cost(sums, target, weights)
            sums[parts[number]] -= portions[number]
            costs = [_after(sums, portions[number], part, target, weights) for part in range(len(target))]
            part = int(np.argmin(costs))
            if costs[part] < before - 1e-9 and part != parts[number]:
                parts[number], moved = part, True
            sums[parts[number]] += portions[number]
        if not moved:
            break
    return parts


def _after(sums: np.ndarray, row: np.ndarray, part: int, target: np.ndarray, weights: np.ndarray) -> float:
    sums[part] += row
    cost = _cost(sums, target, weights)
    sums[part] -= row
    return cost


def _sums(portions: np.ndarray, parts: np.ndarray, count: int) -> np.ndarray:
    return np.stack([portions[parts == part].sum(axis=0) for part in range(count)])


def _cost(sums: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    lacking = int((sums[:, -3:-1] <= 1e-12).sum())
    return float((np.square(sums - target) / target * weights).sum()) + _LACKING * lacking
