"""From documents to what the page shows: tables, figures and findings of each section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from iefvad.report.plots import robustness as robustness_plot
from iefvad.report.radar import radar
from iefvad.report.sensitivity import Line, Panel, sensitivity
from iefvad.report.shift_plot import shift_plot
from iefvad.reproduce.class_names import readable
from iefvad.reproduce.grids import Cell, Column, Grid
from iefvad.reproduce.outcomes import (
    PERCENT,
    Outcomes,
    Summary,
    Value,
    classes_of,
    mean_metrics,
    metric,
    of_class,
    of_damage,
    paired_p,
)
from iefvad.reproduce.plan import HYPERPARAMETERS, STREAMS, Experiment, number
from iefvad.reproduce.published import DATA_SETS, GAUSSIAN, ROBUSTNESS_COLUMNS, STUDENT, Published, paper
from iefvad.reproduce.targets import Section
from iefvad.scoring.choices import RATIOS
from iefvad.sweep.table import LEVEL, holm
from iefvad.sweep.trainings import Document

_TEST = "p: paired t-test of Δ over seeds (and folds), with Holm's correction."

METRIC_NAMES = {"auc": "AUC", "ap": "AP", "ano_auc": "Ano-AUC"}


@dataclass
class Part:
    """One section of the page.

    Attributes:
        name: Its anchor.
        title: Its title.
        about: What was done, in a sentence or two.
        grids: Tables, the main ones first.
        figures: Name → figure, with what a screen reader says of it.
        findings: What the numbers say, in sentences.
        reference: Tables of the paper alone, for data that it does not have.
    """

    name: Section
    title: str
    about: str
    grids: list[Grid] = field(default_factory=list)
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    reference: list[Grid] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """What all sections need.

    Attributes:
        outcomes: The documents.
        metrics: Metrics that are shown, the main one first.
        data: Preset of the paper's data set that the features are of; None: of no such data set.
    """

    outcomes: Outcomes
    metrics: tuple[str, ...]
    data: str | None

    @property
    def main(self) -> str:
        """The metric that findings are about."""
        return self.metrics[0]

    @property
    def named(self) -> str:
        """Name of the paper's data set."""
        return DATA_SETS[self.data] if self.data else ""

    def summary(self, experiment: Experiment, label: str, name: str) -> Summary | None:
        """Return a metric of an entry."""
        return self.outcomes.summary(experiment.name, label, metric(name))

    def p_values(self, experiment: Experiment) -> dict[str, float]:
        """Return p of each entry against the reference in the main metric, corrected for their number."""
        reference = experiment.reference and self.summary(experiment, experiment.reference, self.main)
        if not reference:
            return {}
        values = {}
        for entry in experiment.entries:
            if entry.label != experiment.reference:
                found = self.summary(experiment, entry.label, self.main)
                values[entry.label] = paired_p(found, reference) if found else None
        corrected = holm(values)
        return {label: corrected[label] for label in values if label in corrected}


def build(section: Section, experiments: Sequence[Experiment], view: View) -> Part:
    """Return a section of the page from finished trainings."""
    makers: dict[Section, Callable[[Sequence[Experiment], View], Part]] = {
        "methods": _methods,
        "ablations": _ablations,
        "losses": _losses,
        "classes": _classes,
        "shifts": _shifts,
        "robustness": _robustness,
    }
    return makers[section](experiments, view)


def _compared(
    name: str,
    head: str,
    experiment: Experiment,
    view: View,
    published: Mapping[str, Mapping[str, Published]],
    more: Sequence[str] = (),
) -> Grid:
    """Lay out entries as rows: our figures, the paired difference from the reference, p, and the paper's figures.

    Args:
        name: Name of the table's files.
        head: Head of the labels.
        experiment: The entries.
        view: The documents and metrics.
        published: Metric → label → figure of the same data set; empty where there is none.
        more: Labels that only the paper has.
    """
    metrics = [m for m in view.metrics if any(view.summary(experiment, e.label, m) for e in experiment.entries)]
    columns = [Column(f"{METRIC_NAMES[m]} (%)") for m in metrics]
    columns += [Column(f"Δ {METRIC_NAMES[view.main]}", signed=True), Column("p", 3, least=True)]
    for m in published:
        columns += [Column(f"paper {METRIC_NAMES[m]}"), Column(f"{METRIC_NAMES[m]} − paper", signed=True)]
    grid = Grid(name, [head], columns)
    p = view.p_values(experiment)
    reference = experiment.reference and view.summary(experiment, experiment.reference, view.main)
    for label in (*(entry.label for entry in experiment.entries), *more):
        ours = {m: view.summary(experiment, label, m) for m in {*metrics, *published, view.main}}
        cells: list[Cell] = [ours[m] for m in metrics]
        main = ours[view.main]
        itself = label == experiment.reference
        cells += [main.minus(reference) if main and reference and not itself else None, p.get(label)]
        for m, rows in published.items():
            figure, own = rows.get(label), ours[m]
            cells += [figure, own.mean - figure.mean if figure and own else None]
        grid.add([label], cells)
    return grid.without_empty()


