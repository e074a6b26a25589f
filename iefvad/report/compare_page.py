"""The page that compares several run folders: metrics, differences, classes, curves, robustness, and what was set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from iefvad.report import plots
from iefvad.report.drawing import colour, label, legend_below, line_style, new_figure
from iefvad.report.images import inline_svg
from iefvad.report.page import Table, flatten, table, write_page
from iefvad.report.radar import radar
from iefvad.report.run_folder import RunFolder, damage_explained
from iefvad.report.style import OTHERS, SERIES, token_of
from iefvad.scoring.score_files import SCORES
from iefvad.scoring.seeds import by_seed, paired
from iefvad.scoring.tables import class_rows, headline_rows
from iefvad.scoring.tables import table as plain_table
from iefvad.utils.errors import UserError

_COLOURS = (*SERIES, *OTHERS)
_COMPARED = (("AUC", "auc"), ("AP", "ap"), ("Ano-AUC", "ano_auc"))
_FREE = {"out", "resume", "explicit", "cache", "log"}  # settings that say nothing about the results

Runs = Mapping[str, RunFolder]
"""Short name → run folder."""


def open_runs(folders: Sequence[str | Path]) -> dict[str, RunFolder]:
    """Open run folders, by the shortest names that tell them apart.

    Raises:
        UserError: a folder is not a run folder or has no results, or one is named twice.
    """
    opened = [RunFolder.open(folder) for folder in folders]
    if len({run.path.resolve() for run in opened}) < len(opened):
        raise UserError("a run folder is named twice: name each run once.")
    return dict(zip(_short_names([run.path for run in opened]), opened, strict=True))


def write_comparison(path: str | Path, folders: Sequence[str | Path]) -> None:
    """Write one self-contained page that compares run folders. All text is escaped.

    Args:
        path: The HTML file.
        folders: The run folders; the first is what the others are compared with.

    Raises:
        UserError: a folder is not a run folder or has no results, one is named twice, or the page cannot be written.
    """
    runs = open_runs(folders)
    with damage_explained(*(run.path for run in runs.values())):
        _write_page(Path(path), runs)


def comparison_text(folders: Sequence[str | Path]) -> str:
    """Return the tables of `write_comparison` that fit a terminal: settings that differ, metrics, differences.

    Raises:
        UserError: as `write_comparison`.
    """
    runs = open_runs(folders)
    with damage_explained(*(run.path for run in runs.values())):
        groups = comparable(runs)
        parts = [f"settings that differ\n{plain_table(rows)}" if (rows := differing_rows(runs)) else "equal settings"]
        parts += _notes(groups)[: len(groups) > 1]
        for group in groups:
            parts.append(f"{_data(group)}\n{plain_table(headline_of(group))}")
            if rows := difference_rows(group):
                parts.append(f"less {next(iter(group))}, over common seeds\n{plain_table(rows)}")
    return "\n\n".join(parts)


def _write_page(path: Path, runs: Runs) -> None:
    tokens = _colours(runs)
    groups = comparable(runs)
    write_page(
        path,
        "compare.html",
        title=f"{len(runs)} runs compared",
        lead=_lead(groups),
        notes=_notes(groups),
        groups=[_group(number, group, tokens) for number, group in enumerate(groups)],
        facts=_facts(runs, tokens),
        settings=table(rows) if (rows := differing_rows(runs)) else None,
    )


def _colours(runs: Runs) -> dict[str, str]:
    """Choose the palette token of each run: that of its method, as on the run's own page, unless another run has it."""
    tokens: dict[str, str] = {}
    for name, run in runs.items():
        method = str(run.run.get("method", ""))
        own = token_of(run.main if run.main != "fusion" or method in ("", "ief") else f"fusion ({method})")
        free = [token for token in (own, *_COLOURS) if token not in tokens.values()]
        tokens[name] = free[0] if free else _COLOURS[len(tokens) % len(_COLOURS)]
    return tokens


def comparable(runs: Runs) -> list[dict[str, RunFolder]]:
    """Divide runs into those that were tested on the same test set, in the order in which they are given."""
    groups: list[dict[str, RunFolder]] = []
    for name, run in runs.items():
        for group in groups:
            if _same_test(next(iter(group.values())), run):
                group[name] = run
                break
        else:
            groups.append({name: run})
    return groups


