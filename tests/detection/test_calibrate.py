"""`iefvad calibrate`: the lowest threshold that keeps to a rate, and detection that uses it."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from iefvad.checkpoints.calibration import Calibration
from iefvad.checkpoints.files import save_model
from iefvad.checkpoints.hub import IEFVAD
from iefvad.cli.calibrate import main
from iefvad.cli.detect import main as detect
from iefvad.detection.calibrate import CalibrateConfig, calibrate, find_threshold, poisson_bound
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.threshold import Rule
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT
from tests.helpers.detecting import small_detector, small_model, write_video

FPS = 16.0  # a segment is a second


def footage(seed: int, segments: int = 400, videos: int = 3) -> list[VideoScores]:
    """Smooth random scores, as a model gives them for normal footage."""
    random = np.random.default_rng(seed)
    result = []
    for index in range(videos):
        noise = np.convolve(random.normal(size=segments + 4), np.ones(5) / 5, "valid")
        result.append(VideoScores(f"v{index}", (), FPS, None, 1 / (1 + np.exp(-2 * noise))))
    return result


def rate(videos: list[VideoScores], rule: Rule) -> float:
    hours = sum(v.seconds for v in videos) / 3600
    return sum(len(rule.intervals(v)) for v in videos) / hours


@pytest.mark.parametrize("allowed", [0.0, 10.0, 40.0, 100.0])
@pytest.mark.parametrize(("low_share", "merge_gap", "min_length"), [(1.0, 0, 0), (0.8, 3.0, 0), (0.9, 2.0, 3.0)])
def test_the_lowest_threshold_that_keeps_to_the_rate(allowed, low_share, merge_gap, min_length):
    videos = footage(seed=int(allowed))
    settings = {"low_share": low_share, "merge_gap": merge_gap, "min_length": min_length}
    rule = find_threshold(videos, allowed, **settings)
    assert rate(videos, rule) <= allowed
    assert rule.low == low_share * rule.threshold

    def measured(threshold: float) -> float:
        return rate(videos, Rule(threshold, low_share * threshold, merge_gap, min_length))

    # By brute force: no higher threshold exceeds the rate, and the next lower threshold does.
    values = np.unique(np.concatenate([v.scores.astype(np.float64) for v in videos]))
    grid = np.unique(np.concatenate([values, values / low_share]))
    assert all(measured(t) <= allowed for t in grid[grid >= rule.threshold])
    assert measured(rule.threshold * (1 - 1e-9)) > allowed


def test_a_rate_that_everything_keeps_to_is_refused():
    flat = [VideoScores("v", (), FPS, None, np.linspace(0.1, 0.2, 50))]
    with pytest.raises(UserError, match="every threshold"):
        find_threshold(flat, 100.0)


@pytest.mark.parametrize(
    ("rate", "settings", "message"),
    [
        (-1.0, {}, "per-hour"),
        (math.nan, {}, "per-hour"),
        (1.0, {"low_share": 0.0}, "low-share"),
        (1.0, {}, "no footage"),
    ],
)
def test_settings_out_of_range(rate, settings, message):
    videos = [] if message == "no footage" else footage(0, videos=1)
    with pytest.raises(UserError, match=message):
        find_threshold(videos, rate, **settings)


def test_poisson_bound():
    assert poisson_bound(0) == pytest.approx(-math.log(0.05), abs=1e-6)  # the rule of three, exactly
    # P(N <= 3 | m) = 0.05, written out.
    m = poisson_bound(3)
    assert math.exp(-m) * (1 + m + m**2 / 2 + m**3 / 6) == pytest.approx(0.05, abs=1e-9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder, and normal videos beside it."""
    root = tmp_path_factory.mktemp("calibrate")
    (root / "run").mkdir()
    model = small_model()
    save_model(root / "run" / "model.safetensors", model, model.provenance)
    (root / "normal").mkdir()
    for seed in range(3):
        write_video(root / "normal" / f"n{seed}.mp4", seed=seed, frames=16 * 20, burst=range(3 + seed, 6))
    return root


@pytest.fixture(scope="module")
def calibration(folder):
    """The calibration of these videos for 100 false alarms per hour."""
    found, failed = calibrate(folder / "run", [folder / "normal"], CalibrateConfig(100, device="cpu"))
    assert not failed
    return found


