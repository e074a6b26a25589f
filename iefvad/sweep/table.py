"""Results of a sweep over seeds: tidy rows, means and deviations, and paired tests (`docs/specification.md#sweeps`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from iefvad.scoring import seeds
from iefvad.sweep.plan import Entry
from iefvad.sweep.trainings import Document
from iefvad.utils.csv_text import csv_text
from iefvad.utils.text import readable

LEVEL = 0.05
"""Level of the tests."""

METRICS = {"auc": "AUC", "ap": "AP", "ano_auc": "Ano-AUC", "brier": "Brier", "w_img": "w_img"}
"""Metrics of the tables, by their name in results.csv."""

LOW_IS_GOOD = frozenset({"brier"})

Replicate = tuple[str, int]
"""Fold and seed: what two values of a setting have in common in a paired test."""


class Row(NamedTuple):
    """One row of results.csv. A fold is part of the data's name, as `NAME/FOLD`."""

    data: str
    protocol: str
    model: str
    setting: str
    value: str
    seed: int
    metric: str
    result: str


def rows_of(entries: Sequence[Entry], documents: Mapping[str, Document]) -> list[Row]:
    """Return the rows of results.csv, in the order of the plan. A failed training is one row `failed`."""
    names = [document["data"]["name"] for document in documents.values() if "data" in document]
    rows = []
    for entry in entries:
        document = documents[entry.training.key]
        settings = entry.training.settings
        name = document["data"]["name"] if "data" in document else (names or [""])[0]
        model = settings.model if settings.model != "ief-vad" or settings.modality == "fusion" else settings.modality
        place = (f"{name}/{entry.fold}" if entry.fold else name, settings.protocol, model)
        point = (entry.point.setting, entry.point.value, entry.seed)
        found = measures(document) if "failed" not in document else {"failed": document["failed"]}
        rows += [Row(*place, *point, metric, _exact(value)) for metric, value in found.items()]
    return rows


def measures(document: Document) -> dict[str, float]:
    """Return all numbers of a document by the names of results.csv, such as `auc`, `auc[Fight]` and `w_img[normal]`."""
    metrics = document["metrics"]
    found = {name: metrics.get(name) for name in ("auc", "ap", "ano_auc", "brier", "ece")}
    for label, values in (metrics.get("per_class") or {}).items():
        found |= {f"{name}[{label}]": values.get(name) for name in ("auc", "ap")}
    for name, values in (metrics.get("weights") or {}).items():
        found |= {name: values["overall"]} | {f"{name}[{part}]": values[part] for part in ("abnormal", "normal")}
    found |= document["learned"] | {"epoch": document["epoch"]}
    return {name: float(value) for name, value in found.items() if value is not None}


def _exact(value: float | str) -> str:
    return value if isinstance(value, str) else repr(value)


@dataclass(frozen=True)
class Summary:
    """A metric of one value of a setting, over replicates.

    Attributes:
        setting: The setting.
        value: Its value.
        base: Whether that is the base value.
        metric: The metric.
        mean: Mean over the replicates.
        deviation: Standard deviation, with n - 1; None for one replicate.
        n: Number of replicates.
        difference: Mean of the paired differences from the base value; None for the base value itself.
        p: Two-sided p of the paired t-test of these differences; None where there are too few.
        p_holm: The same after Holm's correction over the values of the setting.
        best: Whether the mean is the best one and differs from that of every other value.
    """

    setting: str
    value: str
    base: bool
    metric: str
    mean: float
    deviation: float | None
    n: int
    difference: float | None = None
    p: float | None = None
    p_holm: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Setting:
    """All results of one setting.

    Attributes:
        name: The setting.
        values: Its values, in the order of the plan.
        base: The base value.
        samples: Metric → value → replicate → result.
        summaries: Metric → value → summary.
    """

    name: str
    values: Sequence[str]
    base: str
    samples: Mapping[str, Mapping[str, Mapping[Replicate, float]]]
    summaries: Mapping[str, Mapping[str, Summary]]


def settings_of(entries: Sequence[Entry], documents: Mapping[str, Document]) -> list[Setting]:
    """Return the results of each setting that was varied."""
    result = []
    for name in dict.fromkeys(entry.point.setting for entry in entries):
        own = [entry for entry in entries if entry.point.setting == name]
        values = list(dict.fromkeys(entry.point.value for entry in own))
        base = next(entry.point.value for entry in own if entry.point.base)
        samples: dict[str, dict[str, dict[Replicate, float]]] = {}
        for entry in own:
            document = documents[entry.training.key]
            for metric, number in measures(document).items() if "failed" not in document else ():
                samples.setdefault(metric, {}).setdefault(entry.point.value, {})[entry.fold, entry.seed] = number
        summaries = {metric: summarize(name, metric, base, values, found) for metric, found in samples.items()}
        result.append(Setting(name, values, base, samples, summaries))
    return result