def _same_test(one: RunFolder, other: RunFolder) -> bool:
    keys = [run.run.get("test_set") for run in (one, other)]
    if None not in keys:
        return bool(keys[0] == keys[1])
    # A run of an earlier version does not name its test set: the numbers of videos and frames must do.
    counts = ("videos", "segments", "frames", "abnormal_frames")
    found = [[run.metrics[run.main].get(key) for key in counts] for run in (one, other)]
    return found[0] == found[1]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-number:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _lead(groups: Sequence[Runs]) -> str:
    group = groups[0]
    if len(group) < 2:
        return "The runs were tested on different test sets. Their figures cannot be compared."
    values = {name: run.metrics[run.main].get("auc") for name, run in group.items()}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return "The test videos allow no frame-level AUC."
    best = max(known, key=lambda name: known[name])
    return f"Highest AUC: {known[best]:.3f}, {group[best].main} of {best}."


def _notes(groups: Sequence[Runs]) -> list[str]:
    notes = []
    if len(groups) > 1:
        sets = "; ".join(f"{', '.join(group)} on {_data(group)}" for group in groups)
        notes.append(f"Not comparable, because the test sets differ: {sets}. Each has its own section.")
    for group in groups:
        for name, run in group.items():
            if not (run.path / SCORES).is_file():
                notes.append(
                    f"{name} was made by an earlier version, so it has no curves here: `iefvad evaluate {run.path}`"
                    " writes its scores."
                )
    return notes


def _data(group: Runs) -> str:
    run = next(iter(group.values()))
    return f"{run.run.get('benchmark', 'unnamed data')} ({run.metrics[run.main].get('videos', '?')} test videos)"


def _group(number: int, group: Runs, tokens: Mapping[str, str]) -> dict[str, Any]:
    mains = {name: run.metrics[run.main] for name, run in group.items()}
    prefix = f"g{number}"
    bars, circle = plots.class_bars(mains, tokens=tokens), radar(mains, tokens=tokens)
    return {
        "title": _data(group),
        "headline": _headline(group, tokens),
        "differences": table(rows) if (rows := difference_rows(group)) else None,
        "curves": _curves(group, tokens, prefix),
        "bars": bars and inline_svg(bars, "AUC per anomaly class", f"{prefix}bars"),
        "radar": circle and inline_svg(circle, "AUC per anomaly class, around a circle", f"{prefix}radar"),
        "classes": table(class_rows(mains), across=list(mains)),
        "robustness": _robustness(group, tokens, prefix),
    }


def headline_of(group: Runs) -> list[dict[str, Any]]:
    """Return the main table of runs that were tested on the same videos: one row per run and model."""
    rows = []
    for name, run in group.items():
        for row in headline_rows(run.metrics):
            seeds = (run.metrics[row["model"]].get("seeds") or {}).get("list") or run.seeds[:1]
            shown = {title: value for title, value in row.items() if title not in ("w_img", "w_evt")}
            rows.append({"run": name} | shown | {"seeds": str(len(seeds))})
    return rows


def _headline(group: Runs, tokens: Mapping[str, str]) -> Table:
    rows = headline_of(group)
    best = {"Brier": "min", "ECE": "min"} | dict.fromkeys(("AUC", "AP", "Ano-AUC"), "max")
    return table(rows, models=tokens, best=best.get)


def difference_rows(group: Runs) -> list[dict[str, Any]]:
    """Return each run less the first one: the models of equal names, and the runs' main models."""
    names = list(group)
    first = group[names[0]]
    rows = []
    for name in names[1:]:
        run = group[name]
        pairs = [(first.main, run.main)] + [(m, m) for m in run.metrics if m in first.metrics]
        for before, after in dict.fromkeys(pairs):
            title = after if before == after else f"{after} less {before}"
            row: dict[str, Any] = {"run": name, "model": title, "seeds": None}
            for text, key in _COMPARED:
                old = by_seed(first.metrics[before], key, seeds=first.seeds[:1])
                found = paired(old, by_seed(run.metrics[after], key, seeds=run.seeds[:1]))
                if found is None:
                    continue
                std = "" if found.std is None else f" ± {found.std:.4f}"
                row[text] = f"{found.mean:+.4f}{std}"
                row[f"p, {text}"] = None if found.p is None else f"{max(found.p, 1e-4):.4f}"
                row["seeds"] = str(found.pairs)
            if row["seeds"]:
                rows.append(row)
    return rows


