"""Warnings of detection appear when they should, in the terminal, on the page and in the JSON file, and only then."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from iefvad.checkpoints.files import save_model
from iefvad.cli.detect import main
from iefvad.detection.advice import Flagged, familiar_advice, flagged_advice, model_advice, rule_advice
from iefvad.detection.threshold import Rule
from iefvad.model.standardize import Standardize
from iefvad.scoring.video_scores import VideoScores
from tests.helpers.detecting import small_detector, small_model, write_video


def scores(segments: int) -> VideoScores:
    return VideoScores("v", (), 16.0, None, np.zeros(segments, np.float32), None, None)


def test_more_than_half_flagged_is_a_warning_unless_it_is_a_short_clip():
    assert "60% of the footage" in flagged_advice(Flagged().add(scores(10), [(0.0, 6.0, 0.9)]))[0].cause
    assert flagged_advice(Flagged().add(scores(10), [(0.0, 5.0, 0.9)])) == []
    assert flagged_advice(Flagged().add(scores(9), [(0.0, 9.0, 0.9)])) == []
    both = Flagged().add(scores(5), [(0.0, 5.0, 0.9)]).add(scores(5), [(0.0, 5.0, 0.9)])
    assert len(flagged_advice(both)) == 1


def test_a_threshold_near_1_is_a_warning_with_all_its_digits():
    (found,) = rule_advice(Rule(0.99997, 0.8))
    assert "0.99997" in found.cause and "calibrate" in found.remedy
    assert rule_advice(Rule(0.99, 0.8)) == []
    assert rule_advice(Rule(0.99997, 0.8, origin="--threshold")) == []  # whoever gave it knows it


def test_features_of_another_kind_are_a_warning():
    known = Standardize(4, None)
    known.fit(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)))
    provenance = {"familiar": {"event": 1.0, "image": 1.0, "other": 1.0}}
    near, far = torch.zeros(4), torch.full((4,), 2.0)
    assert familiar_advice(provenance, {"event": known}, {"event": near}) == []
    (found,) = familiar_advice(provenance, {"event": known}, {"event": far})
    assert "event" in found.cause and "image" not in found.cause
    assert familiar_advice({}, {"event": known}, {"event": far}) == []


def test_a_model_of_rendered_scenes_is_a_warning():
    assert "rendered scenes" in model_advice({"rendered": True})[0].cause
    assert model_advice({"rendered": False}) == [] == model_advice({})


def test_a_sound_model_has_no_warning(tmp_path):
    detector = small_detector(threshold=2.0)
    assert detector(write_video(tmp_path / "a.mp4", frames=192)).warnings == []


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doubtful")
    model = small_model(standardize=True)
    provenance = model.provenance | {"rendered": True, "familiar": {"image": 1e-6, "event": 1e9}}
    save_model(folder / "model.safetensors", model, provenance)
    return folder


def test_warnings_are_in_the_terminal_on_the_page_and_in_the_json_file(doubtful, tmp_path, capsys):
    videos = [str(write_video(tmp_path / f"{name}.mp4", frames=192, seed=seed)) for seed, name in enumerate("ab")]
    assert main([str(doubtful), *videos, "--threshold", "0", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("rendered scenes only") == 1  # of the model, so once
    assert printed.count("unlike those of the training videos (distance: image") == 2
    assert printed.count("100% of the footage is flagged") == 3  # of each video, and of all
    found = json.loads((tmp_path / "out" / "a.json").read_text())["warnings"]
    assert len(found) == 3 and all(row.keys() == {"cause", "remedy"} for row in found)
    page = (tmp_path / "out" / "a.html").read_text()
    assert 'class="warnings"' in page and all(row["remedy"].split(",")[0].split("(")[0] in page for row in found)
