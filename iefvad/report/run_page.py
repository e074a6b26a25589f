"""The report of a run: one HTML file with tables, curves and timelines that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iefvad.report import page as html
from iefvad.report import plots
from iefvad.report.style import SERIES
from iefvad.scoring.metrics import bootstrap_auc, class_rows, headline_rows, roc_auc
from iefvad.scoring.video_scores import VideoScores, to_frames
from iefvad.utils.files import write_text

_HIGH_IS_BEST = ("AUC", "AP", "Ano-AUC")


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: Mapping[str, Mapping[str, Any]],
    videos: Mapping[str, Sequence[VideoScores]],
    config: Mapping[str, Any],
    notes: Sequence[str] = (),
    history: Sequence[Mapping[str, Any]] = (),
    robustness: Sequence[Mapping[str, Any]] | None = None,
    command: str | None = None,
) -> None:
    """Write the report of a run to `path` (self-contained HTML, light and dark, a few hundred kilobytes).

    metrics: {model: metrics.evaluate(...)}, first row first; a "seeds" entry {"list", "auc": {"values", "mean", "std"},
    ...} puts means over seeds into the headline, and all else shows the first seed. videos: the same models' scores on
    the test videos (a model may be absent). config: settings, nested or not. history: rows of log.jsonl (model, epoch,
    loss, loss_cls, val_*). robustness: rows of metrics.robustness_row. command: what reproduces the run, as it is.
    All text is escaped. Raises UserError where the file cannot be written.
    """
    headline = {model: _mean_of_seeds(found) for model, found in metrics.items()}
    main = "fusion" if "fusion" in metrics else next(iter(metrics), "")
    test = list(videos.get(main, ()))
    parts = [
        ("results", "Results", _results(headline, videos, notes)),
        ("curves", "Curves", _curves(videos)),
        ("classes", "Classes", _classes(metrics)),
        ("timelines", "Timelines", _timelines(main, videos)),
        ("weights", "Weights", _weights(metrics)),
        ("robustness", "Robustness", _robustness(robustness or ())),
        ("training", "Training", _training(history)),
        ("reproduce", "Settings", _reproduce(config, command)),
    ]
    top = _tiles(headline.get(main, {}), main, test)
    kept = [part for part in parts if part[2]]
    kicker = "Video anomaly detection report"
    write_text(Path(path), html.page(title, kicker, _lead(headline, main, test), kept, top=top))


def _mean_of_seeds(found: Mapping[str, Any]) -> dict[str, Any]:
    seeds = found.get("seeds") or {}
    return dict(found) | {key: seeds[key]["mean"] for key in ("auc", "ap", "ano_auc") if key in seeds}


def _lead(metrics: Mapping[str, Mapping[str, Any]], main: str, test: Sequence[VideoScores]) -> str:
    auc = metrics.get(main, {}).get("auc")
    if auc is None:
        return "The test videos allow no frame-level AUC; the notes below say why."
    seeds = (metrics[main].get("seeds") or {}).get("list", ())
    over = f" (mean of {len(seeds)} seeds)" if seeds else ""
    text = f"The {main} model ranks frames with an AUC of {auc:.3f}{over}"
    if test:
        length = plots.spoken(sum(v.seconds for v in test))
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


def _interval(found: Mapping[str, Any], videos: Sequence[VideoScores]) -> str | None:
    if found.get("seeds"):
        return None  # it would stand for one seed beside a mean of several
    interval = found["auc_ci"] if "auc_ci" in found else bootstrap_auc(videos)
    return None if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _tiles(found: Mapping[str, Any], main: str, test: Sequence[VideoScores]) -> str:
    named = (("auc", "frame-level AUC"), ("ap", "average precision"), ("ano_auc", "AUC on anomalous videos"))
    values = [(f"{found[key]:.3f}", f"{main}: {text}") for key, text in named if found.get(key) is not None]
    if found.get("videos"):
        count = found.get("abnormal_videos", 0)
        values.append((str(found["videos"]), f"test videos, {count} of them anomalous"))
    return html.tiles(values) if values else ""


def _results(
    metrics: Mapping[str, Mapping[str, Any]], videos: Mapping[str, Sequence[VideoScores]], notes: Sequence[str]
) -> str:
    rows = headline_rows(metrics)
    for row in rows:
        by_seed = (metrics[row["model"]].get("seeds") or {}).get("auc")
        row["AUC by seed"] = ", ".join(f"{value:.3f}" for value in by_seed["values"]) if by_seed else None
        row["AUC, 95%"] = _interval(metrics[row["model"]], videos.get(row["model"], ()))
    order = ["model", "AUC", "AUC by seed", "AUC, 95%", "AP", "Ano-AUC", "Brier", "w_img", "w_evt"]
    rows = [{key: row[key] for key in order} for row in rows]
    found: dict[str, list[str]] = {}
    for model, values in metrics.items():
        for note in values.get("notes") or ():
            found.setdefault(note, []).append(model)
    remarks = [n if len(who) == len(metrics) else f"{', '.join(who)}: {n}" for n, who in found.items()]
    lists = [values["seeds"]["list"] for values in metrics.values() if values.get("seeds")]
    if lists:
        named = ", ".join(map(str, lists[0]))
        remarks.insert(0, f"AUC, AP and Ano-AUC are means over seeds {named}; all else on this page is of the first.")
    table = html.table(rows, models=list(metrics), best=_best)
    return html.section(
        "Results",
        "results",
        table,
        html.bullets([*notes, *remarks]),
        sub="All frames of all test videos; a segment's score counts for each of its 16 frames. Ano-AUC: anomalous "
        "videos only. Brier: squared error of the probability, lower is better. Interval: resampling of whole videos.",
    )


def _best(column: str) -> str | None:
    return "max" if column in _HIGH_IS_BEST else "min" if column == "Brier" else None


def _curves(videos: Mapping[str, Sequence[VideoScores]]) -> str:
    roc, precision = plots.roc(videos), plots.precision_recall(videos)
    if roc is None or precision is None:
        return ""
    left = html.figure(roc, "ROC curves", "roc")
    right = html.figure(precision, "Precision-recall curves", "pr")
    return html.section("ROC and precision-recall", "curves", f'<div class="pair">{left}{right}</div>')


def _classes(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    rows = class_rows(metrics)
    plot = plots.class_bars(metrics)
    if plot is None:
        return ""
    models = list(metrics)
    precision = html.table(class_rows(metrics, "ap"), across=models)
    return html.section(
        "Classes",
        "classes",
        html.figure(plot, "AUC per anomaly class", "bars", "Dotted: chance. In brackets: videos of the class."),
        html.table(rows, across=models),
        f"<details><summary>Average precision per class</summary>{precision}</details>",
        sub="Frame-level AUC within the videos of one anomaly class: how well the anomaly stands out from the rest of "
        "its own videos. Bold: the best model.",
    )


def choose_videos(videos: Sequence[VideoScores], limit: int = 12) -> list[tuple[VideoScores, str]]:
    """Up to `limit` videos worth a look, each with the reason: best, worst, each class, false alarms; ends of the rest.

    Without truth: those of the highest peaks.
    """
    scored = [v for v in videos if v.scores.size]
    inside = {
        id(v): auc for v in scored if v.truth is not None and (auc := roc_auc(to_frames(v.scores), v.truth)) is not None
    }
    ranked = sorted((v for v in scored if id(v) in inside), key=lambda v: inside[id(v)])
    quiet = sorted(
        (v for v in scored if v.truth is not None and not v.truth.any()), key=lambda v: float(v.scores.max())
    )
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
        by_peak = sorted(scored, key=lambda v: -float(v.scores.max()))
        picks += [(v, "among the highest peaks") for v in by_peak[:limit]]
    chosen: dict[int, tuple[VideoScores, str]] = {}
    for video, reason in picks:
        chosen.setdefault(id(video), (video, reason))
    result = list(chosen.values())[:limit]
    return [
        (v, reason if id(v) not in inside else f"{reason}; AUC within the video {inside[id(v)]:.3f}")
        for v, reason in result
    ]


def _timelines(main: str, videos: Mapping[str, Sequence[VideoScores]]) -> str:
    chosen = choose_videos(videos.get(main, ()))
    if not chosen:
        return ""
    beside = {m: {v.name: v for v in videos[m]} for m in SERIES if m != main and m in videos}
    body = []
    for i, (video, reason) in enumerate(chosen):
        others = {
            m: named[video.name]
            for m, named in beside.items()
            if video.name in named and named[video.name].scores.size == video.scores.size
        }
        plot = plots.timeline(video, others, name=main)
        label = ", ".join(video.classes) or "normal"
        caption = f"{label}; {plots.clock(video.seconds)}; {reason}"
        body.append(html.element("h3", video.name) + html.figure(plot, f"Scores of {video.name}", f"line{i}", caption))
    return html.section(
        "Timelines",
        "timelines",
        *body,
        sub="Anomaly score over time, abnormal frames shaded where the truth is known. Below: how the fusion divides "
        "its trust between the modalities (mean normalised weights), and the mean gain of the temporal filter.",
    )


def _weights(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for model, found in metrics.items():
        for field, means in (found.get("weights") or {}).items():
            # A single modality has a gain alone, which compares with nothing.
            if field == "gain" and "w_img" not in found["weights"]:
                continue
            rows.append(
                {"model": model, "quantity": field, **{key: means[key] for key in ("overall", "abnormal", "normal")}}
            )
            if means["abnormal"] is not None and means["normal"] is not None:
                rows[-1]["abnormal less normal"] = f"{means['abnormal'] - means['normal']:+.4f}"
    if not rows:
        return ""
    return html.section(
        "Uncertainty weights",
        "weights",
        html.table(rows, models=list(metrics)),
        sub="Means over segments and feature dimensions; a segment is abnormal if at least half of its frames are. "
        "Averages move little: single dimensions and moments move more (paper, Appendix H).",
    )


def _robustness(rows: Sequence[Mapping[str, Any]]) -> str:
    plot = plots.robustness(rows)
    if plot is None:
        return ""
    names = {"auc": "AUC", "ap": "AP", "brier": "Brier", "kl": "KL"}
    weights = [f"{w}{part}" for w in ("w_img", "w_evt") for part in ("", "_abnormal", "_normal")]
    titles = names | {key: key.replace("_abnormal", ", abnormal").replace("_normal", ", normal") for key in weights}
    table = html.table(
        [
            {"masked": row["masked"], "share": f"{float(row['ratio']):.0%}"}
            | {t: row.get(key) for key, t in titles.items()}
            for row in rows
        ]
    )
    return html.section(
        "Robustness",
        "robustness",
        html.figure(plot, "Metrics against the masked share of one modality", "mask"),
        table,
        sub="A share of one modality's feature dimensions is masked (paper, Appendix H). KL: how far the "
        "predictions move from those on clean features.",
    )


def _training(history: Sequence[Mapping[str, Any]]) -> str:
    plot = plots.training_curves(history)
    return html.section("Training", "training", html.figure(plot, "Training curves", "train")) if plot else ""


def _reproduce(config: Mapping[str, Any], command: str | None) -> str:
    body = []
    if command:
        body.append(html.element("p", "This run again:") + f"<pre>{html.element('code', command)}</pre>")
    if config:
        plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in config.items()}
        body.append(f"<details><summary>All settings</summary>{html.settings(plain)}</details>")
    return html.section("Settings", "reproduce", *body) if body else ""