def summarize(
    setting: str,
    metric: str,
    base: str,
    values: Sequence[str],
    samples: Mapping[str, Mapping[Replicate, float]],
) -> dict[str, Summary]:
    """Return the summaries of one metric by value. Values without results are left out.

    Args:
        setting: The setting.
        metric: The metric.
        base: The base value.
        values: Its values in order.
        samples: Value → replicate → result.
    """
    present = [value for value in values if samples.get(value)]
    others = [value for value in present if value != base] if base in present else []
    tests = {value: paired(samples[value], samples[base]) for value in others}
    corrected = holm({value: p for value, (_, p) in tests.items()})
    best = clear_best(metric, {value: samples[value] for value in present})
    result = {}
    for value in present:
        numbers = list(samples[value].values())
        difference, p = tests.get(value, (None, None))
        result[value] = Summary(
            setting=setting,
            value=value,
            base=value == base,
            metric=metric,
            mean=float(np.mean(numbers)),
            deviation=float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
            n=len(numbers),
            difference=difference,
            p=p,
            p_holm=corrected.get(value),
            best=value == best,
        )
    return result


def paired(one: Mapping[Replicate, float], other: Mapping[Replicate, float]) -> tuple[float | None, float | None]:
    """Return the mean of `one` less `other` over common replicates, and p of the two-sided paired t-test.

    The test needs at least three replicates and differences that are not all equal.
    """
    found = seeds.paired(other, one)
    return (None, None) if found is None else (found.mean, found.p)


def holm(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return p values after Holm's step-down correction. Those that are None are not counted."""
    known = sorted((p, name) for name, p in values.items() if p is not None)
    result: dict[str, float] = {}
    largest = 0.0
    for place, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * p))
        result[name] = largest
    return result


def clear_best(metric: str, samples: Mapping[str, Mapping[Replicate, float]]) -> str | None:
    """Return the value of the best mean, if paired tests against all others are below `LEVEL` after correction."""
    if len(samples) < 2 or not ranked(metric):
        return None
    means = {value: float(np.mean(list(found.values()))) for value, found in samples.items()}
    best = (min if metric.partition("[")[0] in LOW_IS_GOOD else max)(means, key=lambda value: means[value])
    tests = {value: paired(samples[best], found)[1] for value, found in samples.items() if value != best}
    if any(p is None for p in tests.values()) or max(holm(tests).values()) >= LEVEL:
        return None
    return best


def ranked(metric: str) -> bool:
    """Whether one value of the metric is better than another."""
    return metric.partition("[")[0] in ("auc", "ap", "ano_auc", "brier")


def mean_text(summary: Summary, plus: str = "±") -> str:
    """Return `0.8123 ± 0.0045`, with an asterisk where the difference from the base value is significant."""
    text = f"{summary.mean:.4f}"
    if summary.deviation is not None:
        text += f" {plus} {summary.deviation:.4f}"
    return text


def significant(summary: Summary) -> bool:
    """Whether the difference from the base value is below `LEVEL` after correction."""
    return summary.p_holm is not None and summary.p_holm < LEVEL


SUMMARY_COLUMNS = (
    "setting", "value", "base", "metric", "mean", "deviation", "n", "difference", "p", "p_holm", "best",
)  # fmt: skip


def tables_csv(settings: Sequence[Setting]) -> str:
    """Return tables.csv: one row per setting, metric and value."""
    rows = [
        [_cell(getattr(summary, column)) for column in SUMMARY_COLUMNS]
        for setting in settings
        for by_value in setting.summaries.values()
        for summary in by_value.values()
    ]
    return csv_text([SUMMARY_COLUMNS, *rows])


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else value


def tables_tex(settings: Sequence[Setting], about: str) -> str:
    r"""Return tables.tex: one table per setting for LaTeX with booktabs, to be read by `\input`.

    Args:
        settings: The settings.
        about: First sentence of each caption, as plain text.
    """
    return "".join(_table_tex(setting, about) for setting in settings)


def _table_tex(setting: Setting, about: str) -> str:
    metrics = [metric for metric in METRICS if metric in setting.summaries]
    lines = []
    for value in setting.values:
        cells = []
        for metric in metrics:
            summary = setting.summaries[metric].get(value)
            if summary is None:
                cells.append("--")
                continue
            body = mean_text(summary, r"\pm") + ("^{*}" if significant(summary) else "")
            cells.append(rf"$\mathbf{{{body}}}$" if summary.best else f"${body}$")
        name = tex(value or setting.name) + (" (base)" if value == setting.base and len(setting.values) > 1 else "")
        lines.append(" & ".join([name, *cells]) + r" \\")
    caption = tex(f"{about} Mean ± standard deviation.") + (
        rf" $^{{*}}$: differs from the base value (paired $t$-test, Holm's correction, $p < {LEVEL}$)."
        if len(setting.values) > 1
        else ""
    )
    head = " & ".join([tex(setting.name), *(tex(METRICS[metric]) for metric in metrics)]) + r" \\"
    label = re.sub(r"[^a-z0-9]+", "-", setting.name.lower()).strip("-")
    body = "\n".join(lines)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{caption}}}\n\\label{{tab:{label}}}\n"
        f"\\begin{{tabular}}{{l{'r' * len(metrics)}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n\n"
    )


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def tex(text: str) -> str:
    """Return plain text for LaTeX."""
    return "".join(_TEX.get(letter, letter) for letter in readable(text))
