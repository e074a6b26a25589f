"""Training, evaluation and detection with a baseline in place of IEF-VAD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from iefvad.checkpoints.hub import IEFVAD, Baseline, load_pretrained, load_trained
from iefvad.cli.evaluate import main as evaluate
from iefvad.cli.train import main as train
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.model.baselines.config import BASELINES, BaselineConfig
from iefvad.training.distributed import Processes
from iefvad.training.run import Run
from iefvad.training.settings import Model, TrainConfig, load_config, resolve
from iefvad.training.trainer import Trainer
from iefvad.utils.errors import UserError
from tests.helpers.detecting import small_model, write_video
from tests.helpers.stores import DIM, write_store


def training_flags(store: Path, out: Path, *more: str) -> list[str]:
    fast = ["--preset", "synth", "--epochs", "4", "--batch", "8", "--lr", "5e-3", "--device", "cpu"]
    return ["--features", str(store), "--out", str(out), *fast, *more]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"), train=64)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """A run of the quickest baseline, on both streams and on each alone."""
    out = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--model", "sultani", "--modality", "all", "--epochs", "20"]
    assert train(training_flags(store, out, *flags)) == 0
    return out


def test_the_option_names_every_baseline():
    assert get_args(Model) == ("ief-vad", *BASELINES)


def test_a_run_has_a_row_per_choice_of_streams_and_learns(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["run"]["model"] == "sultani"
    assert {"sultani", "sultani (image)", "sultani (event)", "event density"} <= metrics.keys()
    assert metrics["sultani"]["auc"] > 0.9  # an untrained network is near 0.5
    assert (
        metrics["sultani (event)"]["per_class"]["Run"]["auc"] > metrics["sultani (event)"]["per_class"]["Smoke"]["auc"]
    )
    assert "sultani on" in (run / "report.html").read_text()
    assert load_config(run / "config.yaml").model == "sultani"


def test_evaluation_reproduces_the_training_figures(run, store, tmp_path, capsys):
    trained = json.loads((run / "metrics.json").read_text())
    assert evaluate([str(run), "--out", str(tmp_path / "again")]) == 0
    found = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert found["sultani"] == trained["sultani"]
    assert len(found["robustness"]) == 11
    load_trained(run).save_pretrained(tmp_path / "saved")
    assert "baseline `sultani`" in (tmp_path / "saved" / "README.md").read_text()
    assert evaluate([str(tmp_path / "saved"), "--features", str(store), "--robustness", "false"]) == 0
    found = json.loads((tmp_path / "saved" / "metrics.json").read_text())
    assert found["sultani"]["auc"] == trained["sultani"]["auc"]
    assert found["run"]["method"] == "sultani"
    assert "model sultani, 16 wide" in capsys.readouterr().out


def test_loading_tells_baselines_from_ief_vad(run):
    model = load_trained(run)
    assert isinstance(model, Baseline)
    assert model.provenance["method"] == "sultani"
    image, event = torch.randn(2, 1, 5, DIM)
    assert model(image, event).scores.shape == (1, 5)
    for load in (load_pretrained, IEFVAD.from_pretrained):
        with pytest.raises(UserError, match="contains the baseline sultani"):
            load(run)


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "sultani"])
def test_every_baseline_trains_and_is_evaluated(name, store, tmp_path):
    flags = training_flags(store, tmp_path, "--model", name)
    assert train([*flags, "--epochs", "1"]) == 0
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert row["model"] == name
    assert isinstance(load_trained(tmp_path), Baseline)
    assert evaluate([str(tmp_path), "--robustness", "false"]) == 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"model": "rtfm", "nu": 4.0}, "--nu has no meaning for --model rtfm"),
        ({"model": "rtfm", "method": "paper"}, "--method has no meaning"),
        ({"model": "concat", "compare": True}, "--compare has no meaning"),
        ({"model": "vadclip", "mil": "segment"}, "--mil has no meaning"),
        ({"model": "concat", "modality": "image"}, "fuses both streams"),
    ],
)
def test_choices_that_a_baseline_does_not_have_are_refused(choices, message):
    with pytest.raises(UserError, match=message):
        resolve(TrainConfig(**choices))


def test_defaults_of_a_baseline():
    settings = resolve(TrainConfig(model="concat", mil="segment"))
    assert (settings.modality, settings.compare, settings.mil) == ("fusion", False, "segment")


def test_processes_share_no_batch_of_pairs(store, tmp_path):
    config = resolve(TrainConfig(features=str(store), model="rtfm", out=str(tmp_path), device="cpu"))
    run = Run(tmp_path, config)
    processes = Processes(world=2)
    with pytest.raises(UserError, match="compares the videos of a batch"):
        Trainer(run, run.variants[0], 0, dim=DIM, processes=processes)


def test_detection_with_a_baseline_in_memory(tmp_path):
    known = small_model().provenance
    model = Baseline(BaselineConfig("vadclip", dim=known["encoder"]["dim"], modality="image")).eval()
    model.provenance = known | {"method": "vadclip"}
    video = write_video(tmp_path / "a.mp4", frames=5 * 16)
    detection = Detector(model, DetectConfig(device="cpu"))(video)
    assert detection.scores.scores.shape == (5,)
    assert detection.scores.w_img is None
