"""`iefvad evaluate` on a finished run: same figures, robustness rows, and clear errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.checkpoints.files import save_model
from iefvad.checkpoints.hub import IEFVAD, load_model
from iefvad.cli.evaluate import main
from iefvad.cli.train import main as train
from iefvad.data.datasets import load_store
from iefvad.model.config import ModelConfig
from iefvad.scoring.direction import VERDICTS
from iefvad.scoring.scorer import Scorer, choose_crops, score_videos
from iefvad.training.settings import load_config
from tests.helpers.stores import DIM, training_flags, write_store


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = write_store(tmp_path_factory.mktemp("store"))
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(training_flags(store, out, "--fused", "--epochs", "8")) == 0
    return out


def test_evaluation_reproduces_the_training_figures_and_adds_robustness(run, tmp_path, capsys):
    trained = json.loads((run / "metrics.json").read_text())
    assert main([str(run), "--out", str(tmp_path / "again")]) == 0
    found = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert found["fusion"] == trained["fusion"]
    rows = found["robustness"]
    assert [(row["masked"], row["ratio"]) for row in rows[:2]] == [("none", 0.0), ("image", 0.05)]
    assert len(rows) == 11
    assert rows[0]["kl"] == 0
    # Hiding half of a stream's dimensions must show, and more than hiding a twentieth.
    by = {(row["masked"], row["ratio"]): row["kl"] for row in rows}
    for stream in ("image", "event"):
        assert by[stream, 0.5] > by[stream, 0.05] >= 0
    assert all((row["draws"], row["mask"], row["seeds"]) == (5, "mean", [0]) for row in rows[1:])
    printed = capsys.readouterr().out
    assert "robustness" in printed and "Feature dimensions become the mean of" in printed and "5 draws" in printed
    for stream in ("image", "event"):
        judged = found["direction"][stream]
        assert judged["ratio"] == 0.5 and judged["verdict"] in VERDICTS and judged["text"] in printed
    assert (tmp_path / "again" / "report.html").exists()


def test_draws_ratios_and_mask_are_options(run, tmp_path, capsys):
    words = ["--draws", "2", "--ratios", "0.25", "1", "--robustness", "segments", "--mask", "zero"]
    assert main([str(run), "--out", str(tmp_path / "again"), *words]) == 0
    rows = json.loads((tmp_path / "again" / "metrics.json").read_text())["robustness"]
    assert [(row["masked"], row["ratio"]) for row in rows[1:3]] == [("image", 0.25), ("image", 1.0)]
    assert all((row["damage"], row["draws"], len(row["values"]["auc"][0])) == ("segments", 2, 2) for row in rows[1:])
    capsys.readouterr()
    for wrong, message in (
        (["--draws", "0"], "--draws must be at least 1"),
        (["--ratios", "0"], "--ratios must be greater than 0"),
    ):
        assert main([str(run), "--out", str(tmp_path / "wrong"), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_all_seeds_of_a_run_are_damaged(run, tmp_path, capsys):
    both = tmp_path / "both"
    shutil.copytree(run, both)
    config = (both / "config.yaml").read_text()
    assert "seeds:\n- 0\n" in config
    (both / "config.yaml").write_text(config.replace("seeds:\n- 0\n", "seeds:\n- 0\n- 1\n"))
    model = load_model(both / "checkpoint.safetensors")
    with torch.no_grad():
        model.classifier.bias += 0.5
    save_model(both / "checkpoint_seed1.safetensors", model, model.provenance | {"seed": 1})
    assert main([str(both), "--draws", "2", "--ratios", "0.5"]) == 0
    document = json.loads((both / "metrics.json").read_text())
    clean, image, _ = document["robustness"]
    assert image["seeds"] == [0, 1] and np.shape(image["values"]["brier"]) == (2, 2)
    first, second = (values[0] for values in clean["values"]["brier"])
    assert [first, second] == document["fusion"]["seeds"]["brier"]["values"] and first != second
    assert clean["brier"] == pytest.approx((first + second) / 2)
    assert len(document["direction"]["image"]["by_network"]) == 2
    assert document["fusion"]["seeds"]["ece"]["mean"] == pytest.approx(clean["ece"])
    assert "over seeds, 2 draws for each of 2 seeds" in capsys.readouterr().out


def test_a_saved_model_gives_the_figures_of_its_run(run, tmp_path, capsys):
    store = load_config(run / "config.yaml").features
    IEFVAD.from_pretrained(run).save_pretrained(tmp_path / "saved")
    assert main([str(tmp_path / "saved"), "--features", store, "--device", "cpu", "--ratios", "0.5", "1"]) == 0
    found = json.loads((tmp_path / "saved" / "metrics.json").read_text())
    trained = json.loads((run / "metrics.json").read_text())
    # Another backend may add in another order (the run used the same one, but its batches were the trainer's).
    assert found["fusion"]["auc"] == pytest.approx(trained["fusion"]["auc"], abs=1e-6)
    assert found["event density"] == trained["event density"]
    assert found["run"] | {"notes": []} == {
        "benchmark": trained["run"]["benchmark"],
        "source": str(tmp_path / "saved"),
        "method": "ief",
        "test_crops": "0",  # the store has no other crop
        "chunk": 32,
        "seeds": [0],
        "test_videos": 8,
        "test_set": trained["run"]["test_set"],
        "notes": [],
        "warnings": [known for known in trained["run"]["warnings"] if "loss" not in known["cause"]],  # it has no log
    }
    assert len(found["robustness"]) == 5
    assert (tmp_path / "saved" / "scores.csv").read_text() == (run / "scores.csv").read_text()
    page = (tmp_path / "saved" / "report.html").read_text()
    assert f"iefvad evaluate {tmp_path / 'saved'} --features {store} --ratios 0.5 1.0 --device cpu" in page
    assert "report:" in capsys.readouterr().out


def test_options_of_released_checkpoints_are_refused_for_others(run, tmp_path, capsys):
    IEFVAD.from_pretrained(run).save_pretrained(tmp_path / "saved")
    for source in (run, tmp_path / "saved"):
        assert main([str(source), "--nu", "4", "--heads", "2"]) == 2
        assert "--nu, --heads" in capsys.readouterr().err


def test_features_of_another_width_are_refused(run, tmp_path, capsys):
    model = IEFVAD(ModelConfig(dim=DIM + 8, heads=2))
    model.save_pretrained(tmp_path / "wide")
    store = load_config(run / "config.yaml").features
    assert main([str(tmp_path / "wide"), "--features", store]) == 2
    assert f"{DIM} wide, and the model takes {DIM + 8}" in capsys.readouterr().err


@pytest.mark.parametrize("released", [False, True])
def test_batched_scoring_equals_one_video_at_a_time(tmp_path, released):
    torch.manual_seed(0)
    temporal = "none" if released else "kalman"
    model = IEFVAD(ModelConfig(dim=DIM, heads=2, refine_steps=2, temporal=temporal, released=released)).eval()
    videos = load_store(write_store(tmp_path / "store")).test
    # A chunk of 8 segments splits most videos, so both ways of scoring are used.
    for chunk in (8, 64):
        together = score_videos(model, videos, chunk=chunk)
        for video, scored in zip(videos, together, strict=True):
            image, event = video.features(0)
            alone = Scorer(model, chunk=chunk).feed(image[None], event[None])
            np.testing.assert_allclose(scored.scores, alone[:, 0], rtol=1e-5, atol=1e-6)
            assert len(scored.scores) == video.segments


def test_feeding_in_pieces_equals_feeding_at_once(tmp_path):
    torch.manual_seed(0)
    model = IEFVAD(ModelConfig(dim=DIM, heads=2, refine_steps=2)).eval()
    image, event = torch.randn(2, 1, 40, DIM)
    whole = Scorer(model, chunk=10).feed(image, event)
    scorer = Scorer(model, chunk=10)
    pieces = [scorer.feed(image[:, i : i + 10], event[:, i : i + 10]) for i in range(0, 40, 10)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize(
    ("available", "wanted", "chosen"),
    [(range(10), "5", [5]), (range(10), "0", [0]), ([0], "5", [0]), (range(3), "all", [0, 1, 2]), ([5], "0", [5])],
)
def test_crop_that_is_tested(available, wanted, chosen):
    assert choose_crops(list(available), wanted) == chosen


def test_an_unfinished_run_and_a_missing_one_are_explained(run, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no run folder" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    (broken / "checkpoint.safetensors").write_bytes(b"not a model")
    assert main([str(broken)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_features_of_another_encoder_are_refused(run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    model = load_model(other / "checkpoint.safetensors")
    model.provenance["encoder"]["image_weights_hash"] = "another"
    save_model(other / "checkpoint.safetensors", model, model.provenance)
    assert main([str(other)]) == 2
    printed = capsys.readouterr().err
    assert "image_weights_hash" in printed and "Extract them again" in printed


def test_a_configuration_that_does_not_describe_the_checkpoint_is_refused(run, tmp_path, capsys):
    changed = Path(shutil.copytree(run, tmp_path / "changed"))
    config = (changed / "config.yaml").read_text()
    assert "refine_steps: 2\n" in config
    (changed / "config.yaml").write_text(config.replace("refine_steps: 2\n", "refine_steps: 3\n"))
    assert main([str(changed)]) == 2
    assert "describe different networks (refine_steps 3 and 2)" in capsys.readouterr().err