def _paper_table(name: str, head: str, by_data: Mapping[str, Mapping[str, Mapping[str, Published]]]) -> Grid:
    """Lay out the paper's figures of all its data sets: data set → metric → row → figure."""
    columns = [Column(f"{DATA_SETS[data]} {METRIC_NAMES[m]}") for data, metrics in by_data.items() for m in metrics]
    labels = dict.fromkeys(row for metrics in by_data.values() for rows in metrics.values() for row in rows)
    grid = Grid(name, [head], columns)
    for row in labels:
        grid.add([row], [rows.get(row) for metrics in by_data.values() for rows in metrics.values()])
    return grid


def _methods(experiments: Sequence[Experiment], view: View) -> Part:
    (experiment,) = experiments
    part = Part(
        "methods",
        "Table 1: methods",
        "IEF-VAD with its two noise models, and other methods on the same features, with the same splits, selection and"
        " seeds. Δ: mean paired difference from the first row. " + _TEST,
    )
    published = paper().methods.get(view.data or "", {})
    only = [row for rows in published.values() for row in rows if row not in {e.label for e in experiment.entries}]
    part.grids.append(_compared("methods", "method", experiment, view, published, list(dict.fromkeys(only))))
    if view.data is None:
        part.reference.append(_paper_table("methods", "method", paper().methods))
    part.findings += _best_finding(experiment, view, "method")
    student, gaussian = (view.summary(experiment, label, view.main) for label in (STUDENT, GAUSSIAN))
    if student and gaussian and (difference := student.minus(gaussian)):
        part.findings.append(
            f"Student-t minus Gaussian: {_points(difference)} ({_tested(paired_p(student, gaussian))})."
            " The paper reports a gain of 0.56 points AUC on UCF-Crime, 0.45 points AP on XD-Violence, and 0.07 and"
            " 0.63 points AUC on ShanghaiTech and MSAD."
        )
    if published:
        part.findings.append(
            "Published figures of other methods come from their own features and training, ours from the features at"
            " hand. A difference to the paper in these rows is no fault of either."
        )
    return part


def _ablations(experiments: Sequence[Experiment], view: View) -> Part:
    part = Part(
        "ablations",
        "Tables 3 and 4: hyperparameters",
        "One hyperparameter is varied, the others stay. ν: degrees of freedom. N: refinement steps. ε: added to"
        " variances. λ: part of the predicted residual that a refinement step subtracts. Δ: mean paired difference from"
        " the default. p: paired t-test of it over seeds (and folds), Holm-corrected for each hyperparameter.",
    )
    panels = []
    for experiment in experiments:
        name = experiment.name
        symbol, _ = HYPERPARAMETERS[name]
        tables = paper().ablations

        published = _labelled(symbol, tables[view.data][name]) if view.data else {}
        part.grids.append(_compared(f"ablation-{name.replace('_', '-')}", symbol, experiment, view, published))
        panels.append(_panel(experiment, view))
        part.findings += _ablation_findings(experiment, view)
        if view.data is None:
            by_data = {data: _labelled(symbol, parameters[name]) for data, parameters in tables.items()}
            part.reference.append(_paper_table(f"ablation-{name.replace('_', '-')}", symbol, by_data))
    figure = sensitivity([panel for panel in panels if panel], f"Δ {METRIC_NAMES[view.main]}, points")
    if figure:
        part.figures["ablations"] = (figure, "Change of the metric with each hyperparameter")
    return part


def _labelled(symbol: str, metrics: Mapping[str, Mapping[float, Published]]) -> dict[str, dict[str, Published]]:
    """Return the paper's figures by the labels of our entries."""
    return {m: {f"{symbol} = {number(v)}": figure for v, figure in rows.items()} for m, rows in metrics.items()}


