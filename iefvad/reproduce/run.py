"""`iefvad reproduce`: plan the trainings, run them, and write tables, figures and the page."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iefvad.report.images import save
from iefvad.reproduce.outcomes import Outcomes
from iefvad.reproduce.page import Header, write_results_page
from iefvad.reproduce.plan import Experiment, experiments, of_main, sections_of, settings_of
from iefvad.reproduce.published import DATA_SETS
from iefvad.reproduce.sections import Part, View, build
from iefvad.reproduce.targets import Section
from iefvad.scoring.tables import table
from iefvad.sweep.choices import Engine
from iefvad.sweep.plan import Fold, read_folds
from iefvad.sweep.runner import run_all
from iefvad.sweep.table import Replicate
from iefvad.sweep.trainings import Training
from iefvad.training.protocols import deviations
from iefvad.training.settings import Settings, TrainConfig, resolve
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable, rescued, write_text
from iefvad.utils.provenance import made_here
from iefvad.utils.text import readable

TRAININGS = "sweep"
"""Folder of the trainings' documents, in the output folder."""


@dataclass
class HowToRun:
    """How trainings are run; the options of `iefvad sweep`.

    Attributes:
        jobs: Number of processes; None: as many as the machine allows.
        threads: CPU threads per training.
        engine: "local" or "ray".
        jobs_per_gpu: Number of trainings that share a GPU.
        ray_address: Address of a Ray cluster.
    """

    jobs: int | None = None
    threads: int = 1
    engine: Engine = "local"
    jobs_per_gpu: int = 1
    ray_address: str | None = None


@dataclass(frozen=True)
class Planned:
    """A training and where its document belongs."""

    experiment: str
    label: str
    replicate: Replicate
    training: Training


def plan(
    sections: Sequence[Section], config: TrainConfig, folds: Sequence[Fold]
) -> tuple[dict[Section, list[Experiment]], list[Planned]]:
    """Return the experiments of each section, and all trainings, some of which are the same.

    Args:
        sections: The sections of the page.
        config: The user's settings.
        folds: The folds, as `read_folds` returns them; one without lists where there are none.

    Raises:
        UserError: the settings do not fit together.
    """
    found = {section: experiments(section, config) for section in sections}
    planned = [
        Planned(
            experiment.name,
            entry.label,
            (fold.name, seed),
            Training(settings_of(entry, dataclasses.replace(config, **fold.lists), seed), entry.measures),
        )
        for seed in config.seeds
        for each in found.values()
        for experiment in each
        for entry in experiment.entries
        for fold in folds
    ]
    return found, planned


def reproduce(
    targets: Sequence[str], config: TrainConfig, out: Path, *, lists: str | None = None, how: HowToRun | None = None
) -> list[Part]:
    """Train what targets need and `out` does not have yet, and write the results.

    Writes `index.html`, `tables/NAME.csv` and `.tex`, `figures/NAME.svg`, `.png` and `.pdf`. The documents of the
    trainings are in `sweep/`.

    Args:
        targets: Names of `plan.TARGETS`.
        config: The user's settings of training.
        out: Output folder.
        lists: Folder with one folder per fold; None: the lists of the data.
        how: How trainings are run.

    Returns:
        The sections of the page.

    Raises:
        UserError: data or settings are wrong.
    """
    how = how or HowToRun()
    sections = sections_of(targets)
    folds = read_folds(lists, config) if lists is not None else [Fold("", {})]
    found, planned = plan(sections, config, folds)
    trainings = [each.training for each in planned]
    number = len({training.key for training in trainings})
    plain = resolve(of_main(dataclasses.replace(config, **folds[0].lists)))
    _say(f"{_counted(number)}: {', '.join(sections)}; {_seeds(config.seeds)}{_folds(folds)}")
    require_writable(out)
    documents = run_all(trainings, out / TRAININGS, **dataclasses.asdict(how))
    outcomes = Outcomes()
    for each in planned:
        outcomes.add(each.experiment, each.label, each.replicate, documents[each.training.key])
    view = View(outcomes, metrics_of(plain), data_of(config))
    parts = [build(section, found[section], view) for section in sections]
    first = next((doc for doc in documents.values() if "data" in doc), None)
    if first is None:
        raise UserError("no training could be finished: " + next(iter(outcomes.failed.values()), "none was planned"))
    header = Header(
        data=str(first["data"]["name"]),
        lead=_lead(first["data"]["name"], plain, config, folds, number),
        notes=_notes(view, config, folds, outcomes),
        settings=[(row["setting"], f"{row['this run']} (protocol: {row['protocol']})") for row in deviations(plain)],
        made={name: text for name, text in made_here(resolve_device(plain.device)).items() if name != "threads"},
    )

    def write(folder: Path) -> None:
        for part in parts:
            _write(part, folder)
        write_results_page(folder / "index.html", header, parts)

    rescued(write, out, "the tables, figures and the page")
    for part in parts:
        _say(f"\n{part.title}")
        for grid in part.grids:
            _say(table(grid.shown()) + "\n")
        for line in part.findings:
            _say(f"- {readable(line)}")
    _say(f"\npage: {readable(out / 'index.html')}")
    return parts


