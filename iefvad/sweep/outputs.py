"""The result files of a sweep: results.csv, tables.csv, tables.tex, index.html (`docs/specification.md#sweeps`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iefvad.report.error_bars import Panel
from iefvad.report.sweep_page import MeanCell, SettingPart, SweepPage, write_sweep_page
from iefvad.scoring.tables import table
from iefvad.sweep import table as tables
from iefvad.sweep.plan import Entry
from iefvad.sweep.table import LEVEL, METRICS, Row, Setting, Summary, mean_text, significant
from iefvad.sweep.trainings import Document, effective
from iefvad.utils.csv_text import csv_text
from iefvad.utils.files import rescued, write_text


def write_outputs(out: Path, entries: Sequence[Entry], documents: Mapping[str, Document]) -> list[Setting]:
    """Write the result files of a sweep. Equal documents give equal bytes.

    Args:
        out: Folder of the sweep.
        entries: The plan.
        documents: Documents by key.

    Returns:
        The results of each setting.

    Raises:
        UserError: a file cannot be written.
    """
    settings = tables.settings_of(entries, documents)

    def write(folder: Path) -> None:
        write_text(folder / "results.csv", csv_text([Row._fields, *tables.rows_of(entries, documents)]))
        write_text(folder / "tables.csv", tables.tables_csv(settings))
        write_text(folder / "tables.tex", tables.tables_tex(settings, f"{_name(documents)}, {_replicates(entries)}."))
        write_sweep_page(folder / "index.html", _page(entries, documents, settings))

    rescued(write, out, "the tables")
    return settings


def text_tables(settings: Sequence[Setting]) -> str:
    """Return the tables for a terminal."""
    parts = []
    for setting in settings:
        rows = [
            {name: cell.text if isinstance(cell, MeanCell) else cell for name, cell in row.items()}
            for row in _rows(setting)
        ]
        parts.append(table(rows))
    return "\n\n".join(parts)


def _page(entries: Sequence[Entry], documents: Mapping[str, Document], settings: Sequence[Setting]) -> SweepPage:
    finished = [document for document in documents.values() if "failed" not in document]
    failed = [
        {
            "setting": entry.point.setting,
            "value": entry.point.value,
            "fold": entry.fold or None,
            "seed": str(entry.seed),
        }
        | {"reason": documents[entry.training.key]["failed"]}
        for entry in entries
        if "failed" in documents[entry.training.key]
    ]
    base = next(entry for entry in entries if entry.point.base)
    metric = base.training.settings.select_metric
    settled = dataclasses.asdict(base.training.settings)
    shown = {name: settled[name] for name in effective(base.training.settings)}
    for name in ("seeds", *(("train_list", "test_list", "annotations", "gt") if base.fold else ())):
        del shown[name]
    return SweepPage(
        title=f"Sweep on {_name(documents)}",
        lead=f"{len(documents)} trainings: {_replicates(entries)}.",
        tiles=_tiles(settings, metric),
        parts=[_part(setting, metric) for setting in settings],
        notes=_notes(entries, documents, settings, len(finished)),
        failed=failed,
        settings=shown,
    )


def _name(documents: Mapping[str, Document]) -> str:
    names = dict.fromkeys(document["data"]["name"] for document in documents.values() if "data" in document)
    return ", ".join(names) or "no data"


def _replicates(entries: Sequence[Entry]) -> str:
    seeds = list(dict.fromkeys(entry.seed for entry in entries))
    folds = list(dict.fromkeys(entry.fold for entry in entries))
    run = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 2
    named = f"{seeds[0]} to {seeds[-1]}" if run else ", ".join(map(str, seeds))
    text = f"seed{'s' if len(seeds) > 1 else ''} {named}"
    return text if folds == [""] else f"{text} on each of {len(folds)} folds ({', '.join(folds)})"


def _tiles(settings: Sequence[Setting], metric: str) -> list[tuple[str, str]]:
    first = settings[0].summaries.get(metric, {}).get(settings[0].base)
    values = [] if first is None else [(f"{first.mean:.3f}", f"{METRICS[metric]}, mean of the base settings")]
    for setting in settings:
        best = [summary for summary in setting.summaries.get(metric, {}).values() if summary.best]
        if best:
            values.append(
                (f"{best[0].mean:.3f}", f"{METRICS[metric]} with {setting.name} {best[0].value}, clearly best")
            )
    return values


def _part(setting: Setting, metric: str) -> SettingPart:
    order = [metric, *(name for name in ("auc", "ap", "ano_auc") if name != metric)]
    several = len(setting.values) > 1
    panels = [
        Panel(
            METRICS[name],
            {value: list(setting.samples[name].get(value, {}).values()) for value in setting.values},
            setting.base,
        )
        for name in order[:2]
        if several and name in setting.samples
    ]
    return SettingPart(setting.name, _rows(setting), panels, _tests(setting), _classes(setting))


def _rows(setting: Setting) -> list[dict[str, Any]]:
    rows = []
    for value in setting.values:
        found = {metric: setting.summaries[metric].get(value) for metric in METRICS if metric in setting.summaries}
        numbers = [summary.n for summary in found.values() if summary is not None]
        row: dict[str, Any] = {setting.name: _value(setting, value), "n": max(numbers, default=0)}
        rows.append(row | {METRICS[metric]: _mean(summary) for metric, summary in found.items()})
    return rows


def _value(setting: Setting, value: str) -> str:
    base = " (base)" if value == setting.base and len(setting.values) > 1 else ""
    return (value or "base settings") + base


def _mean(summary: Summary | None) -> MeanCell | None:
    if summary is None:
        return None
    return MeanCell(mean_text(summary) + (" *" if significant(summary) else ""), summary.best)


def _tests(setting: Setting) -> list[dict[str, str | None]]:
    rows = []
    for metric, title in METRICS.items():
        for value, summary in setting.summaries.get(metric, {}).items():
            if summary.difference is not None:
                row: dict[str, str | None] = {
                    setting.name: value,
                    "metric": title,
                    "difference": f"{summary.difference:+.4f}",
                }
                rows.append(row | {"p": _p(summary.p), "p, corrected": _p(summary.p_holm)})
    return rows


def _p(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _classes(setting: Setting) -> list[dict[str, Any]]:
    metrics = [metric for metric in setting.summaries if metric.startswith("auc[")]
    if not metrics:
        return []
    return [
        {setting.name: _value(setting, value)}
        | {metric[4:-1]: _mean(setting.summaries[metric].get(value)) for metric in metrics}
        for value in setting.values
    ]


def _notes(
    entries: Sequence[Entry], documents: Mapping[str, Document], settings: Sequence[Setting], finished: int
) -> list[str]:
    notes = []
    replicates = len({(entry.fold, entry.seed) for entry in entries})
    if finished < len(documents):
        notes.append(f"{len(documents) - finished} of {len(documents)} trainings failed and are in no mean.")
    if replicates > 1:
        what = "folds and seeds" if any(entry.fold for entry in entries) else "seeds"
        notes.append(f"Numbers are mean ± standard deviation over {replicates} {what}.")
    if replicates > 2 and any(len(setting.values) > 1 for setting in settings):
        notes.append(
            "*: differs from the base value in a two-sided paired t-test over these replicates, below"
            f" {LEVEL} after Holm's correction over the values of the setting. Bold: the best mean, where such tests"
            " against all other values say so. The test videos are the same in all trainings: the tests speak of"
            " other seeds, not of other videos."
        )
    elif any(len(setting.values) > 1 for setting in settings):
        notes.append("No tests: they need at least three seeds.")
    if any(entry.training.settings.select == "test" for entry in entries):
        notes.append("Epochs were selected on the test set (--select test): figures are optimistic.")
    return notes