def _panel(experiment: Experiment, view: View) -> Panel | None:
    """Return the differences from the reference, ours and the paper's."""
    reference = experiment.reference and view.summary(experiment, experiment.reference, view.main)
    if not reference:
        return None
    symbol, _ = HYPERPARAMETERS[experiment.name]
    ours, spread = [], []
    for entry in experiment.entries:
        found = view.summary(experiment, entry.label, view.main)
        difference = found.minus(reference) if found else None
        ours.append(difference.mean if difference else np.nan)
        spread.append((difference.deviation if difference else None) or 0.0)
    lines = [Line("here", "fusion", ours, spread)]
    shown = [view.data] if view.data else ["ucf-crime"]
    for data in shown:
        rows = next(iter(paper().ablations[data][experiment.name].values()))
        default = next(e.value for e in experiment.entries if e.label == experiment.reference)
        base = rows.get(default)
        if base:
            values = [rows[v].mean - base.mean if v in rows else np.nan for v in (e.value for e in experiment.entries)]
            lines.append(Line(f"paper, {DATA_SETS[data]}", "other1", values))
    return Panel(symbol, [number(entry.value) for entry in experiment.entries], lines)


def _ablation_findings(experiment: Experiment, view: View) -> list[str]:
    symbol, _ = HYPERPARAMETERS[experiment.name]
    means = {e.label: s.mean for e in experiment.entries if (s := view.summary(experiment, e.label, view.main))}
    if len(means) < 2:
        return []
    best = max(means, key=lambda label: means[label])
    text = (
        f"{symbol}: highest {METRIC_NAMES[view.main]} at {best} ({means[best]:.2f}), lowest {min(means.values()):.2f}."
    )
    if experiment.reference in means:
        p = view.p_values(experiment)
        worse = [label for label in p if _significant(p[label]) and means.get(label, 0) < means[experiment.reference]]
        better = [label for label in p if _significant(p[label]) and means.get(label, 0) > means[experiment.reference]]
        known = list(p.values())
        if not known:
            text += f" No test against {experiment.reference}: it needs three trainings each, and differences."
        elif not worse and not better:
            text += f" No value differs from {experiment.reference} by a paired test (smallest p {min(known):.3f})."
        else:
            text += f" Worse than {experiment.reference}: {', '.join(worse) or 'none'};"
            text += f" better: {', '.join(better) or 'none'} (p < {LEVEL})."
    peaks = []
    for data, parameters in paper().ablations.items():
        if view.data in (None, data):
            rows = next(iter(parameters[experiment.name].values()))
            top = max(rows, key=lambda value: rows[value].mean)
            peaks.append((f"{symbol} = {number(top)}", DATA_SETS[data]))
    same = sum(label == best for label, _ in peaks)
    where = "; ".join(
        f"at {label} on {', '.join(name for other, name in peaks if other == label)}"
        for label in dict.fromkeys(label for label, _ in peaks)
    )
    text += f" The paper's highest mean is {where}: "
    return [text + ("as here." if same == len(peaks) else "as here on some." if same else "not so here.")]


def _losses(experiments: Sequence[Experiment], view: View) -> Part:
    (experiment,) = experiments
    part = Part(
        "losses",
        "Table 5: loss terms",
        "cls: classification loss alone. reg: regularisation terms. KL: divergence terms. Δ: mean paired difference"
        " from the full loss. " + _TEST,
    )
    part.grids.append(_compared("losses", "loss", experiment, view, paper().losses.get(view.data or "", {})))
    if view.data is None:
        part.reference.append(_paper_table("losses", "loss", paper().losses))
    part.findings += _best_finding(experiment, view, "configuration")
    part.findings.append("In the paper the full loss has the highest mean on all four data sets.")
    return part


def _best_finding(experiment: Experiment, view: View, what: str) -> list[str]:
    """Say which entry is highest, and where the reference stands against the others."""
    means = {e.label: s.mean for e in experiment.entries if (s := view.summary(experiment, e.label, view.main))}
    reference = experiment.reference
    if reference not in means or len(means) < 2:
        return []
    best = max(means, key=lambda label: means[label])
    name = METRIC_NAMES[view.main]
    place = sorted(means.values(), reverse=True).index(means[reference]) + 1
    text = f"Highest {name} of {len(means)}: {best} ({means[best]:.2f})."
    if best != reference:
        text += f" {reference} is number {place} ({means[reference]:.2f})."
    p = view.p_values(experiment)
    if not p:
        return [text + " Fewer than three trainings each, or no differences, allow no test."]
    below = [label for label, value in p.items() if _significant(value) and means[label] < means[reference]]
    above = [label for label, value in p.items() if _significant(value) and means[label] > means[reference]]
    text += (
        f" Beyond chance (p < {LEVEL}) {reference} is above {_counted(below, what)} and below {_counted(above, what)}."
    )
    return [text]


