"""From scored test videos to results: tables on the screen, metrics.json, scores.csv, report.html."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from iefvad.features.videos import Benchmark
from iefvad.model.network import Network
from iefvad.model.normality.config import CAVEAT
from iefvad.report.run_folder import REPORT, write_run_report
from iefvad.scoring.direction import direction
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.probe import probe_scores
from iefvad.scoring.score_files import SCORES, test_set, write_all_scores
from iefvad.scoring.scorer import tested_crops
from iefvad.scoring.seeds import summaries, with_deviations, with_means
from iefvad.scoring.tables import class_rows, headline_rows, table
from iefvad.scoring.video_scores import VideoScores, write_scores_csv
from iefvad.training.advice import LINEAR_PROBE, loss_advice, results_advice
from iefvad.training.backends import operators_of
from iefvad.training.protocols import deviations, protocol_table
from iefvad.training.run import NORMAL_ONLY, Run
from iefvad.training.settings import WITH_NORMAL_ONLY, Settings
from iefvad.utils.advice import Advice, as_json
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.files import rescued, write_json, write_with
from iefvad.utils.plain_json import read_object
from iefvad.utils.provenance import made_here
from iefvad.utils.text import readable

SUMMARISED = ("auc", "ap", "ano_auc", "brier", "ece", "per_class", "weights", "learned")
"""Keys of a model's metrics that are averaged over seeds."""


@dataclass
class Results:
    """Scores of the test videos.

    Attributes:
        scores: Scores by model name and seed, in the order in which they were added.
        learned: Values of learned q, ν and weights of the loss by model name and seed (`Network.learned`).
        chosen: Epoch and threshold of the kept network by model name and seed.
        facts: Further values of metrics.json by model name, of detectors whose scores are not probabilities.
    """

    scores: dict[str, dict[int, list[VideoScores]]] = field(default_factory=dict)
    learned: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    chosen: dict[str, dict[int, dict[str, float | None]]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        seed: int,
        videos: list[VideoScores],
        model: nn.Module | None = None,
        *,
        epoch: int | None = None,
        threshold: float | None = None,
    ) -> None:
        """Add the scores of one model and seed, what that network learned beside its weights, and what was chosen."""
        self.scores.setdefault(name, {})[seed] = videos
        if isinstance(model, Network) and (values := model.learned()):
            self.learned.setdefault(name, {})[seed] = values
        if epoch is not None:
            self.chosen.setdefault(name, {})[seed] = {"epoch": epoch, "threshold": threshold}

    def first(self) -> dict[str, list[VideoScores]]:
        """Return the scores of each model's first seed, that of the main checkpoints."""
        return {name: next(iter(seeds.values())) for name, seeds in self.scores.items()}

    def metrics(self, history: Sequence[Mapping[str, Any]] = ()) -> dict[str, dict[str, Any]]:
        """Return the metrics of each model, as metrics.json holds them (`docs/specification.md#run-folder`).

        With several seeds they are means, `n` and `auc_sd`, `ap_sd` ... are the number of seeds and the deviations, and
        "seeds" has the value of each seed, mean and deviation. Where q or ν are
        learned, "learned" holds their values, and under "by_epoch" those of each row of `history` of the first seed.
        """
        result = {}
        for name, seeds in self.scores.items():
            chosen = [self.chosen.get(name, {}).get(seed, {}) for seed in seeds]
            each = []
            for (seed, videos), choice in zip(seeds.items(), chosen, strict=True):
                learned = self.learned.get(name, {}).get(seed)
                found = evaluate(videos, probabilities=name not in self.facts) | self.facts.get(name, {})
                each.append(found | choice | ({"learned": learned} if learned else {}))
            found = dict(each[0])
            if len(each) > 1:
                summarised = summaries(each, SUMMARISED)
                for_each = {key: [choice[key] for choice in chosen] for key in ("epoch", "threshold") if all(chosen)}
                found = with_deviations(with_means(found, summarised), summarised, len(each))
                found["seeds"] = {"list": list(seeds)} | for_each | summarised
            if "learned" in found:
                rows = [row for row in history if row["model"] == name and row["seed"] == next(iter(seeds))]
                rows = [row for row in rows if row.get("phase") == rows[-1].get("phase")]  # of the kept network
                by_epoch = [{key: row[key] for key in ("epoch", *found["learned"]) if key in row} for row in rows]
                found["learned"] = found["learned"] | {"by_epoch": by_epoch}
            result[name] = found
        return result


