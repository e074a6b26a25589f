"""Means and deviations over seeds, and the paired test of two models over the seeds that both have."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np


@dataclass(frozen=True)
class Spread:
    """A quantity over several seeds.

    Attributes:
        mean: Mean.
        std: Standard deviation with n - 1 in the denominator; None for a single value.
    """

    mean: float
    std: float | None

    def __float__(self) -> float:
        return self.mean


class Difference(NamedTuple):
    """Mean paired difference, its standard deviation, the number of pairs, and the p value of the paired t-test."""

    mean: float
    std: float | None
    pairs: int
    p: float | None


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return values with their mean and deviation, as metrics.json holds them. The deviation of one value is None."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"values": list(values), "mean": float(np.mean(values)), "std": std}


def summaries(each: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Summarise the quantities of `keys` in mappings, one per seed, however deep they lie.

    Args:
        each: Mappings of the same structure. Floats are summarised; counts, texts and None are not.
        keys: Keys of the top level that are summarised.

    Returns:
        The same structure with a `summary` in place of each float. What not all seeds have is left out.
    """
    result: dict[str, Any] = {}
    for key in keys:
        found = [values.get(key) for values in each]
        if all(isinstance(value, Mapping) for value in found):
            inner = [value for value in found if isinstance(value, Mapping)]
            names = [name for name in inner[0] if all(name in value for value in inner)]
            if deeper := summaries(inner, names):
                result[key] = deeper
        elif all(isinstance(value, float) for value in found):
            result[key] = summary([value for value in found if isinstance(value, float)])
    return result


def with_means(found: Mapping[str, Any], summarised: Mapping[str, Any]) -> dict[str, Any]:
    """Return `found` with the means of `summarised` in place of its numbers. Other values stay."""
    result = dict(found)
    for key, value in summarised.items():
        if "mean" in value and "values" in value:
            result[key] = value["mean"]
        elif isinstance(result.get(key), Mapping):
            result[key] = with_means(result[key], value)
    return result


def with_deviations(found: Mapping[str, Any], summarised: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return means with their deviation right behind them: `n`, then `auc`, `auc_sd`, `ap`, `ap_sd` and so on.

    Args:
        found: Metrics of one model, as `with_means` returns them.
        summarised: As for `with_means`.
        count: Number of seeds.

    Returns:
        The same metrics. The confidence interval `auc_ci` is left out, because it would be that of one seed.
    """
    result: dict[str, Any] = {"n": count}
    for key, value in found.items():
        if key != "auc_ci":
            result[key] = value
        if "std" in (about := summarised.get(key) or {}):
            result[f"{key}_sd"] = about["std"]
    return result


def typical_seed(found: Mapping[str, Any]) -> int | None:
    """Return the seed whose AUC lies nearest to the median of all seeds; None for metrics of one seed.

    Args:
        found: An object of metrics.json.
    """
    values = by_seed(found, "auc")
    if len(values) < 2:
        return None
    median = float(np.median(list(values.values())))
    return min(values, key=lambda seed: (round(abs(values[seed] - median), 9), seed))


def quantity(found: Mapping[str, Any], *path: str) -> Any:
    """Return a quantity of one model's metrics.

    Args:
        found: An object of metrics.json.
        path: Its keys, such as "per_class", "Fight", "auc".

    Returns:
        A `Spread` where the metrics are those of several seeds, else the value; None where there is none.
    """
    value: Any = found
    seeds: Any = found.get("seeds")
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
        seeds = seeds.get(key) if isinstance(seeds, Mapping) else None
    return Spread(seeds["mean"], seeds["std"]) if isinstance(seeds, Mapping) and "mean" in seeds else value


def by_seed(found: Mapping[str, Any], *path: str, seeds: Sequence[int] = ()) -> dict[int, float]:
    """Return a quantity of one model's metrics by seed.

    Args:
        found: An object of metrics.json.
        path: Its keys, as in `quantity`.
        seeds: Seeds of the run, for metrics of a single seed.
    """
    several: Any = found.get("seeds")
    if isinstance(several, Mapping):
        inner: Any = several
        for key in path:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        return dict(zip(several["list"], inner["values"], strict=True)) if inner else {}
    value = quantity(found, *path)
    return {seeds[0]: float(value)} if isinstance(value, (int, float)) and len(seeds) == 1 else {}


Replicate = TypeVar("Replicate", bound=Hashable)
"""What tells runs of the same settings apart: a seed, or a fold and a seed."""


def paired(first: Mapping[Replicate, float], second: Mapping[Replicate, float]) -> Difference | None:
    """Compare two quantities over the seeds that both have: `second` less `first`. None without a common seed.

    The t-test needs three pairs whose differences are not all equal; otherwise p is None.
    """
    from scipy.stats import ttest_rel  # here, because it takes long to import

    common = [seed for seed in first if seed in second]
    if not common:
        return None
    a, b = (np.array([values[seed] for seed in common]) for values in (first, second))
    found = summary((b - a).tolist())
    p = None
    if len(common) > 2 and np.ptp(b - a) > 0:
        with warnings.catch_warnings():
            # Differences that are nearly the same for all seeds: p is tiny, whatever its digits are.
            warnings.filterwarnings("ignore", message="Precision loss", category=RuntimeWarning)
            p = float(ttest_rel(b, a).pvalue)
    return Difference(found["mean"], found["std"], len(common), p)