def _counted(labels: Sequence[str], what: str) -> str:
    return ", ".join(labels) if labels else f"no {what}"


def _significant(p: float | None) -> bool:
    return p is not None and p < LEVEL


def _points(difference: Summary) -> str:
    deviation = "" if difference.deviation is None else f" ± {difference.deviation:.2f}"
    return f"{difference.mean:+.2f}{deviation} points"


def _tested(p: float | None) -> str:
    return "no test" if p is None else f"paired t-test p = {p:.3f}"


def _classes(experiments: Sequence[Experiment], view: View) -> Part:
    (experiment,) = experiments
    name = view.main
    documents = {stream: view.outcomes.documents(experiment.name, stream) for stream in STREAMS}
    part = Part(
        "classes",
        "Appendix F and Figure 2: anomaly classes",
        f"{METRIC_NAMES[name]} within the videos of one class, of networks of the image stream, the event stream and"
        " both.",
    )
    counts = classes_of([document for each in documents.values() for document in each])
    published = paper().classes.get(view.data or "")
    columns = [Column(f"{stream} {METRIC_NAMES[name]} (%)") for stream in STREAMS]
    columns += [Column(f"paper {stream}") for stream in STREAMS] if published else []
    grid = Grid("classes", ["class", "videos"], columns)
    ours: dict[str, dict[str, Summary | None]] = {}
    for code in counts:
        ours[code] = {s: view.outcomes.summary(experiment.name, s, of_class(code, name)) for s in STREAMS}
        cells: list[Cell] = [ours[code][stream] for stream in STREAMS]
        title = readable(code, view.data)
        if published:
            row = _same_class(title, published.rows)
            cells += [row.get(stream) for stream in STREAMS]
        grid.add([title, str(counts[code])], cells)
    for m in view.metrics:
        cells = [view.summary(experiment, stream, m) for stream in STREAMS]
        if published:
            cells += [published.total.get(m, {}).get(stream) for stream in STREAMS]
        if any(cells):
            grid.add([f"all videos, {METRIC_NAMES[m]}", ""], cells)
    part.grids.append(grid)
    if view.data is None:
        part.reference.append(_paper_classes())
    drawn = {stream: mean_metrics(documents[stream]) for stream in STREAMS}
    for found in drawn.values():
        found["per_class"] = {readable(code, view.data): row for code, row in found["per_class"].items()}
    if figure := radar(drawn, name):
        part.figures["classes"] = (figure, f"{METRIC_NAMES[name]} per anomaly class and stream")
    part.findings += _class_findings(ours, view)
    return part


def _paper_classes() -> Grid:
    grid = Grid("classes", ["data set", "class"], [Column(stream) for stream in STREAMS])
    for data, found in paper().classes.items():
        for row, figures in found.rows.items():
            grid.add([f"{DATA_SETS[data]} ({METRIC_NAMES[found.metric]})", row], [figures[s] for s in STREAMS])
        for m, figures in found.total.items():
            grid.add([DATA_SETS[data], f"all videos, {METRIC_NAMES[m]}"], [figures[s] for s in STREAMS])
    return grid


def _same_class(name: str, rows: Mapping[str, Mapping[str, Published]]) -> Mapping[str, Published]:
    """Return the paper's row of a class, however it is written."""

    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower() if letter.isalnum())

    return next((figures for row, figures in rows.items() if plain(row) == plain(name)), {})