def test_calibrated_detection_keeps_to_the_rate_on_that_footage(folder, capsys):
    run, normal = folder / "run", folder / "normal"
    (normal / "broken.mp4").write_bytes(b"no video")
    flags = ["--false-alarms-per-hour", "100", "--merge-gap", "1", "--device", "cpu"]
    assert main([str(run), str(normal), *flags]) == 1  # one could not be read
    captured = capsys.readouterr()
    assert captured.err.count("broken.mp4") == 1
    found = json.loads((run / "calibration.json").read_text())
    first = (run / "calibration.json").read_bytes()
    (normal / "broken.mp4").unlink()
    assert found["measured"] <= found["allowed"] == 100
    assert [row["segments"] for row in found["videos"]] == [20, 20, 20]
    assert found["hours"] == pytest.approx(60 * SEGMENT / 25 / 3600)
    assert main([str(run), str(normal), *flags]) == 0
    assert (run / "calibration.json").read_bytes() == first, "calibrating again must give the same file"

    assert detect([str(run), str(normal), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"reaches {found['threshold']:.3g}" in printed and "calibration.json" in printed
    loaded = Detector(IEFVAD.from_pretrained(run), DetectConfig(device="cpu"))
    assert loaded.rule.threshold == found["threshold"], "a loaded model must use the calibration of its folder"
    flagged = 0
    for path in sorted((run / "detections").glob("n?.json")):
        document = json.loads(path.read_text())
        assert document["rule"]["threshold"] == found["threshold"] and document["rule"]["merge_gap"] == 1
        flagged += len(document["intervals"])
    assert flagged == sum(row["flagged"] for row in found["videos"])


def test_too_little_footage_is_said_plainly(folder, tmp_path, capsys):
    flags = ["--false-alarms-per-hour", "0.5", "--device", "cpu", "--out", str(tmp_path)]
    assert main([str(folder / "run"), str(folder / "normal"), *flags]) == 0
    printed = capsys.readouterr().out
    assert "too little footage" in printed and "at least 5.99 h" in printed
    found = Calibration.read(tmp_path / "calibration.json")
    assert found.measured == 0 and found.upper_bound == pytest.approx(-math.log(0.05) / found.hours)
    highest = max(float(small_detector()(path).scores.scores.max()) for path in (folder / "normal").iterdir())
    assert highest < found.threshold < highest + 1e-6


def test_flags_win_over_the_calibration(calibration, tmp_path):
    path = tmp_path / "mine.json"
    calibration.write(path)

    def rule(**settings) -> Rule:
        return Detector(small_model(), DetectConfig(device="cpu", calibration=str(path), **settings)).rule

    assert rule().threshold == calibration.threshold and rule().low == calibration.low
    assert rule().merge_gap == 2.0 and "normal footage" in rule().origin
    assert rule(threshold=0.9) == Rule(0.9, 0.9, origin="--threshold")
    changed = rule(merge_gap=5.0, hop=1)
    assert changed.merge_gap == 5.0 and changed.threshold == calibration.threshold
    assert "--merge-gap" in changed.origin and "hop 1" in changed.origin
    with pytest.raises(UserError, match="--low"):
        rule(low=1.5)


def test_a_calibration_of_other_weights_or_of_nothing_is_refused(calibration, tmp_path):
    calibration.write(tmp_path / "c.json")
    other = small_model()
    other.classifier.bias.data.add_(0.1)
    config = DetectConfig(device="cpu", calibration=str(tmp_path / "c.json"))
    with pytest.raises(UserError, match="other weights"):
        Detector(other, config)
    assert Detector(other, DetectConfig(device="cpu", threshold=0.5)).rule.threshold == 0.5
    for text in ("", "{}", "[]", '{"threshold": "high"}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(
            UserError, match=r"c\.json (is not a calibration|is not a JSON object|cannot be read as JSON)"
        ):
            Detector(small_model(), config)
    (tmp_path / "c.json").unlink()
    with pytest.raises(UserError, match="there is no calibration"):
        Detector(small_model(), config)


def test_a_saved_model_takes_its_calibration_along(folder, calibration, tmp_path, monkeypatch):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    calibration.write(run / "calibration.json")
    model = IEFVAD.from_pretrained(run)
    model.save_pretrained(tmp_path / "saved")
    assert Detector(IEFVAD.from_pretrained(tmp_path / "saved")).rule.threshold == calibration.threshold
    written = (tmp_path / "saved" / "calibration.json").read_text()
    assert str(folder) not in written and '"n0.mp4"' in written, "names without paths"

    # From the hub's cache, with the files where a download puts them.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--owner--vad"
    shutil.copytree(tmp_path / "saved", repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    found = IEFVAD.from_pretrained("owner/vad", cache_dir=tmp_path / "cache")
    assert Detector(found).rule.threshold == calibration.threshold

    # From the hub, which is asked for the file. A model without a calibration loads too.
    def download(name: str, file: str, **options) -> str:
        asked.append(file)
        if not (served / file).exists():
            raise LocalEntryNotFoundError(file)
        return str(shutil.copy(served / file, tmp_path / "fetched"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    (tmp_path / "fetched").mkdir()
    served, asked = tmp_path / "saved", []
    found = IEFVAD.from_pretrained("owner/vad", local_files_only=True)
    assert Detector(found).rule.threshold == calibration.threshold and asked[-1] == "calibration.json"
    (served / "calibration.json").unlink()
    (tmp_path / "fetched" / "calibration.json").unlink()
    assert Detector(IEFVAD.from_pretrained("owner/vad", local_files_only=True)).rule.threshold == 0.5

    model.save_pretrained(run)
    assert Calibration.read(run / "calibration.json") == calibration, "its own is left alone"
    with torch.no_grad():
        model.classifier.bias.add_(0.1)
    model.save_pretrained(tmp_path / "trained on")
    assert not (tmp_path / "trained on" / "calibration.json").exists()
