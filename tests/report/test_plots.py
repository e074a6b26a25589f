"""Plots of metrics: colours, legends, ends of axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from iefvad.report import plots
from iefvad.report.radar import radar
from iefvad.report.style import OTHERS, PALETTE, token_of
from tests.report.test_run_page import NASTY

MODELS = ["fusion", "image", "event", "fusion (q = 0.4)", "fusion (paper)", "fusion (released)", "event density"]
BASELINES = ["concat", "cross-attention", "sultani", "rtfm", "ur-dmu", "vadclip", "mgfn"]


def class_metrics(models, classes):
    random = np.random.default_rng(1)
    values = {model: random.uniform(0.4, 1, len(classes)) for model in models}
    return {
        model: {
            "per_class": {c: {"auc": float(v), "ap": float(v), "videos": 4} for c, v in zip(classes, row, strict=True)}
        }
        for model, row in values.items()
    }


def overlaps(first, second):
    return first.x0 < second.x1 and second.x0 < first.x1 and first.y0 < second.y1 and second.y0 < first.y1


def test_a_model_has_one_colour_whatever_is_beside_it():
    tokens = [token_of(model) for model in (*MODELS, *BASELINES)]
    assert len(set(tokens)) == len(tokens) and set(tokens) <= set(PALETTE)
    assert token_of("rtfm (image)") == "image" and token_of("rtfm (event)") == "event"
    assert token_of("image (paper)") == token_of("fusion (paper)")
    assert token_of("of another name") in OTHERS
    assert len(set(itertools.chain(*PALETTE.values()))) == 2 * len(PALETTE)


@pytest.mark.parametrize("models", [MODELS[:3], MODELS + BASELINES])
def test_radar_has_a_closed_line_per_model_and_ends_at_1(models):
    classes = [NASTY, "RoadAccidents", "Shoplifting", "Fight", "A class of a very long name indeed"]
    metrics = class_metrics(models, classes)
    metrics["fusion"]["per_class"]["Fight"]["auc"] = None
    figure = radar(metrics)
    [ax] = figure.axes
    lines = [line for line in ax.lines if len(line.get_xdata()) == len(classes) + 1]
    assert len(lines) == len(models)
    for line in lines:
        np.testing.assert_equal(line.get_ydata()[0], line.get_ydata()[-1])
    assert sum(np.isnan(line.get_ydata()).sum() for line in lines) == 1
    assert ax.get_ylim()[1] == 1
    figure.canvas.draw()
    names = [text.get_window_extent() for text in ax.get_xticklabels()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in names), "a name is cut"
    [legend] = figure.legends
    assert not any(overlaps(box, legend.get_window_extent()) for box in (*names, ax.patch.get_window_extent()))
    assert not any(overlaps(a, b) for a, b in itertools.combinations(names, 2))


def test_radar_needs_three_classes():
    assert radar(class_metrics(["fusion"], ["a", "b"])) is None
    assert radar({"fusion": {"per_class": {}}}) is None and radar({}) is None
    assert radar(class_metrics(["fusion"], ["a", "b", "c"]), "ap") is not None


@pytest.mark.parametrize(("models", "number"), [(3, 2), (6, 13), (14, 13)])
def test_bars_of_many_classes_do_not_get_thin_and_their_names_do_not_overlap(models, number):
    metrics = class_metrics((MODELS + BASELINES)[:models], [f"RoadAccident{i}" for i in range(number)])
    figure = plots.class_bars(metrics)
    figure.canvas.draw()
    bars = [bar for ax in figure.axes for bar in ax.patches]
    assert len(bars) == models * number
    assert min(bar.get_window_extent().width for bar in bars) > 4  # pixels of 100 per inch
    for ax in figure.axes:
        names = [text.get_window_extent() for text in ax.get_xticklabels()]
        assert not any(overlaps(a, b) for a, b in itertools.pairwise(names))
        assert ax.get_ylim() == (0, 1)
    assert not any(overlaps(ax.get_tightbbox(), figure.legends[0].get_window_extent()) for ax in figure.axes)
