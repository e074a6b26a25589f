"""The documents of all trainings, and figures over seeds and folds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from iefvad.sweep.table import Replicate, paired
from iefvad.sweep.trainings import Document

Value = Callable[[Document], float | None]
"""Takes one figure of a document."""

PERCENT = frozenset({"auc", "ap", "ano_auc"})
"""Figures that are shown in percent, as the paper does."""


@dataclass(frozen=True)
class Summary:
    """A figure over replicates.

    Attributes:
        samples: Its value by fold and seed.
    """

    samples: Mapping[Replicate, float]

    @property
    def n(self) -> int:
        """Number of replicates."""
        return len(self.samples)

    @property
    def mean(self) -> float:
        """Mean over replicates."""
        return float(np.mean(list(self.samples.values())))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over replicates; None with one."""
        return float(np.std(list(self.samples.values()), ddof=1)) if self.n > 1 else None

    def minus(self, other: Summary) -> Summary | None:
        """Return the differences of the replicates that both have; None without any."""
        both = {key: value - other.samples[key] for key, value in self.samples.items() if key in other.samples}
        return Summary(both) if both else None


@dataclass
class Outcomes:
    """Documents by experiment and entry, then by fold and seed.

    Attributes:
        found: The documents of finished trainings.
        failed: Reasons of trainings that could not be finished, by name.
    """

    found: dict[tuple[str, str], dict[Replicate, Document]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, experiment: str, label: str, replicate: Replicate, document: Document) -> None:
        """Add the document of one training."""
        if "failed" in document:
            name = ", ".join(part for part in (label, replicate[0], f"seed {replicate[1]}") if part)
            self.failed[name] = str(document["failed"])
        else:
            self.found.setdefault((experiment, label), {})[replicate] = document

    def documents(self, experiment: str, label: str) -> list[Document]:
        """Return all documents of an entry."""
        return list(self.found.get((experiment, label), {}).values())

    def summary(self, experiment: str, label: str, value: Value) -> Summary | None:
        """Return a figure over replicates. Those that do not have it are left out; None where none has it."""
        every = {key: value(document) for key, document in self.found.get((experiment, label), {}).items()}
        known = {key: number for key, number in every.items() if number is not None}
        return Summary(known) if known else None


def metric(name: str) -> Value:
    """Return what takes a metric of the clean test videos, areas in percent."""

    def take(document: Document) -> float | None:
        return _scaled(name, document["metrics"].get(name))

    return take


def of_class(label: str, name: str) -> Value:
    """Return what takes the metric of one anomaly class, in percent."""

    def take(document: Document) -> float | None:
        return _scaled(name, (document["metrics"].get("per_class") or {}).get(label, {}).get(name))

    return take


def of_damage(masked: str, ratio: float, name: str) -> Value:
    """Return what takes a column of a row of the robustness table, areas in percent."""

    def take(document: Document) -> float | None:
        for row in document.get("robustness") or ():
            if row["masked"] == masked and abs(row["ratio"] - ratio) < 1e-9:
                return _scaled(name, row.get(name))
        return None

    return take


def _scaled(name: str, value: float | None) -> float | None:
    return value * 100 if value is not None and name in PERCENT else value


def classes_of(documents: Iterable[Document]) -> dict[str, int]:
    """Return the anomaly classes of the test videos and their number of videos, the largest over folds."""
    found: dict[str, int] = {}
    for document in documents:
        for name, values in (document["metrics"].get("per_class") or {}).items():
            found[name] = max(found.get(name, 0), int(values.get("videos", 0)))
    return found


def paired_p(one: Summary, other: Summary) -> float | None:
    """Return p of the paired t-test over replicates that both have; None below three, or where no difference varies."""
    return paired(one.samples, other.samples)[1]


def mean_metrics(documents: Iterable[Document]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Return per-class AUC and AP as means over documents, in the form that plots of classes take."""
    documents = list(documents)
    result: dict[str, dict[str, float | int | None]] = {}
    for name, videos in classes_of(documents).items():
        row: dict[str, float | int | None] = {"videos": videos}
        for key in ("auc", "ap"):
            each = [(doc["metrics"].get("per_class") or {}).get(name, {}).get(key) for doc in documents]
            known = [value for value in each if value is not None]
            row[key] = float(np.mean(known)) if known else None
        result[name] = row
    return {"per_class": result}
