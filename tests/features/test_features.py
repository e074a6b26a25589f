"""`iefvad features`: import from each kind of source, export, and the description of a store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.checkpoints.hub import IEFVAD
from iefvad.cli.evaluate import main as evaluate
from iefvad.cli.features import main
from iefvad.cli.train import main as train
from iefvad.data.datasets import load_packed
from iefvad.model.config import ModelConfig
from tests.helpers.stores import DIM, training_flags, write_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", train=8, test=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `store`, the `packed` store that was imported from it, and a `run` that was trained on that."""
    folder = tmp_path_factory.mktemp("trained")
    write_store(folder / "store")
    assert main(["import", str(folder / "store"), "--out", str(folder / "packed")]) == 0
    assert train(training_flags(folder / "packed", folder / "run", "--epochs", "1")) == 0
    return folder


def test_import_of_a_store_is_trained_and_evaluated_on(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, packed = trained / "store", trained / "packed"
    assert main(["import", str(store), "--out", str(tmp_path / "packed")]) == 0
    told = capsys.readouterr().out
    assert "train: 32 videos (16 abnormal)" in told and "truth of 8, event densities of 8" in told
    assert main(["import", str(store), "--out", str(packed)]) == 0
    assert "already imported" in capsys.readouterr().out
    assert (trained / "run" / "metrics.json").exists()
    assert evaluate([str(trained / "run"), "--features", str(packed), "--robustness", "false"]) == 0
    capsys.readouterr()
    lists = ["--train-list", str(store / "train.csv")]
    assert train([*training_flags(packed, tmp_path / "run"), *lists]) == 2
    assert "which has its own lists" in capsys.readouterr().err


def test_export_and_import_of_the_field_s_layout(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(store), "--out", str(tmp_path / "f"), "--event-folder", "event_thr_10"]) == 0
    assert "12 clips" in capsys.readouterr().out
    assert np.load(tmp_path / "f" / "rgb" / "test001__0.npy").dtype == np.float32
    for split in ("train", "test"):
        text = (store / f"{split}.csv").read_text().replace(".mp4", "__0.npy")
        lines = text.splitlines()
        (tmp_path / f"{split}.csv").write_text("\n".join([lines[0], *(f"/x/rgb/{line}" for line in lines[1:])]))
    flags = ["--train-list", str(tmp_path / "train.csv"), "--test-list", str(tmp_path / "test.csv")]
    flags += ["--features", str(tmp_path / "f"), "--annotations", str(store / "annotations.txt")]
    assert main(["import", *flags, "--out", str(tmp_path / "p")]) == 2
    assert "event features" in capsys.readouterr().err
    assert main(["import", *flags, "--event-folder", "event_thr_10", "--out", str(tmp_path / "p")]) == 0
    assert main(["import", str(store), "--out", str(tmp_path / "q")]) == 0
    one, other = load_packed(tmp_path / "p"), load_packed(tmp_path / "q")
    for left, right in zip(one.train + one.test, other.train + other.test, strict=True):
        assert (left.name, left.classes) == (right.name, right.classes)
        for a, b in zip(left.features(0), right.features(0), strict=True):
            assert torch.equal(a, b)  # stores hold float16, so nothing is lost on the way
        assert (left.truth is None) == (right.truth is None)
        if left.truth is not None:
            np.testing.assert_array_equal(left.truth, right.truth)


def test_real_features_through_import_and_the_network(shared_data: Path, tmp_path: Path) -> None:
    """ViT-B/16 features of public videos (512 wide, names without a crop). They also replace the event features."""
    folder = tmp_path / "clips"
    folder.mkdir()
    sources = [*(shared_data / "features" / "clip_vitb16_violence").glob("*[0-9].npy")]
    sources += (shared_data / "features" / "clip_vitb16_ucf_train").glob("*.npy")
    for path in sources:
        os.symlink(path, folder / path.name)
    assert len(sources) == 15
    flags = ["--image-dir", str(folder), "--event-dir", str(folder), "--out", str(tmp_path / "p")]
    assert main(["import", *flags]) == 0
    packed = load_packed(tmp_path / "p")
    assert packed.dim == 512 and len(packed.test) == 15
    lengths = {video.name: video.segments for video in packed.test}
    assert lengths["assault001"] == 587 and lengths["Abuse023_x264_frames"] == 992
    model = IEFVAD(ModelConfig(dim=512), backend="reference").eval()
    for video in packed.test:
        image, event = video.features(0)
        original = np.load(folder / f"{video.name}.npy").astype(np.float16)
        np.testing.assert_array_equal(image.numpy(), original.astype(np.float32))
        with torch.inference_mode():
            scores = model(image[None, :256], event[None, :256]).scores
        assert scores.shape == (1, min(video.segments, 256)) and torch.isfinite(scores).all()
    # the truth among these files is not a feature file, and the message names it
    shutil.copy(shared_data / "features" / "clip_vitb16_violence" / "my_gt_ucf.npy", folder)
    assert main(["import", *flags[:4], "--out", str(tmp_path / "q")]) == 2


