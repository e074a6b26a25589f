"""`iefvad train --normal-only` and the commands that take its runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from iefvad.checkpoints.hub import IEFVAD, NormalOnly, load_trained
from iefvad.cli.calibrate import main as calibrate
from iefvad.cli.detect import main as detect
from iefvad.cli.evaluate import main as evaluate
from iefvad.cli.extract import main as extract
from iefvad.cli.train import main as train
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.model.normality.config import CAVEAT
from iefvad.scoring.scorer import Scorer
from iefvad.training.settings import TrainConfig, load_config, resolve
from iefvad.utils.errors import UserError
from tests.helpers.stores import write_store


def flags(store: Path, out: Path, *more: str) -> list[str]:
    return ["--normal-only", "--features", str(store), "--out", str(out), "--device", "cpu", *more]


def normal_lists(store: Path) -> None:
    """Leave only the normal videos in train.csv, and no test list."""
    rows = (store / "train.csv").read_text().splitlines()
    (store / "train.csv").write_text("\n".join([rows[0], *(row for row in rows if row.endswith("Normal"))]) + "\n")
    for name in ("test.csv", "annotations.txt"):
        (store / name).unlink()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), train=64, test=16)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(flags(store, out, "--modality", "all")) == 0
    return out


@pytest.fixture
def no_pages(monkeypatch):
    """Leave the pages of runs out, whose figures take most of the time."""
    monkeypatch.setattr("iefvad.training.results.write_run_report", lambda folder: folder / "report.html")


def test_it_finds_what_normal_footage_does_not_have(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"normal-only", "normal-only (image)", "normal-only (event)", "event density"} <= metrics.keys()
    found = metrics["normal-only"]
    assert found["auc"] > 0.9
    assert metrics["normal-only (event)"]["per_class"]["Run"]["auc"] > 0.9
    assert metrics["normal-only (event)"]["per_class"]["Smoke"]["auc"] < 0.8
    assert found["brier"] is None
    assert found["ece"] is None
    assert found["threshold"] == 0.5
    assert found["false_alarms"]["held_out"]["videos"] == 32
    assert found["false_alarms"]["normal_test_videos"]["videos"] == 8
    assert metrics["run"]["model"] == "normal-only"
    assert metrics["run"]["notes"][0] == CAVEAT
    assert any("32 training videos with anomalies were left out" in note for note in metrics["run"]["notes"])
    page = (run / "report.html").read_text()
    assert page.index(CAVEAT) < page.index("ranks frames with an AUC")
    config = load_config(run / "config.yaml")
    assert (config.normal_only, config.density) == (True, "knn")


def test_evaluation_has_the_figures_of_the_run(run, store, tmp_path, capsys):
    made = json.loads((run / "metrics.json").read_text())
    assert evaluate([str(run), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for name in ("normal-only", "normal-only (image)", "event density"):
        assert again[name] == made[name]
    assert again["run"]["notes"] == made["run"]["notes"]
    assert "robustness" not in again
    load_trained(run).save_pretrained(tmp_path / "saved")
    assert CAVEAT in (tmp_path / "saved" / "README.md").read_text()
    assert evaluate([str(tmp_path / "saved"), "--features", str(store)]) == 0
    again = json.loads((tmp_path / "saved" / "metrics.json").read_text())
    assert again["normal-only"] == made["normal-only"]
    assert again["run"]["notes"][0] == CAVEAT
    assert CAVEAT in (tmp_path / "saved" / "report.html").read_text()
    capsys.readouterr()
    assert evaluate([str(run), "--robustness", "features"]) == 2
    assert "--robustness features has no meaning" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gaussian", "knn"])
def test_it_is_deterministic_and_saved_bit_for_bit(run, store, tmp_path, kind, no_pages):
    # The preset decides crops and chunks. Its density prior belongs to networks.
    assert train(flags(store, tmp_path / "a", "--density", kind, "--preset", "own")) == 0
    if kind == "knn":
        weights = [load_trained(path).state_dict() for path in (run, tmp_path / "a")]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    model = IEFVAD.from_pretrained(tmp_path / "a")
    assert isinstance(model, NormalOnly)
    assert model.config.dim == 16
    model.save_pretrained(tmp_path / "saved")
    again = load_trained(tmp_path / "saved")
    features = torch.randn(2, 1, 30, 16)
    first, second = model(*features).scores, again(*features).scores
    assert torch.equal(first, second)
    assert again.provenance == model.provenance
    pieces = Scorer(model, chunk=8, hop=1)
    rows = [pieces.feed(features[0][:, t : t + 1], features[1][:, t : t + 1]) for t in range(30)]
    np.testing.assert_allclose(np.concatenate(rows)[:, 0], first[0].numpy(), rtol=3e-7)


def test_without_test_videos_nothing_is_made_up(tmp_path, capsys):
    store = write_store(tmp_path / "store", train=24)
    normal_lists(store)
    assert train(flags(store, tmp_path / "run")) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = metrics["normal-only"]
    assert [found[name] for name in ("auc", "ap", "ano_auc", "brier", "ece")] == [None] * 5
    assert found["false_alarms"]["normal_test_videos"] is None
    assert found["videos"] == found["false_alarms"]["held_out"]["videos"] == 12
    assert any("There are no test videos" in note for note in metrics["run"]["notes"])
    with (tmp_path / "run" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["video"] for row in rows} == {f"train{index:03d}" for index in range(0, 24, 2)}
    assert found["tested_on"] == "held-out normal training videos"
    assert "event density" not in metrics
    page = (tmp_path / "run" / "report.html").read_text()
    assert "There are no test videos, so it is not known what it finds" in page
    assert "of held-out normal footage (12 videos)" in page
    assert evaluate([str(tmp_path / "run")]) == 2
    assert "no test videos" in capsys.readouterr().err


def test_lists_of_files_need_no_test_list(tmp_path, capsys, no_pages):
    for name in ("rgb", "event"):
        (tmp_path / name).mkdir()
    random = np.random.default_rng(0)
    rows = ["path,label"]
    for index in range(6):
        for name in ("rgb", "event"):
            np.save(tmp_path / name / f"v{index}__0.npy", random.normal(size=(12, 16)).astype(np.float32))
        rows.append(f"rgb/v{index}__0.npy,Normal")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    given = ["--train-list", str(tmp_path / "train.csv")]
    assert train(flags(tmp_path, tmp_path / "run", *given)) == 0
    path = tmp_path / "rgb" / "v3__0.npy"
    values = np.load(path)
    values[5, 2] = np.nan
    np.save(path, values)
    assert train(flags(tmp_path, tmp_path / "bad", *given)) == 2
    assert "v3__0.npy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"epochs": 3}, "--epochs"),
        ({"model": "rtfm"}, "--model"),
        ({"seeds": [0, 1]}, "--seeds"),
        ({"lr": 1e-3}, "--lr"),
        ({"validation": 0.3}, "--validation"),
        ({"resume": True}, "--resume"),
        ({"method": "released"}, "--method"),
        ({"compare": True}, "--compare"),
        ({"log": ["wandb"]}, "--log"),
    ],
)
def test_settings_of_a_training_are_refused(given, name):
    with pytest.raises(UserError, match=f"^{name} has no meaning with --normal-only"):
        resolve(TrainConfig(features="store", normal_only=True, **given))


@pytest.mark.parametrize("vary", ["normal-only=true,false", "density=knn,gaussian"])
def test_a_sweep_does_not_vary_it(vary, store, capsys):
    from iefvad.cli.sweep import main as sweep

    assert sweep(["--features", str(store), "--vary", vary]) == 2
    assert "trains no network" in capsys.readouterr().err


def test_a_training_without_anomalies_is_pointed_to_it(tmp_path, capsys):
    store = write_store(tmp_path / "store", train=8, test=4)
    rows = (store / "train.csv").read_text().splitlines()
    kept = [rows[0], *(row for row in rows if row.endswith("Normal"))]
    (store / "train.csv").write_text("\n".join(kept) + "\n")
    assert (
        train(["--features", str(store), "--out", str(tmp_path / "run"), "--validation", "0", "--select", "last"]) == 2
    )
    assert "--normal-only makes a detector" in capsys.readouterr().err


def test_a_density_needs_normal_only():
    with pytest.raises(UserError, match="--density gaussian needs --normal-only"):
        resolve(TrainConfig(features="store", density="gaussian"))


def test_the_run_has_a_folder_of_its_own_and_can_be_made_again(run):
    assert resolve(TrainConfig(features="store", normal_only=True)).run_dir == Path("runs/normal")
    # All that config.yaml holds is accepted again.
    assert resolve(load_config(run / "config.yaml")).normal_only


def test_refusals_of_data(tmp_path, capsys, no_pages):
    store = write_store(tmp_path / "store", train=4, test=4)
    rows = (store / "train.csv").read_text().splitlines()
    for kept, message in (
        ([row for row in rows if not row.endswith("Normal")], "needs normal training videos"),
        ([rows[0], next(row for row in rows if row.endswith("Normal"))], None),
    ):
        (store / "train.csv").write_text("\n".join(kept) + "\n")
        status = train(flags(store, tmp_path / ("bad" if message else "one")))
        assert status == (2 if message else 0)
        if message:
            assert message in capsys.readouterr().err
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert any("With a single normal video" in note for note in metrics["run"]["notes"])


def noisy_video(path: Path, *, seed: int, burst: range = range(0)) -> Path:
    """Write a video of a still picture with noise. A block flickers in the segments of `burst`."""
    random = np.random.default_rng(seed)
    still = np.repeat(np.linspace(60, 180, 128)[None, :, None], 96, 0).repeat(3, 2)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (128, 96))
    for index in range(240):
        picture = still + random.normal(0, 8, still.shape)
        if index // 16 in burst:
            picture[30:70, 40:90] = 255 * (index % 2)
        writer.write(picture.clip(0, 255).astype(np.uint8))
    writer.release()
    return path


def test_from_cameras_to_alarms(tmp_path, capsys, no_pages):
    """Extract normal videos, make the detector, calibrate it, and flag a flicker that normal videos lack."""
    normal = tmp_path / "normal"
    normal.mkdir()
    for index in range(3):
        noisy_video(normal / f"n{index}.avi", seed=index)
    odd = noisy_video(tmp_path / "odd.avi", seed=9, burst=range(6, 9))
    store = tmp_path / "store"
    assert extract([str(normal), "--out", str(store)]) == 0
    (store / "train.csv").write_text("path,label\n" + "".join(f"n{i}.avi,Normal\n" for i in range(3)))
    run = tmp_path / "run"
    assert train(flags(store, run)) == 0
    capsys.readouterr()
    assert detect([str(run), str(odd), "--out", str(tmp_path / "found"), "--device", "cpu"]) == 0
    assert "normal footage is expected to reach it once per hour" in capsys.readouterr().out
    document = json.loads((tmp_path / "found" / "odd.json").read_text())
    assert document["rule"]["threshold"] == 0.5
    scores = [row["score"] for row in document["segments"]]
    assert sorted(np.argsort(scores)[-3:]) == [6, 7, 8]
    assert max(scores) < 1
    assert [interval["first_frame"] // 16 for interval in document["intervals"]] == [6]
    assert CAVEAT in (tmp_path / "found" / "odd.html").read_text()
    assert calibrate([str(run), str(normal), "--device", "cpu", "--false-alarms-per-hour", "60"]) == 0
    detector = Detector(run, DetectConfig(device="cpu"), live=True)
    assert "calibration.json" in detector.rule.origin
    # Segment by segment, as live, the scores are those of the file.
    live = detector(odd)
    np.testing.assert_allclose(live.scores.scores, scores, rtol=1e-6)