@dataclass
class Subject:
    """What results are about, and where they are written.

    Attributes:
        path: The folder.
        primary: The model whose scores are in scores.csv.
        summary: Becomes "run" in metrics.json.
        settings: Settings, for the report.
        command: The command that makes the results again, for the report.
        title: What the report calls the model.
        notes: What a reader of the results must know.
        history: Rows of log.jsonl, for the report.
        protocol: Rows of `settings.protocol_table`, for the report.
        device: The device that scored.
        operators: Which backend served each operator in training, for the report; empty for an evaluation.
        lead: First sentence of the page.
    """

    path: Path
    primary: str
    summary: dict[str, Any]
    settings: dict[str, Any]
    command: str
    title: str = "IEF-VAD"
    notes: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    protocol: list[dict[str, str]] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    operators: str = ""
    lead: str = ""
    warnings: list[Advice] = field(default_factory=list)


def add_probe(results: Results, config: Settings, benchmark: Benchmark) -> None:
    """Add the scores of the linear probe, with `--preset own`."""
    if config.preset == "own" and config.modality in ("fusion", "all") and not config.normal_only:
        scores = probe_scores(benchmark.train, benchmark.test, config.test_crops)
        if scores is not None:
            results.add(LINEAR_PROBE, config.seeds[0], scores)


