"""The reliability diagram."""

from __future__ import annotations

import numpy as np

from iefvad.report.reliability import reliability_diagram
from tests.scoring.test_metrics import video


def test_models_without_probabilities_are_left_out():
    truth = np.repeat([0, 1], 16)
    models = {"fusion": [video(scores=[0.1, 0.9], truth=truth)], "density": [video(scores=[0.0, 7.0], truth=truth)]}
    figure = reliability_diagram(models)
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fusion, ECE 0.100"]
    _, line = figure.axes[0].lines
    assert line.get_xydata().round(6).tolist() == [[0.1, 0.0], [0.9, 1.0]]
    assert reliability_diagram({"density": models["density"]}) is None