def test_bare_features_are_scored(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for folder in ("image", "event"):
        (tmp_path / folder).mkdir()
        for name, segments in (("a.npy", 5), ("b__0.npy", 40)):
            np.save(tmp_path / folder / name, random.normal(size=(segments, DIM)))
    flags = ["--image-dir", str(tmp_path / "image"), "--event-dir", str(tmp_path / "event")]
    assert main(["import", *flags, "--out", str(tmp_path / "p")]) == 0
    arguments = [str(trained / "run"), "--features", str(tmp_path / "p"), "--out", str(tmp_path / "scored")]
    assert evaluate([*arguments, "--robustness", "false"]) == 0
    rows = (tmp_path / "scored" / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 45 and rows[1].startswith("a,")
    capsys.readouterr()
    assert train(training_flags(tmp_path / "p", tmp_path / "other")) == 2
    assert "no training video" in capsys.readouterr().err


def test_info(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(store)]) == 0
    told = capsys.readouterr().out
    assert "feature store, 12 videos" in told and "image_encoder test" in told
    main(["import", str(store), "--out", str(tmp_path / "p"), "--max-segments", "7"])
    capsys.readouterr()
    assert main(["info", str(tmp_path / "p")]) == 0
    told = capsys.readouterr().out
    assert f"features {DIM} wide" in told and "at most 7 segments" in told and "image_encoder test" in told
    (tmp_path / "p" / "packed.json").unlink()
    (tmp_path / "p" / "import.journal").write_text("{}\n")
    assert main(["info", str(tmp_path / "p")]) == 2
    assert "did not finish" in capsys.readouterr().err
    assert train(training_flags(tmp_path / "p", tmp_path / "run")) == 2
    assert "did not finish" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 2
    assert "is not a feature store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "STORE"], "--out is missing"),
        (["import", "--out", "P"], "there is nothing to import"),
        (["import", "--out", "P", "--train-list", "L"], "there is nothing to import"),
        (["import", "STORE", "--out", "P", "--max-segments", "0"], "--max-segments must be at least 1"),
        (["import", "STORE", "--out", "P", "--gt", "g", "--annotations", "a"], "give one of them"),
        (["import", "--out", "P", "--image-dir", "I"], "give both"),
        (["import", "STORE", "--out", "P", "--image-dir", "I", "--event-dir", "E"], "leave the store, lists and truth"),
        (["import", "absent", "--out", "P"], "is not a feature store"),
        (["import", "STORE", "--out", "STORE"], "is a feature store; choose another folder"),
        (["export", "STORE"], "--out is missing"),
        (["export", "STORE", "--out", "P", "--event-folder", "rgb"], "must differ"),
    ],
)
def test_wrong_commands(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    paths = {"STORE": str(store), "P": str(tmp_path / "p")}
    assert main([paths.get(word, word) for word in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_a_packed_store_is_not_exported(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", str(store), "--out", str(tmp_path / "p")])
    assert main(["export", str(tmp_path / "p"), "--out", str(tmp_path / "f")]) == 2
    assert "export the store it came from" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "import" in printed and "export" in printed
    assert main([]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("action", ["import", "export", "info"])
def test_each_action_explains_itself(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([action, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: iefvad features {action}") and "Literal[" not in printed
    with pytest.raises(SystemExit) as ended:
        main([action, "s", "--colour", "blue"])
    assert ended.value.code == 2
    assert "colour" in capsys.readouterr().err


def test_unknown_action(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["shrink"])
    assert ended.value.code == 2
    assert "'shrink' does not exist" in capsys.readouterr().err


def test_command_killed_at_any_time_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """The real command in its own process, killed as soon as the journal has grown."""
    random = np.random.default_rng(0)
    (tmp_path / "f").mkdir()
    for index in range(1000):
        np.save(tmp_path / "f" / f"v{index:03d}.npy", random.normal(size=(32, 16)).astype(np.float16))
    flags = ["--image-dir", str(tmp_path / "f"), "--event-dir", str(tmp_path / "f"), "--out"]
    journal = tmp_path / "p" / "import.journal"
    command = [sys.executable, "-m", "iefvad.features", "import", *flags, str(tmp_path / "p")]
    for _ in range(3):  # on a busy machine the import may end before this process is awake again
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 2000):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (tmp_path / "p" / "packed.json").exists():
            break
        shutil.rmtree(tmp_path / "p")
    assert process.returncode == -signal.SIGKILL
    assert main(["import", *flags, str(tmp_path / "p")]) == 0
    assert main(["import", *flags, str(tmp_path / "whole")]) == 0
    for name in ("packed.json", "train.safetensors", "test.safetensors"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