def _curves(group: Runs, tokens: Mapping[str, str], prefix: str) -> list[Markup]:
    scores = {}
    for name, run in group.items():
        if (run.path / SCORES).is_file():
            scores[name] = list(run.scores()[run.main].values())
    found = plots.curves_of(scores)
    if not found:
        return []
    truth = [v.truth for v in scores[next(iter(found))][0] if v.truth is not None]
    chance = float(np.concatenate(truth).mean())
    drawn = {"ROC curves": plots.roc(found, tokens)}
    drawn["Precision-recall curves"] = plots.precision_recall(found, chance, tokens)
    return [inline_svg(f, text, f"{prefix}c{i}") for i, (text, f) in enumerate(drawn.items()) if f is not None]


def _robustness(group: Runs, tokens: Mapping[str, str], prefix: str) -> dict[str, Any] | None:
    tables = {name: rows for name, run in group.items() if (rows := run.document.get("robustness"))}
    if not tables:
        return None
    rows = []
    for masked, ratio in dict.fromkeys((row["masked"], float(row["ratio"])) for t in tables.values() for row in t):
        values = {name: _damaged(tables[name], masked, "auc").get(ratio) for name in tables}
        rows.append({"masked": masked, "fraction": f"{ratio:.0%}"} | values)
    return {
        "svg": inline_svg(_robustness_plot(tables, tokens), "Metrics against the masked fraction", f"{prefix}mask"),
        "table": table(rows, across=list(tables)),
    }


def _damaged(rows: Sequence[Mapping[str, Any]], masked: str, key: str) -> dict[float, float]:
    """Fraction → metric. The row of fraction 0 belongs to both modalities."""
    return {
        float(row["ratio"]): float(row[key])
        for row in rows
        if row.get(key) is not None and (row["masked"] == masked or float(row["ratio"]) == 0)
    }


def _robustness_plot(tables: Mapping[str, Sequence[Mapping[str, Any]]], tokens: Mapping[str, str]) -> Figure:
    panels = [(key, title, masked) for key, title in (("auc", "AUC"), ("w_img", "mean w_img"))
              for masked in ("image", "event")]  # fmt: skip
    figure, axes = new_figure(5.4, 2, 2)
    for ax, (key, title, masked) in zip(axes, panels, strict=True):
        for name, rows in tables.items():
            points = sorted(_damaged(rows, masked, key).items())
            if points:
                ax.plot(*zip(*points, strict=True), **line_style(name, tokens[name]), marker="o", markersize=3.5)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
        label(ax, f"damaged part of the {masked} features", "", f"{title}, {masked} damaged")
        ax.tick_params(colors=colour("muted"))
    for pair in (axes[:2], axes[2:]):  # side by side on one scale
        low, high = min(ax.get_ylim()[0] for ax in pair), max(ax.get_ylim()[1] for ax in pair)
        for ax in pair:
            ax.set_ylim(low, min(high, 1.0))
    legend_below(figure, [Line2D([], [], **line_style(m, tokens[m])) for m in tables], list(tables))
    return figure


def _facts(runs: Runs, tokens: Mapping[str, str]) -> Table:
    rows = []
    for name, run in runs.items():
        made = run.about.get("made", {})
        made = made.get("train") or made.get("evaluate") or {}
        rows.append(
            {"run": name, "data": run.run.get("benchmark"), "model": run.main, "protocol": run.run.get("protocol")}
            | {"seeds": ", ".join(map(str, run.seeds)), "date": made.get("date"), "commit": made.get("commit")}
            | {"processor": made.get("GPU") or made.get("processor"), "duration": made.get("duration")}
        )
    return table(rows, models=tokens)


def differing_rows(runs: Runs) -> list[dict[str, str]]:
    """Return settings, and what the protocol fixes, that are not the same in all runs."""
    columns: dict[str, dict[str, str]] = {}
    for name, run in runs.items():
        found = {key: str(value) for key, value in flatten(run.about.get("settings", {})) if key not in _FREE}
        for key in ("benchmark", "model", "protocol", "method", "select", "test_crops", "train_videos"):
            found.setdefault(key, str(run.run.get(key, "–")))
        for row in run.run.get("deviations") or ():
            found[f"{row['setting']}, against the protocol"] = f"{row['this run']} instead of {row['protocol']}"
        columns[name] = found
    keys = dict.fromkeys(key for found in columns.values() for key in found)
    rows = [{"setting": key} | {name: found.get(key, "–") for name, found in columns.items()} for key in keys]
    return [row for row in rows if len(set(list(row.values())[1:])) > 1]
