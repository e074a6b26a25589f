"""From scored test videos to results: tables on the screen, metrics.json, scores.csv, report.html."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from iefvad.features.videos import Benchmark
from iefvad.model.network import Network
from iefvad.report.run_page import write_report
from iefvad.scoring.direction import direction
from iefvad.scoring.metrics import evaluate
from iefvad.scoring.scorer import tested_crops
from iefvad.scoring.tables import class_rows, headline_rows, table
from iefvad.scoring.video_scores import VideoScores, write_scores_csv
from iefvad.training.protocols import deviations, protocol_table
from iefvad.training.run import Run
from iefvad.training.settings import Settings
from iefvad.utils.files import write_json, write_with

RANKED = ("auc", "ap", "ano_auc")


@dataclass
class Results:
    """Scores of the test videos.

    Attributes:
        scores: Scores by model name and seed, in the order in which they were added.
        learned: Values of learned q and ν by model name, of its first seed (`Network.learned`).
    """

    scores: dict[str, dict[int, list[VideoScores]]] = field(default_factory=dict)
    learned: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, seed: int, videos: list[VideoScores], model: nn.Module | None = None) -> None:
        """Add the scores of one model and seed, and what that network learned beside its weights."""
        self.scores.setdefault(name, {})[seed] = videos
        if isinstance(model, Network) and name not in self.learned:
            self.learned[name] = model.learned()

    def first(self) -> dict[str, list[VideoScores]]:
        """Return the scores of each model's first seed, that of the main checkpoints."""
        return {name: next(iter(seeds.values())) for name, seeds in self.scores.items()}

    def metrics(self, history: Sequence[Mapping[str, Any]] = ()) -> dict[str, dict[str, Any]]:
        """Return the metrics of each model: those of the first seed, and under "seeds" the ranking metrics of all.

        Where q or ν are learned, "learned" holds their values, and under "by_epoch" those of each row of `history`.
        """
        result = {}
        for name, seeds in self.scores.items():
            each = {seed: evaluate(videos) for seed, videos in seeds.items()}
            found = next(iter(each.values()))
            if len(each) > 1:
                found["seeds"] = _over_seeds(each)
            if values := self.learned.get(name):
                rows = [row for row in history if row["model"] == name and row["seed"] == next(iter(seeds))]
                rows = [row for row in rows if row.get("phase") == rows[-1].get("phase")]  # of the kept network
                by_epoch = [{key: row[key] for key in ("epoch", *values) if key in row} for row in rows]
                found["learned"] = values | {"by_epoch": by_epoch}
            result[name] = found
        return result


def _over_seeds(each: dict[int, dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"list": list(each)}
    for key in RANKED:
        values = [metrics[key] for metrics in each.values()]
        if all(value is not None for value in values):
            summary[key] = {"values": values, "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
    return summary


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


def finish(
    run: Run,
    benchmark: Benchmark,
    results: Results,
    *,
    used: Mapping[str, int | None],
    seconds: float | None = None,
    robustness: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the results of a run as `write_results` does, and TensorBoard events where that package is installed.

    `used` has the number of videos that were trained on and of those that were held out.
    """
    config = run.config
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
        notes=_notes(run),
        history=run.history,
        protocol=protocol_table(config),
    )
    document = write_results(subject, benchmark, results, seconds=seconds, robustness=robustness)
    _tensorboard(run, document)
    return document


def write_results(
    subject: Subject,
    benchmark: Benchmark,
    results: Results,
    *,
    seconds: float | None = None,
    robustness: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Print the tables, write metrics.json, scores.csv and report.html, and return the content of metrics.json.

    Args:
        subject: What the results are about.
        benchmark: The data.
        results: The scores.
        seconds: Duration to print.
        robustness: Rows of `robustness.over_seeds`.

    Raises:
        UserError: a file cannot be written.
    """
    metrics = results.metrics(subject.history)
    notes = [*benchmark.notes, *subject.notes]
    print("\n" + table(_headline(metrics)))
    classes = class_rows(metrics)
    if classes:
        print("\nAUC on each class's videos\n" + table(classes))
    first = results.first()
    write_with(subject.path / "scores.csv", lambda path: write_scores_csv(path, first[subject.primary]))
    document: dict[str, Any] = dict(metrics)
    document["run"] = {
        "benchmark": benchmark.name,
        **subject.summary,
        "test_videos": len(benchmark.test),
        "notes": notes,
    }
    if benchmark.settings.get("corrupt"):
        document["run"]["corrupt"] = benchmark.settings["corrupt"]
    if robustness is not None:
        document["robustness"] = robustness
        document["direction"] = direction(robustness)
    write_json(subject.path / "metrics.json", document)
    write_with(
        subject.path / "report.html",
        lambda path: write_report(
            path,
            title=f"{subject.title} on {benchmark.name}",
            metrics=metrics,
            videos=first,
            config=subject.settings,
            notes=notes,
            history=subject.history,
            robustness=robustness,
            command=subject.command,
            protocol=subject.protocol,
        ),
    )
    took = "" if seconds is None else f" ({seconds:.0f} s)"
    print(f"\nreport: {subject.path / 'report.html'}{took}")
    sys.stdout.flush()
    return document


def _headline(metrics: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the main table. With several seeds the ranking metrics are mean ± deviation over the seeds."""
    rows = headline_rows(metrics)
    for row in rows:
        seeds = metrics[row["model"]].get("seeds")
        for title, key in (("AUC", "auc"), ("AP", "ap"), ("Ano-AUC", "ano_auc")):
            if seeds and key in seeds:
                row[title] = f"{seeds[key]['mean']:.4f} ± {seeds[key]['std']:.4f}"
    return rows


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
    if len(run.config.seeds) > 1:
        seeds = ", ".join(map(str, run.config.seeds))
        notes.append(
            f"AUC, AP and Ano-AUC are mean ± standard deviation over the seeds {seeds};"
            f" all else is seed {run.config.seeds[0]}."
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