def _class_findings(ours: Mapping[str, Mapping[str, Summary | None]], view: View) -> list[str]:
    full = {code: {s: v.mean for s, v in row.items() if v} for code, row in ours.items()}
    full = {code: row for code, row in full.items() if len(row) == len(STREAMS)}
    if not full:
        return ["No class has a value in all three streams: its videos are abnormal as a whole, or there are none."]
    best = sum(max(row, key=lambda s: row[s]) == "fusion" for row in full.values())
    moved = [readable(code, view.data) for code, row in full.items() if row["event"] > row["image"]]
    text = f"Fusion is highest in {best} of {len(full)} classes."
    text += f" The event stream is above the image stream in {', '.join(moved) if moved else 'no class'}."
    shares = []
    for data, found in paper().classes.items():
        if view.data in (None, data):
            wins = sum(max(row, key=lambda s: row[s].mean) == "fusion" for row in found.rows.values())
            shares.append(f"{wins} of {len(found.rows)} on {DATA_SETS[data]}")
    return [text, f"In the paper's tables fusion is highest in {', '.join(shares)}."]


def _robustness(experiments: Sequence[Experiment], view: View) -> Part:
    (experiment,) = experiments
    part = Part(
        "robustness",
        "Appendix H: robustness",
        "Part of one modality is damaged and all test videos are scored again. KL: distance of the predictions from"
        " those on clean features. w_img, w_evt: mean weights.",
    )
    measured = [d["robustness"] for d in view.outcomes.documents(experiment.name, "fusion") if d.get("robustness")]
    part.about += _damage_text(measured[0]) if measured else ""
    damage = measured[0][-1].get("damage") if measured else None
    names = {"auc": Column("AUC (%)"), "ap": Column("AP (%)"), "ano_auc": Column("Ano-AUC (%)")}
    shown = {view.main: names[view.main], "brier": Column("Brier", 4), "kl": Column("KL", 4)}
    for key in ROBUSTNESS_COLUMNS[2:]:
        shown[key] = Column(key.replace("_", " ", 2).replace("w ", "w_", 1), 4)
    published = paper().robustness.get(view.data or "")
    columns = [*shown.values()]
    if published:
        columns += [Column(f"paper {METRIC_NAMES[published.metric]}"), Column("paper KL", 4), Column("paper w_img", 4)]
    grid = Grid("robustness", ["damaged", "ratio"], columns)
    settings = [("none", 0.0), *((masked, ratio) for masked in ("event", "image") for ratio in RATIOS)]
    means = []
    for masked, ratio in settings:
        values = {k: view.outcomes.summary(experiment.name, "fusion", of_damage(masked, ratio, k)) for k in shown}
        if not any(values.values()):
            continue
        cells: list[Cell] = list(values.values())
        if published:
            row = published.rows.get((masked, ratio), {})
            cells += [row.get(published.metric), row.get("kl"), row.get("w_img")]
        grid.add([masked, f"{ratio:.0%}"], cells)
        values["shift"] = view.outcomes.summary(experiment.name, "fusion", of_damage(masked, ratio, "shift"))
        means.append({"masked": masked, "ratio": ratio, "damage": damage} | _plotted(values))
    part.grids.append(grid.without_empty())
    if view.data is None:
        part.reference.append(_paper_robustness())
    if figure := robustness_plot(means):
        part.figures["robustness"] = (figure, "Metrics against the damaged fraction of one modality")
    for masked in ("image", "event"):
        part.findings += _direction(experiment, view, masked)
    rises = [
        f"{DATA_SETS[data]} {found.rows['none', 0.0]['w_img'].mean:.4f} to {found.rows['image', 0.5]['w_img'].mean:.4f}"
        for data, found in paper().robustness.items()
        if view.data in (None, data)
    ]
    part.findings.append(
        "The paper says that w_img falls when the image is masked. Its tables show a rise, from no mask to half of the"
        f" dimensions: {'; '.join(rises)}."
    )
    return part


def _plotted(values: Mapping[str, Summary | None]) -> dict[str, Any]:
    """Return figures as `plots.robustness` takes them: areas as fractions, and deviations."""
    scales = {key: 100 if key in PERCENT else 1 for key in values}
    means: dict[str, Any] = {key: v.mean / scales[key] for key, v in values.items() if v}
    spread = {key: v.deviation / scales[key] for key, v in values.items() if v and v.deviation is not None}
    return means | {"std": spread}