def metrics_of(settings: Settings) -> tuple[str, ...]:
    """Return the metrics that are shown: AP alone where the data set's metric is AP, else AUC and Ano-AUC."""
    return ("ap",) if settings.select_metric == "ap" else ("auc", "ano_auc")


def data_of(config: TrainConfig) -> str | None:
    """Return the preset of the paper's data set that the features are of, if the user says that they are."""
    return config.preset if config.preset in DATA_SETS else None


def _write(part: Part, out: Path) -> None:
    for grid in part.grids:
        write_text(out / "tables" / f"{grid.name}.csv", grid.csv())
        write_text(out / "tables" / f"{grid.name}.tex", grid.latex())
    for name, (figure, _) in part.figures.items():
        for suffix in ("svg", "png", "pdf"):
            save(figure, out / "figures" / f"{name}.{suffix}")


def _lead(data: str, plain: Settings, config: TrainConfig, folds: Sequence[Fold], trainings: int) -> str:
    over = "folds and seeds" if folds[0].name else "seeds"
    return (
        f"{_counted(trainings)} on {data}: protocol {plain.protocol}, method {plain.method}, preset {plain.preset},"
        f" {_seeds(config.seeds)}{_folds(folds)}. Figures are means ± standard deviations over {over}."
    )


def _counted(trainings: int) -> str:
    return f"{trainings} training{'' if trainings == 1 else 's'}"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _folds(folds: Sequence[Fold]) -> str:
    return "" if not folds[0].name else f" on each of {len(folds)} folds"


def _notes(view: View, config: TrainConfig, folds: Sequence[Fold], outcomes: Outcomes) -> list[str]:
    notes = []
    if view.data is None:
        notes.append(
            "These data are not one of the paper's data sets, so its figures do not stand beside ours: levels cannot be"
            " compared. What can be compared is the order of methods and the effect of settings. The paper's tables are"
            " below each section. With features of one of its data sets, name it by --preset."
        )
    else:
        notes.append(
            f"The published figures are those of {view.named}. They are comparable only if the features are of its"
            " whole training and test sets, by the encoders that the paper names."
        )
    if folds[0].name:
        notes.append(
            "Folds share training videos, so their results are not independent: p values are smaller than they would be"
            " on as many data sets."
        )
    if len(config.seeds) * len(folds) < 10:
        notes.append(f"The paper has 10 runs per figure, this page {len(config.seeds) * len(folds)}.")
    if config.protocol != "paper":
        notes.append(f"The protocol is {config.protocol}. Training as in the paper's text is --protocol paper.")
    for name, reason in outcomes.failed.items():
        notes.append(f"{name} could not be finished: {reason}")
    return notes


def _say(text: str) -> None:
    print(text)
    sys.stdout.flush()