def finish(
    run: Run,
    benchmark: Benchmark,
    results: Results,
    *,
    used: Mapping[str, int | None],
    seconds: float | None = None,
    robustness: list[dict[str, Any]] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the results of a run as `write_results` does.

    `used` has the number of videos that were trained on and of those that were held out. `notes` precede those that
    follow from the settings.
    """
    config = run.config
    if config.normal_only:
        return write_results(
            _normal_only(run, benchmark, used, notes), benchmark, results, seconds=seconds, robustness=robustness
        )
    subject = Subject(
        path=run.path,
        primary=run.variants[0].name,
        summary={
            "preset": config.preset,
            "model": config.model,
            "protocol": config.protocol,
            "protocol_settings": {row["setting"]: row["this run"] for row in protocol_table(config)},
            "deviations": deviations(config),
            "method": config.method,
            "select": config.select,
            "test_crops": tested_crops(benchmark.test, config.test_crops),
            "seeds": config.seeds,
            "fused": config.fused,
            **used,
        },
        settings=dataclasses.asdict(config),
        command=f"python -m iefvad.train --config {run.path / 'config.yaml'}",
        title="IEF-VAD" if config.model == "ief-vad" else config.model,
        notes=[*notes, *_notes(run)],
        history=run.history,
        protocol=protocol_table(config),
        device=resolve_device(config.device),
        operators="" if seconds is None else operators_of(run, benchmark.dim),
        warnings=loss_advice(run.history, run.variants[0].name, preset=config.preset),
    )
    return write_results(subject, benchmark, results, seconds=seconds, robustness=robustness)


def _normal_only(run: Run, benchmark: Benchmark, used: Mapping[str, int | None], notes: Sequence[str]) -> Subject:
    """Return what the results of a detector from normal footage are about: it has no protocol."""
    config = run.config
    return Subject(
        path=run.path,
        primary=run.variants[0].name,
        summary={
            "preset": config.preset,
            "model": NORMAL_ONLY,
            "method": NORMAL_ONLY,
            "density": config.density,
            "test_crops": tested_crops(benchmark.test, config.test_crops),
            "seeds": config.seeds,
            **used,
        },
        settings={name: getattr(config, name) for name in WITH_NORMAL_ONLY},
        command=f"python -m iefvad.train --config {run.path / 'config.yaml'}",
        title=NORMAL_ONLY,
        notes=[CAVEAT, *notes],
        device=resolve_device(config.device),
        lead=CAVEAT,
    )


def write_results(
    subject: Subject,
    benchmark: Benchmark,
    results: Results,
    *,
    seconds: float | None = None,
    robustness: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Print the tables, write the files of the results and the page, and return the content of metrics.json.

    Args:
        subject: What the results are about.
        benchmark: The data.
        results: The scores.
        seconds: Duration of the training; None for an evaluation.
        robustness: Rows of `robustness.over_seeds`.

    Raises:
        UserError: a file cannot be written.
    """
    metrics = results.metrics(subject.history)
    preset = None if subject.settings.get("normal_only") else str(subject.settings.get("preset"))
    warnings = [*subject.warnings, *results_advice(metrics, subject.primary, len(benchmark.test), preset=preset)]
    subject = dataclasses.replace(subject, warnings=warnings)
    print("\n" + table(headline_rows(metrics)))
    classes = class_rows(metrics)
    if any(value is not None for row in classes for title, value in row.items() if title not in ("class", "videos")):
        print("\nAUC on each class's videos\n" + table(classes))

    def write(folder: Path) -> tuple[dict[str, Any], Path]:
        return _write(dataclasses.replace(subject, path=folder), benchmark, results, metrics, seconds, robustness)

    for warning in warnings:
        print(f"\nwarning: {readable(str(warning))}")
    document, page = rescued(write, subject.path, "the results")
    took = "" if seconds is None else f" ({seconds:.0f} s)"
    print(f"\nreport: {readable(page)}{took}")
    sys.stdout.flush()
    return document


def _write(
    subject: Subject,
    benchmark: Benchmark,
    results: Results,
    metrics: dict[str, dict[str, Any]],
    seconds: float | None,
    robustness: list[dict[str, Any]] | None,
) -> tuple[dict[str, Any], Path]:
    """Write the files of `write_results`, and return the content of metrics.json and the page."""
    first = results.first()[subject.primary]
    write_with(subject.path / "scores.csv", lambda path: write_scores_csv(path, first))
    write_all_scores(subject.path / SCORES, results.scores)
    document: dict[str, Any] = dict(metrics)
    document["run"] = {
        "benchmark": benchmark.name,
        **subject.summary,
        "test_videos": len(benchmark.test),
        "test_set": test_set(first),
        "notes": [*benchmark.notes, *subject.notes],
        "warnings": as_json(subject.warnings),
    }
    if benchmark.settings.get("corrupt"):
        document["run"]["corrupt"] = benchmark.settings["corrupt"]
    if robustness is not None:
        document["robustness"] = robustness
        document["direction"] = direction(robustness)
    write_json(subject.path / "metrics.json", document)
    write_json(subject.path / REPORT, _about(subject, benchmark, seconds))
    return document, write_run_report(subject.path)


def _about(subject: Subject, benchmark: Benchmark, seconds: float | None) -> dict[str, Any]:
    """Return the content of report.json: what the page shows beside the other files. Dates and times are only here."""
    path = subject.path / REPORT
    made = made_here(subject.device, seconds)
    if subject.operators:
        made["operators"] = subject.operators
    if trained := sum(row.get("seconds", 0.0) for row in subject.history):
        made["epochs"] = f"{trained:.0f} s"
    before: dict[str, Any] = {}
    if seconds is None and path.is_file():  # an evaluation keeps when and where the model was trained
        with contextlib.suppress(UserError, FileNotFoundError):
            known = read_object(path, "it is written again").get("made")
            before = {
                name: facts
                for name, facts in (known if isinstance(known, dict) else {}).items()
                if isinstance(facts, dict) and all(isinstance(text, str) for text in facts.values())
            }
    about: dict[str, Any] = {
        "title": f"{subject.title} on {benchmark.name}",
        "primary": subject.primary,
        "command": subject.command,
        "settings": subject.settings,
        "protocol": subject.protocol,
        "made": before | {"evaluate" if seconds is None else "train": made},
    }
    if subject.lead:
        about["lead"] = subject.lead
    if subject.history and not (subject.path / "log.jsonl").is_file():
        about["history"] = subject.history  # the results lie in another folder than the run
    return about


def _notes(run: Run) -> list[str]:
    notes = []
    if _nu_cancels(run.config):
        notes.append(
            "With one ν for both modalities and process noise 0, ν cancels in the mean, the weights and the gain."
            " Student-t and Gaussian noise then differ in the KL term alone."
        )
    if run.config.refit:
        notes.append(
            "The epoch was chosen on held-out training videos; then each model was trained on all training videos up to"
            " that epoch. Thresholds are those of the held-out videos."
        )
    if run.config.select == "test":
        notes.append(
            "The epoch was selected on the test set (--select test, as the released code does): figures are optimistic."
        )
    return notes


def _nu_cancels(config: Settings) -> bool:
    """Whether ν acts on the KL term alone (`docs/specification.md#precision-fusion`)."""
    plain = config.temporal == "kalman" and config.process_noise == 0
    return plain and config.noise == "student-t" and config.nu != "learned"


def _tensorboard(run: Run, metrics: dict[str, dict[str, Any]]) -> None:
    """Write the rows of log.jsonl as TensorBoard events where that package is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return
    for stale in run.path.glob("tensorboard/*/events.*"):
        stale.unlink()
    for name in dict.fromkeys(row["model"] for row in run.history):
        with SummaryWriter(str(run.path / "tensorboard" / name)) as writer:
            for row in run.history:
                if row["model"] == name and row["seed"] == run.config.seeds[0]:
                    phase = f"{row['phase']}/" if "phase" in row else ""
                    for key, value in row.items():
                        if isinstance(value, float):
                            writer.add_scalar(phase + key, value, row["epoch"])
            if name in metrics and metrics[name]["auc"] is not None:
                writer.add_scalar("test_auc", metrics[name]["auc"], run.history[-1]["epoch"])
