"""What each target trains: the experiments of the paper, each a list of settings of which one thing differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iefvad.model.baselines.config import BASELINES
from iefvad.reproduce.published import BASELINE_NAMES, GAUSSIAN, STUDENT
from iefvad.reproduce.targets import SECTIONS, Section
from iefvad.reproduce.targets import TARGETS as TARGETS
from iefvad.reproduce.targets import Target as Target
from iefvad.sweep.trainings import Measure
from iefvad.training.settings import Settings, TrainConfig, resolve, unused_by

_SECTION_OF: dict[str, Section] = {
    "table1": "methods",
    "table3": "ablations",
    "table4": "ablations",
    "table5": "losses",
    "appendix-f": "classes",
    "figure2": "classes",
    "figure3": "shifts",
    "appendix-h": "robustness",
}

HYPERPARAMETERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "nu": ("ν", (2.0, 4.0, 6.0, 8.0, 10.0)),
    "refine_steps": ("N", (0, 10, 20, 30, 40)),
    "eps": ("ε", (1e-4, 1e-6, 1e-8)),
    "attenuation": ("λ", (0.1, 0.3, 0.5, 0.7, 0.9)),
}
"""Setting → its symbol in the paper, and the values of Tables 3 and 4."""

LOSSES: dict[str, dict[str, float]] = {
    "cls": {"lambda_reg": 0.0, "lambda_kl": 0.0},
    "cls + reg": {"lambda_kl": 0.0},
    "cls + KL": {"lambda_reg": 0.0},
    "all": {},
}
"""Column of Table 5 → what it changes."""

STREAMS = ("image", "event", "fusion")


@dataclass(frozen=True)
class Entry:
    """One setting of an experiment.

    Attributes:
        label: Its name in tables.
        changes: What it changes in the user's settings.
        measures: What is measured of its networks beside the metrics.
        value: The value of the hyperparameter that is varied.
    """

    label: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measures: frozenset[Measure] = frozenset()
    value: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """Entries that are compared with each other.

    Attributes:
        name: Its key in results.
        entries: The settings.
        reference: Label of the entry that the others are tested against.
    """

    name: str
    entries: tuple[Entry, ...]
    reference: str | None = None


def sections_of(targets: Iterable[str]) -> list[Section]:
    """Return the sections of the page that targets ask for, in the order of the paper."""
    wanted = set(targets)
    chosen = set(SECTIONS) if "all" in wanted else {_SECTION_OF[target] for target in wanted}
    return [section for section in SECTIONS if section in chosen]


def experiments(section: Section, config: TrainConfig) -> list[Experiment]:
    """Return the experiments of a section.

    Args:
        section: The section.
        config: The user's settings.
    """
    plain = resolve(of_main(config))
    if section == "methods":
        gaussian = {"noise": "gaussian"} | ({"nu": 8.0} if plain.nu == "learned" else {})  # it has none to learn
        entries = [Entry(STUDENT, {"noise": "student-t"}), Entry(GAUSSIAN, gaussian)]
        entries += [Entry(BASELINE_NAMES.get(name, name), {"model": name}) for name in BASELINES]
        return [Experiment("methods", tuple(entries), STUDENT)]
    if section == "ablations":
        found = []
        for name, (symbol, values) in HYPERPARAMETERS.items():
            own = getattr(plain, name)
            labels = {value: f"{symbol} = {number(value)}" for value in values}
            entries = [Entry(labels[value], {name: value}, value=float(value)) for value in values]
            found.append(Experiment(name, tuple(entries), labels.get(own) if isinstance(own, (int, float)) else None))
        return found
    if section == "losses":
        return [Experiment("losses", tuple(Entry(label, changes) for label, changes in LOSSES.items()), "all")]
    if section == "classes":
        return [Experiment("classes", tuple(Entry(name, {"modality": name}) for name in STREAMS), "fusion")]
    measure: Measure = "shifts" if section == "shifts" else "robustness"
    return [Experiment(section, (Entry("fusion", {}, frozenset({measure})),))]


def number(value: float) -> str:
    """Return a value as the paper writes it: 8, 0.5, 1e-6."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else f"{value:g}"


def of_main(config: TrainConfig) -> TrainConfig:
    """Return the settings of IEF-VAD with both streams, which all others are variations of."""
    return dataclasses.replace(config, model="ief-vad", modality="fusion", compare=False, resume=False, out=None)


def settings_of(entry: Entry, config: TrainConfig, seed: int) -> Settings:
    """Return the settings of one training of an entry. A change to what is set anyway changes nothing.

    Raises:
        UserError: the settings do not fit together.
    """
    base = dataclasses.replace(of_main(config), seeds=[seed])
    if model := entry.changes.get("model"):
        # IEF-VAD's own settings are left out: the baseline would refuse them.
        defaults: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(TrainConfig)}
        free = {name: defaults[name] for name in unused_by(model)}
        return resolve(dataclasses.replace(base, **free | {"compare": False, "explicit": None} | dict(entry.changes)))
    plain = resolve(base)
    changes = {name: value for name, value in entry.changes.items() if getattr(plain, name) != value}
    return resolve(dataclasses.replace(base, **changes)) if changes else plain
