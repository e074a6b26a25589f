"""Released checkpoints and the released method, from the field's own files to figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.cli.convert import main as convert
from iefvad.cli.evaluate import main as evaluate
from iefvad.cli.features import main as features
from iefvad.cli.train import main as train
from tests.helpers.released import Published, published_scores, vary, write_field

DIM, HEADS = 16, 8


@pytest.fixture(scope="module", params=[False, True], ids=["posix", "windows"])
def listed(request, tmp_path_factory):
    """The field's files, their lists written on either kind of system."""
    return write_field(tmp_path_factory.mktemp("field"), dim=DIM, windows=request.param)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    return write_field(tmp_path_factory.mktemp("field"), dim=DIM)


@pytest.fixture(scope="module")
def network():
    return vary(Published(DIM, 2, HEADS, 3, DIM))


@pytest.fixture(scope="module")
def released(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "model.pth")
    assert convert([str(folder / "model.pth"), str(folder / "model.safetensors")]) == 0
    return folder / "model.safetensors"


def flags(field, *more):
    data = ["--features", field["features"], "--test-list", field["test"], "--gt", field["gt"]]
    return [str(word) for word in (*data, "--event-folder", "event_thr_10", "--device", "cpu", *more)]


def scores_of(path: Path) -> dict[str, np.ndarray]:
    scores: dict[str, list[float]] = {}
    with (path / "scores.csv").open() as file:
        for row in csv.DictReader(file):
            scores.setdefault(row["video"], []).append(float(row["score"]))
    return {name: np.array(values) for name, values in scores.items()}


def test_a_released_checkpoint_gives_the_released_scores(listed, network, released, tmp_path, capsys):
    assert evaluate([str(released), *flags(listed, "--out", tmp_path / "out")]) == 0
    found = scores_of(tmp_path / "out")
    assert sorted(map(len, found.values())) == [5, 12, 270]
    for name, values in found.items():
        kind = "Abuse" if name.startswith("Abuse") else "Normal"
        pair = [
            torch.from_numpy(np.load(listed["features"] / "vitb" / stream / kind / f"{name}__5.npy"))
            for stream in ("rgb", "event_thr_10")
        ]
        # docs/specification.md#released-checkpoints promises 1e-5.
        np.testing.assert_allclose(values, published_scores(network, *pair), rtol=0, atol=1e-5)
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["run"]["method"] == "released" and document["run"]["source"] == str(released)
    assert document["run"]["test_videos"] == 3
    assert not [note for note in document["run"]["notes"] if "trained on" in note]
    assert 0 <= document["fusion"]["auc"] <= 1
    assert len(document["robustness"]) == 11
    page = (tmp_path / "out" / "report.html").read_text()
    assert "iefvad evaluate" in page and "event_thr_10" in page
    printed = capsys.readouterr().out
    assert "method released, 16 wide, 2 attention layers, 3 refinement steps" in printed
    assert "test 3 videos (2 abnormal, 287 segments)" in printed and "robustness" in printed


def test_what_a_checkpoint_does_not_record_changes_the_scores(field, released, tmp_path):
    fast = ["--robustness", "false"]
    outs = {}
    for name, more in (("plain", []), ("attenuation", ["--attenuation", "0.1"]), ("heads", ["--heads", "2"])):
        assert evaluate([str(released), *flags(field, "--out", tmp_path / name, *fast, *more)]) == 0
        outs[name] = np.concatenate(list(scores_of(tmp_path / name).values()))
    assert np.abs(outs["plain"] - outs["attenuation"]).max() > 1e-4
    assert np.abs(outs["plain"] - outs["heads"]).max() > 1e-4
    assert "robustness" not in json.loads((tmp_path / "plain" / "metrics.json").read_text())


def test_training_and_evaluation_by_the_released_method(tmp_path):
    listed = write_field(tmp_path / "field", dim=DIM, windows=True)
    out = tmp_path / "run"
    small = ["--method", "released", "--preset", "ucf-crime", "--epochs", "2", "--batch", "4", "--refine-steps", "2"]
    assert train(flags(listed, "--train-list", listed["train"], "--out", out, *small, "--lr", "1e-3")) == 0
    trained = json.loads((out / "metrics.json").read_text())
    assert trained["run"]["method"] == "released" and trained["run"]["train_videos"] == 6
    assert evaluate([str(out), "--out", str(tmp_path / "again"), "--robustness", "false", "--device", "cpu"]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["fusion"] == trained["fusion"]
    # A packed store of the same features replaces the run's lists and truth.
    where = flags(listed, "--train-list", listed["train"], "--out", tmp_path / "packed")
    assert features(["import", *(word for word in where if word not in ("--device", "cpu"))]) == 0
    words = [str(out), "--features", str(tmp_path / "packed"), "--out", str(tmp_path / "other")]
    assert evaluate([*words, "--robustness", "false", "--device", "cpu"]) == 0
    packed = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert packed["fusion"]["auc"] == pytest.approx(trained["fusion"]["auc"], abs=0.02)  # float16 may swap close scores
    # The checkpoint alone, told where the data are, gives the same figures as the run that knows.
    alone = flags(listed, "--out", tmp_path / "alone", "--robustness", "false")
    assert evaluate([str(out / "checkpoint.safetensors"), *alone]) == 0
    assert json.loads((tmp_path / "alone" / "metrics.json").read_text())["fusion"]["auc"] == trained["fusion"]["auc"]


def test_a_packed_store_and_another_folder_of_images_give_the_same(field, released, tmp_path):
    def scores(*words) -> np.ndarray:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        words = (released, *words, "--out", out, "--robustness", "false", "--device", "cpu")
        assert evaluate([str(word) for word in words]) == 0
        return np.concatenate(list(scores_of(out).values()))

    expected = scores(*flags(field))
    words = [*flags(field, "--train-list", field["train"], "--out", tmp_path / "packed")]
    where = words.index("--device")
    assert features(["import", *words[:where], *words[where + 2 :]]) == 0
    # A packed store is float16.
    np.testing.assert_allclose(scores("--features", tmp_path / "packed"), expected, atol=2e-3)
    other = write_field(tmp_path / "other", dim=DIM, image_folder="clip")
    np.testing.assert_array_equal(scores(*flags(other, "--image-folder", "clip")), expected)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "folder of the results by --out"),
        (["--out", "OUT", "--heads", "3"], "heads = 3 does not divide"),
        (["--out", "OUT", "--nu", "0"], "nu must be greater than 0"),
        (["--out", "OUT", "--features", "nowhere"], "feature files"),
        (["--out", "OUT", "--event-folder", "event_thr_25"], "event_thr_25"),
    ],
)
def test_mistakes_are_explained(field, released, tmp_path, capsys, more, message):
    more = [str(tmp_path / "out") if word == "OUT" else word for word in more]
    assert evaluate([str(released), *flags(field), *more]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed and printed.count("\n") == 1


def test_a_model_needs_to_be_told_on_what(released, tmp_path, capsys):
    assert evaluate([str(released), "--out", str(tmp_path)]) == 2
    assert "does not say what to evaluate on" in capsys.readouterr().err


def test_features_of_another_width_are_refused(released, tmp_path, capsys):
    wide = write_field(tmp_path / "wide", dim=24, train=2, test=(3, 4))
    assert evaluate([str(released), *flags(wide, "--out", tmp_path / "out")]) == 2
    assert "24 wide, and the model takes 16" in capsys.readouterr().err
