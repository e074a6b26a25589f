"""The files of a run folder as pages read them (`docs/specification.md#run-folder`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iefvad.report.run_page import write_report
from iefvad.scoring.score_files import SCORES, AllScores, read_all_scores
from iefvad.scoring.seeds import typical_seed
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError
from iefvad.utils.log_file import read_log
from iefvad.utils.plain_json import read_object

REPORT = "report.json"
"""File with what report.html shows beside metrics.json, scores.npz and log.jsonl."""


@dataclass
class RunFolder:
    """What a run folder says about itself.

    Attributes:
        path: The folder.
        metrics: Model → its object of metrics.json.
        run: `run` of metrics.json.
        document: All of metrics.json.
        about: The content of report.json; empty for a run of an earlier version.
    """

    path: Path
    metrics: dict[str, dict[str, Any]]
    run: dict[str, Any]
    document: dict[str, Any]
    about: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Read the small files of a run folder.

        Raises:
            UserError: it is not a run folder, or has no results.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a run folder: give a folder that `iefvad train` or `evaluate` wrote.")
        if not (folder / "metrics.json").is_file():
            config = folder / "config.yaml"
            if config.is_file():
                raise UserError(
                    f"{folder} has no metrics.json, so its training has not ended: `iefvad train --config {config}"
                    " --resume` goes on."
                )
            raise UserError(
                f"{folder} is not a run folder: it has no metrics.json. Give a folder that `iefvad train` or"
                " `evaluate` wrote."
            )
        document = _read(folder / "metrics.json")
        about = _read(folder / REPORT) if (folder / REPORT).is_file() else {}
        metrics = {name: found for name, found in document.items() if isinstance(found, dict) and "auc" in found}
        if not metrics or not isinstance(document.get("run"), dict):
            raise UserError(f"{folder / 'metrics.json'} is not that of a run: `iefvad evaluate {folder}` writes it.")
        return cls(folder, metrics, document["run"], document, about)

    @property
    def main(self) -> str:
        """Name of the run's model; others are beside it for comparison."""
        return str(self.about.get("primary", next(iter(self.metrics))))

    @property
    def seeds(self) -> list[int]:
        """Seeds of the run."""
        return list(self.run.get("seeds") or [0])

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows of log.jsonl."""
        log = self.path / "log.jsonl"
        if "history" in self.about or not log.is_file():
            return list(self.about.get("history", ()))
        return read_log(log)

    def scores(self) -> dict[str, dict[int, list[VideoScores]]]:
        """Read the scores of all models and seeds. Raises UserError if the file is missing or damaged."""
        if not (self.path / SCORES).is_file():
            raise UserError(
                f"{self.path} has no {SCORES}, because an earlier version made it: `iefvad evaluate {self.path}` makes"
                " the scores and the page again."
            )
        return read_all_scores(self.path / SCORES)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, f"`iefvad evaluate {path.parent}` writes it again")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `iefvad evaluate {path.parent}` writes it again.") from None


@contextlib.contextmanager
def damage_explained(*folders: Path) -> Iterator[None]:
    """Turn errors of values that a page cannot show into one that names the files.

    The files are JSON that anybody may change, and each part of a page reads other values of them. So what is wrong is
    only found where it is used.

    Args:
        folders: The run folders that the page shows.

    Raises:
        UserError: a value is missing, of another type or impossible.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        which = " or ".join(str(folder) for folder in folders)
        raise UserError(
            f"metrics.json, {REPORT}, log.jsonl or {SCORES} in {which} is damaged ({reason}): `iefvad evaluate"
            f" {folders[0]}` writes them again."
        ) from error


def write_run_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Make the report of a run from the files of its folder.

    Args:
        folder: The run folder.
        out: The HTML file; by default report.html in the folder.

    Returns:
        The file.

    Raises:
        UserError: the folder lacks what the page shows, or the page cannot be written.
    """
    run = RunFolder.open(folder)
    scores = run.scores()
    path = Path(out) if out is not None else run.path / "report.html"
    with damage_explained(run.path):
        _write_page(path, run, scores)
    return path


def _of_seed(seeds: Mapping[int, Sequence[VideoScores]], seed: int | None) -> Sequence[VideoScores]:
    """The scores of a seed, or of the first one where it is absent."""
    return seeds[seed] if seed is not None and seed in seeds else next(iter(seeds.values()))


def _write_page(path: Path, run: RunFolder, scores: AllScores) -> None:
    about = run.about
    typical = typical_seed(run.metrics.get(run.main, {}))
    write_report(
        path,
        title=about.get("title", run.path.name),
        metrics=run.metrics,
        videos={model: _of_seed(seeds, typical) for model, seeds in scores.items()},
        seeds={model: list(seeds.values()) for model, seeds in scores.items()},
        config=about.get("settings", {}),
        notes=run.run.get("notes", ()),
        warnings=run.run.get("warnings", ()),
        history=run.history,
        robustness=run.document.get("robustness"),
        command=about.get("command"),
        protocol=about.get("protocol", ()),
        made=about.get("made", {}),
        lead=str(about.get("lead", "")),
    )
