"""The report of a run: one HTML file with tables, curves and timelines that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from iefvad.report import plots
from iefvad.report.images import inline_svg
from iefvad.report.page import Table, flatten, table, write_page
from iefvad.report.radar import radar
from iefvad.report.reliability import reliability_diagram
from iefvad.report.style import SERIES
from iefvad.scoring.direction import direction
from iefvad.scoring.metrics import bootstrap_auc, roc_auc
from iefvad.scoring.robustness import explain, spread
from iefvad.scoring.seeds import Spread, by_seed, quantity, typical_seed
from iefvad.scoring.tables import class_rows, headline_rows
from iefvad.scoring.video_scores import VideoScores, to_frames
from iefvad.utils.text import clock, duration

_HIGH_IS_BEST = ("AUC", "AP", "Ano-AUC")

Metrics = Mapping[str, Mapping[str, Any]]
"""Model → what `metrics.evaluate` returns."""

Scores = Mapping[str, Sequence[VideoScores]]
"""Model → scores of the test videos."""


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: Metrics,
    videos: Scores,
    config: Mapping[str, Any],
    notes: Sequence[str] = (),
    warnings: Sequence[Mapping[str, str]] = (),
    history: Sequence[Mapping[str, Any]] = (),
    robustness: Sequence[Mapping[str, Any]] | None = None,
    command: str | None = None,
    protocol: Sequence[Mapping[str, str]] = (),
    seeds: Mapping[str, Sequence[Sequence[VideoScores]]] | None = None,
    made: Mapping[str, Mapping[str, str]] | None = None,
    lead: str = "",
) -> None:
    """Write the report of a run: self-contained HTML, light and dark, a few hundred kilobytes. All text is escaped.

    Args:
        path: The HTML file.
        title: Title of the page.
        metrics: Metrics of each model, in the order of the table, as metrics.json holds them. With several seeds they
            are shown as mean ± standard deviation.
        videos: Scores of the test videos by the same models, of one seed: the typical one. A model may be absent.
        config: Settings, nested or not.
        notes: Remarks below the main table.
        warnings: Warnings at the top, each with `cause` and `remedy`.
        history: Rows of log.jsonl (model, epoch, loss, loss_cls, val_*).
        robustness: Rows of `robustness.over_seeds`.
        command: The command line that reproduces the run.
        protocol: What the protocol fixes: rows with `setting`, `protocol` and `this run`.
        seeds: Scores of the test videos of every seed by model, for the curves; by default those of `videos`.
        made: When and where, by command, as `utils.provenance.made_here` describes it.
        lead: What the reader must know first.

    Raises:
        UserError: the file cannot be written.
    """
    main = "fusion" if "fusion" in metrics else next(iter(metrics), "")
    test = videos.get(main, ())
    history = [row for row in history if "phase" not in row]  # of the training that chose the epoch
    training = plots.training_curves(history)
    learned = plots.learned_curves(history)
    write_page(
        path,
        "run.html",
        title=title,
        lead=f"{lead} {_lead(metrics, main, test)}".strip(),
        tiles=_tiles(metrics.get(main, {}), main),
        results=_results(metrics, videos),
        by_seed=_by_seed(metrics),
        warnings=warnings,
        notes=[*notes, *_remarks(metrics, main)],
        curves=_curves(seeds or {model: [scores] for model, scores in videos.items()}),
        calibration=_calibration({name: found for name, found in videos.items() if _probabilities(metrics, name)}),
        classes=_classes(metrics),
        timelines=_timelines(main, videos),
        weights=_weights(metrics),
        robustness=_robustness(robustness or ()),
        training=training and inline_svg(training, "Training curves", "train"),
        learned=_learned(metrics),
        learned_curves=learned and inline_svg(learned, "Learned process noise and degrees of freedom", "learned"),
        protocol=_protocol(protocol),
        made=_made(made or {}),
        command=command,
        settings=[(key, v.tolist() if isinstance(v, np.ndarray) else v) for key, v in flatten(config)],
    )


def _lead(metrics: Metrics, main: str, test: Sequence[VideoScores]) -> str:
    """Write the sentence below the title: AUC of the main model, and its distance from the single modalities."""
    auc = metrics.get(main, {}).get("auc")
    if "tested_on" in metrics.get(main, {}):
        return "There are no test videos, so it is not known what it finds."
    if auc is None:
        return "The test videos allow no frame-level AUC; the notes below say why."
    seeds = (metrics[main].get("seeds") or {}).get("list", ())
    over = f" (mean of {len(seeds)} seeds)" if seeds else ""
    text = f"The {main} model ranks frames with an AUC of {auc:.3f}{over}"
    if test:
        length = duration(sum(v.seconds for v in test))
        text += f" over {len(test)} test video{'s' if len(test) != 1 else ''} ({length})"
    single = {
        m: metrics[m]["auc"] for m in ("image", "event") if m != main and metrics.get(m, {}).get("auc") is not None
    }
    if main == "fusion" and single:
        best = max(single, key=lambda m: single[m])
        gap = auc - single[best]
        where = "above" if gap >= 0 else "below"
        text += f", {abs(gap):.3f} {where} the better single modality ({best}, {single[best]:.3f})"
    return text + "."


def _tiles(found: Mapping[str, Any], main: str) -> list[tuple[str, str]]:
    named = (("auc", "frame-level AUC"), ("ap", "average precision"), ("ano_auc", "AUC on anomalous videos"))
    values = []
    for key, text in named:
        value = quantity(found, key)
        if isinstance(value, Spread):
            text += f" ± {value.std:.3f}" if value.std is not None else ""
        if value is not None:
            values.append((f"{float(value):.3f}", f"{main}: {text}"))
    if alarms := found.get("false_alarms"):
        held_out = alarms["held_out"]
        of = f"of held-out normal footage ({held_out['videos']} videos)"
        values.append((str(held_out["flagged"]), f"{main}: false alarms in {clock(3600 * held_out['hours'])} {of}"))
    if found.get("videos") and "tested_on" not in found:
        values.append((str(found["videos"]), f"test videos, {found.get('abnormal_videos', 0)} of them anomalous"))
    return values


def _results(metrics: Metrics, videos: Scores) -> Table:
    rows = headline_rows(metrics)
    several = any(found.get("seeds") for found in metrics.values())
    for row in rows:
        row["AUC, 95%"] = None if several else _interval(metrics[row["model"]], videos.get(row["model"], ()))
    order = ["model", "AUC", "AUC, 95%", "AP", "Ano-AUC", "Brier", "ECE", "w_img", "w_evt"]
    return table([{key: row[key] for key in order} for row in rows], models=list(metrics), best=_best)


def _by_seed(metrics: Metrics) -> dict[str, Table]:
    """Tables of AUC and AP with one column per seed and their mean; models of a single seed are left out."""
    result = {}
    for title, key in (("AUC", "auc"), ("AP", "ap")):
        rows = []
        for model, found in metrics.items():
            if found.get("seeds"):
                values = {str(seed): value for seed, value in by_seed(found, key).items()}
                rows.append({"model": model} | values | {"mean": quantity(found, key) if values else None})
        if any(len(row) > 1 for row in rows):
            result[title] = table(rows, models=list(metrics))
    return result


def _made(made: Mapping[str, Mapping[str, str]]) -> Table | None:
    """When and where the run was trained and evaluated, one column per command."""
    titles = list(dict.fromkeys(title for facts in made.values() for title in facts))
    rows = [{"": title} | {command: facts.get(title, "–") for command, facts in made.items()} for title in titles]
    return table(rows) if rows else None


def _interval(found: Mapping[str, Any], videos: Sequence[VideoScores]) -> str | None:
    if found.get("seeds"):
        return None  # it would stand for one seed beside a mean of several
    interval = found["auc_ci"] if "auc_ci" in found else bootstrap_auc(videos)
    return None if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _best(column: str) -> str | None:
    return "max" if column in _HIGH_IS_BEST else "min" if column in ("Brier", "ECE") else None


def _remarks(metrics: Metrics, main: str) -> list[str]:
    """Collect the notes of all models; a note that not all of them have begins with their names."""
    found: dict[str, list[str]] = {}
    for model, values in metrics.items():
        for note in values.get("notes") or ():
            found.setdefault(note, []).append(model)
    remarks = [n if len(who) == len(metrics) else f"{', '.join(who)}: {n}" for n, who in found.items()]
    lists = [values["seeds"]["list"] for values in metrics.values() if values.get("seeds")]
    if lists:
        named = ", ".join(map(str, lists[0]))
        remarks.insert(
            0,
            f"Figures are mean ± standard deviation over the seeds {named}, and curves are means with a band of one"
            f" standard deviation. Timelines and calibration are those of seed {typical_seed(metrics[main])}, whose AUC"
            " is the nearest to the median.",
        )
    return remarks


def _curves(seeds: Mapping[str, Sequence[Sequence[VideoScores]]]) -> list[Markup]:
    found = plots.curves_of(seeds)
    if not found:
        return []
    truth = [v.truth for v in seeds[next(iter(found))][0] if v.truth is not None]
    chance = float(np.concatenate(truth).mean())
    drawn = {"roc": plots.roc(found), "pr": plots.precision_recall(found, chance)}
    names = {"roc": "ROC curves", "pr": "Precision-recall curves"}
    return [inline_svg(figure, names[key], key) for key, figure in drawn.items() if figure is not None]


def _probabilities(metrics: Metrics, model: str) -> bool:
    """Whether the scores of a model are probabilities, so that they have a Brier score."""
    found = metrics.get(model, {})
    return "brier" not in found or found["brier"] is not None


def _calibration(videos: Scores) -> Markup | None:
    plot = reliability_diagram(videos)
    return None if plot is None else inline_svg(plot, "Fraction of abnormal frames against the score", "reliability")


def _classes(metrics: Metrics) -> dict[str, Any] | None:
    plot = plots.class_bars(metrics)
    if plot is None:
        return None
    models = list(metrics)
    circle = radar(metrics)
    return {
        "bars": inline_svg(plot, "AUC per anomaly class", "bars"),
        "radar": circle and inline_svg(circle, "AUC per anomaly class, around a circle", "radar"),
        "auc": table(class_rows(metrics), across=models),
        "ap": table(class_rows(metrics, "ap"), across=models),
    }


def choose_videos(videos: Sequence[VideoScores], limit: int = 12) -> list[tuple[VideoScores, str]]:
    """Choose videos whose timelines are worth a look.

    Args:
        videos: Scores of one model, with or without truth.
        limit: Maximum number of videos.

    Returns:
        Each video with the reason, without repetition: the best and the worst separated video, the normal videos of
        the highest and the lowest peak, and a typical video of each class. Where no video has a frame-level AUC of its
        own, the videos of the highest peaks follow.
    """
    scored = [v for v in videos if v.scores.size]
    inside = {
        id(v): auc for v in scored if v.truth is not None and (auc := roc_auc(to_frames(v.scores), v.truth)) is not None
    }
    ranked = sorted((v for v in scored if id(v) in inside), key=lambda v: inside[id(v)])
    quiet = sorted((v for v in scored if v.truth is not None and not v.truth.any()), key=lambda v: v.peak[0])
    picks: list[tuple[VideoScores, str]] = []
    if ranked:
        picks += [(ranked[-1], "best separated"), (ranked[0], "worst separated")]
    if quiet:
        picks.append((quiet[-1], "normal video of the highest peak"))
        picks.append((quiet[0], "normal video of the lowest peak"))
    for name in sorted({c for v in scored for c in v.classes}):
        members = [v for v in ranked if name in v.classes] or [v for v in scored if name in v.classes]
        picks.append((members[len(members) // 2], f"typical of class {name}"))
    if not inside:
        by_peak = sorted(scored, key=lambda v: -v.peak[0])
        picks += [(v, "among the highest peaks") for v in by_peak[:limit]]
    chosen: dict[int, tuple[VideoScores, str]] = {}
    for video, reason in picks:
        chosen.setdefault(id(video), (video, reason))
    return [
        (v, reason if id(v) not in inside else f"{reason}; AUC within the video {inside[id(v)]:.3f}")
        for v, reason in list(chosen.values())[:limit]
    ]


def _timelines(main: str, videos: Scores) -> list[dict[str, Any]]:
    beside = {m: {v.name: v for v in videos[m]} for m in SERIES if m != main and m in videos}
    lines = []
    for number, (video, reason) in enumerate(choose_videos(videos.get(main, ()))):
        others = {
            m: named[video.name]
            for m, named in beside.items()
            if video.name in named and named[video.name].scores.size == video.scores.size
        }
        plot = plots.timeline(video, others, name=main)
        label = ", ".join(video.classes) or "normal"
        lines.append(
            {
                "name": video.name,
                "svg": inline_svg(plot, f"Scores of {video.name}", f"line{number}"),
                "caption": f"{label}; {clock(video.seconds)}; {reason}",
            }
        )
    return lines


def _weights(metrics: Metrics) -> Table | None:
    rows: list[dict[str, Any]] = []
    for model, found in metrics.items():
        for field in found.get("weights") or {}:
            # A single modality has a gain alone, which compares with nothing.
            if field == "gain" and "w_img" not in found["weights"]:
                continue
            means = {key: quantity(found, "weights", field, key) for key in ("overall", "abnormal", "normal")}
            rows.append({"model": model, "quantity": field, **means})
            if means["abnormal"] is not None and means["normal"] is not None:
                rows[-1]["abnormal less normal"] = f"{float(means['abnormal']) - float(means['normal']):+.4f}"
    return table(rows, models=list(metrics)) if rows else None


def _protocol(rows: Sequence[Mapping[str, str]]) -> Table | None:
    marks = ["deviates" if row["protocol"] != row["this run"] else "" for row in rows]
    return table([{**row, "": mark} for row, mark in zip(rows, marks, strict=True)]) if rows else None


def _learned(metrics: Metrics) -> Table | None:
    names = {"q_mean": "q, mean", "q_min": "q, lowest", "q_max": "q, highest"}
    names |= {f"nu_{name}": f"ν, {name}" for name in ("image", "event")}
    names |= {f"weight_{name}": f"loss weight, {name}" for name in ("cls", "kl", "cos", "norm")}
    found = {model: values["learned"] for model, values in metrics.items() if values.get("learned")}
    keys = [key for key in names if any(key in values for values in found.values())]
    rows = [
        {"model": model} | {names[key]: quantity(metrics[model], "learned", key) for key in keys} for model in found
    ]
    return table(rows, models=list(metrics)) if rows else None


def _robustness(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    plot = plots.robustness(rows)
    if plot is None:
        return None
    names = {"auc": "AUC", "ap": "AP", "ano_auc": "Ano-AUC", "brier": "Brier", "ece": "ECE", "kl": "KL"}
    names |= {w: w for w in ("w_img", "w_evt")}
    shown = [
        {"damaged": row["masked"], "fraction": f"{float(row['ratio']):.0%}"}
        | {title: spread(row, key) for key, title in names.items()}
        for row in rows
    ]
    judged = direction(rows)
    return {
        "svg": inline_svg(plot, "Metrics against the damaged fraction of one modality", "mask"),
        "explanation": explain(rows),
        "table": table(shown),
        "direction": table([_direction_row(masked, found) for masked, found in judged.items()]),
        "verdicts": [found["text"] for found in judged.values()],
    }


def _direction_row(masked: str, found: Mapping[str, Any]) -> dict[str, Any]:
    last = max(found["by_ratio"], key=lambda row: row["ratio"])
    shifts = {
        title: None if last[f"shift{part}"] is None else Spread(last[f"shift{part}"], last[f"std{part}"])
        for title, part in (("shift", ""), ("on abnormal segments", "_abnormal"), ("on normal segments", "_normal"))
    }
    tests = {f"p, {what}": _p_values(found[f"p_{what}"]) for what in ("draws", "videos")}
    start = {"damaged": masked, "fraction": f"{found['ratio']:.0%}", "weight": found["weight"], "clean": found["clean"]}
    return start | shifts | tests


def _p_values(values: Sequence[float | None]) -> str:
    return ", ".join("-" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in values)
