"""The figures of the paper, as `published.yaml` holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

DATA_SETS = {"ucf-crime": "UCF-Crime", "xd-violence": "XD-Violence", "shanghaitech": "ShanghaiTech", "msad": "MSAD"}
"""Preset → name of the data set in the paper."""

STUDENT, GAUSSIAN = "IEF-VAD (Student-t)", "IEF-VAD (Gaussian)"

BASELINE_NAMES = {
    "sultani": "Sultani et al.",
    "rtfm": "RTFM",
    "ur-dmu": "UR-DMU",
    "vadclip": "VadCLIP",
    "mgfn": "MGFN",
}
"""Baseline → its row of Table 1. Rows that name other features, such as MGFN (I3D), are the paper's alone."""


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        mean: The figure, in percent where it is an area.
        deviation: Its standard deviation over ten runs; None where the paper gives none.
    """

    mean: float
    deviation: float | None = None


ByMetric = Mapping[str, Mapping[str, Published]]
"""Metric ("auc", "ano_auc", "ap") → row → figure."""


@dataclass(frozen=True)
class Classes:
    """Appendix F on one data set: per class, and over all test videos, the figures of image, event and fusion."""

    metric: str
    rows: Mapping[str, Mapping[str, Published]]
    total: Mapping[str, Mapping[str, Published]]


ROBUSTNESS_COLUMNS = (
    "brier", "kl", "w_img", "w_img_abnormal", "w_img_normal", "w_evt", "w_evt_abnormal", "w_evt_normal",
)  # fmt: skip
"""Columns of Appendix H's tables behind AUC or AP, as `scoring.metrics.robustness_row` names them."""


@dataclass(frozen=True)
class Robustness:
    """Appendix H on one data set: (masked modality, ratio) → column → figure. The first column is `metric`."""

    metric: str
    rows: Mapping[tuple[str, float], Mapping[str, Published]]


@dataclass(frozen=True)
class Paper:
    """All figures, by preset of the data set.

    Attributes:
        methods: Table 1.
        ablations: Tables 3 and 4: data set → hyperparameter → metric → value.
        losses: Table 5.
        classes: Appendix F.
        robustness: Appendix H.
    """

    methods: Mapping[str, ByMetric]
    ablations: Mapping[str, Mapping[str, Mapping[str, Mapping[float, Published]]]]
    losses: Mapping[str, ByMetric]
    classes: Mapping[str, Classes]
    robustness: Mapping[str, Robustness]


@cache
def paper() -> Paper:
    """Return the figures of the paper."""
    text = resources.files("iefvad.reproduce").joinpath("published.yaml").read_text(encoding="utf-8")
    raw: dict[str, Any] = yaml.safe_load(text)
    streams = ("image", "event", "fusion")

    def by_stream(rows: dict[str, list[float]]) -> dict[str, dict[str, Published]]:
        return {str(name): dict(zip(streams, map(_figure, values), strict=True)) for name, values in rows.items()}

    ablations: dict[str, dict[str, dict[str, dict[float, Published]]]] = {}
    for data, metrics in raw["ablations"].items():
        for metric, parameters in metrics.items():
            for parameter, values in parameters.items():
                found = ablations.setdefault(data, {}).setdefault(parameter, {})
                found[metric] = {float(value): _figure(figure) for value, figure in values.items()}
    robustness = {}
    for data, part in raw["robustness"].items():
        columns = (part["metric"], *ROBUSTNESS_COLUMNS)
        rows = {
            (str(masked), float(ratio)): dict(zip(columns, map(_figure, values), strict=True))
            for masked, ratio, *values in part["rows"]
        }
        robustness[data] = Robustness(part["metric"], rows)
    return Paper(
        methods=_by_metric(raw["table1"]),
        ablations=ablations,
        losses=_by_metric(raw["losses"]),
        classes={
            data: Classes(part["metric"], by_stream(part["rows"]), by_stream(part["total"]))
            for data, part in raw["classes"].items()
        },
        robustness=robustness,
    )


def _by_metric(raw: dict[str, Any]) -> dict[str, dict[str, dict[str, Published]]]:
    return {
        data: {metric: {str(row): _figure(figure) for row, figure in rows.items()} for metric, rows in metrics.items()}
        for data, metrics in raw.items()
    }


def _figure(value: Any) -> Published:
    return Published(*map(float, value)) if isinstance(value, list) else Published(float(value))