def _direction(experiment: Experiment, view: View, masked: str) -> list[str]:
    """Say whether the weights leave the damaged stream, at the largest ratio."""
    ratio = max(RATIOS)
    weight = "w_img" if masked == "image" else "w_evt"

    def change(name: str) -> tuple[Summary | None, float | None]:
        clean, damaged = (
            view.outcomes.summary(experiment.name, "fusion", of_damage(which, part, name))
            for which, part in (("none", 0.0), (masked, ratio))
        )
        return (damaged.minus(clean), paired_p(damaged, clean)) if clean and damaged else (None, None)

    difference, p = change(weight)
    if difference is None:
        return []
    lost, _ = change(view.main)
    text = f"With {ratio:.0%} of the {masked} damaged"
    text += f", {METRIC_NAMES[view.main]} changes by {_points(lost)} and" if lost else ""
    deviation = "" if difference.deviation is None else f" ± {difference.deviation:.4f}"
    text += f" {weight} changes by {difference.mean:+.4f}{deviation} ({_tested(p)})"
    if p is not None and not _significant(p):
        return [f"{text}: no move beyond chance."]
    return [f"{text}: the weights {'leave' if difference.mean < 0 else 'do not leave'} the damaged stream."]


def _damage_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what damage is."""
    row = rows[-1]
    towards = "the mean of the training features" if row.get("mask") == "mean" else "zero"
    what = "Feature dimensions become" if row.get("damage") != "segments" else "Whole time steps shrink to"
    zero = " The paper masks to zero." if row.get("mask") == "mean" else ""
    return f" {what} {towards}, {row.get('draws', 1)} times drawn.{zero}"


def _paper_robustness() -> Grid:
    columns = [Column("AUC or AP"), Column("Brier", 4), Column("KL", 4), Column("w_img", 4), Column("w_evt", 4)]
    grid = Grid("robustness", ["data set", "damaged", "ratio"], columns)
    for data, found in paper().robustness.items():
        for (masked, ratio), row in found.rows.items():
            if ratio in (0.0, max(RATIOS)):
                keys = (found.metric, "brier", "kl", "w_img", "w_evt")
                grid.add([DATA_SETS[data], masked, f"{ratio:.0%}"], [row[key] for key in keys])
    return grid


def _shifts(experiments: Sequence[Experiment], view: View) -> Part:
    (experiment,) = experiments
    part = Part(
        "shifts",
        "Figure 3: shift of the weights per dimension",
        "Part of the feature dimensions of one modality is masked, once drawn: by the mean of the training features"
        " where the network standardises them, otherwise by 0. Δw: change of the mean image weight of each"
        " dimension of the network, over all test segments.",
    )
    documents = [d for d in view.outcomes.documents(experiment.name, "fusion") if d.get("shifts")]
    columns = [Column("mean Δw", 4, True), Column("smallest", 4, True), Column("largest", 4, True)]
    columns += [Column("falling (%)", 1), Column("mean |Δw|", 4)]
    grid = Grid("shifts", ["masked", "ratio"], columns)
    for masked in ("image", "event"):
        for ratio in dict.fromkeys(key for document in documents for key in document["shifts"][masked]):
            takes = [_of_shifts(masked, ratio, value) for value in _SHIFT_FIGURES]
            cells = [view.outcomes.summary(experiment.name, "fusion", take) for take in takes]
            grid.add([masked, f"{float(ratio):.0%}"], cells)
            if masked == "image" and cells[0] and ratio == max(documents[0]["shifts"][masked], key=float):
                way = "falls" if cells[0].mean < 0 else "rises"
                part.findings.append(
                    f"With {float(ratio):.0%} of the image masked, the mean image weight {way}"
                    f" ({cells[0].mean:+.4f}); single dimensions move by up to"
                    f" {max(abs(cells[1].mean), abs(cells[2].mean)) if cells[1] and cells[2] else 0:.3f}."
                    " The paper says that it falls; see Appendix H for what its tables show."
                )
    part.grids.append(grid)
    if documents:
        part.figures["shifts"] = (shift_plot(documents[0]["shifts"]), "Change of the image weight of each dimension")
        part.findings.append("The curves are of the first network; dimensions of two networks do not correspond.")
    return part


_SHIFT_FIGURES: tuple[Callable[[np.ndarray], float], ...] = (
    np.mean,
    np.min,
    np.max,
    lambda values: 100 * float(np.mean(values < 0)),
    lambda values: float(np.mean(np.abs(values))),
)


def _of_shifts(masked: str, ratio: str, value: Callable[[np.ndarray], float]) -> Value:
    """Return what takes a figure of the shifts of all dimensions."""

    def take(document: Document) -> float | None:
        found = (document.get("shifts") or {}).get(masked, {}).get(ratio)
        return None if found is None else float(value(np.array(found)))

    return take
