"""The training command: what it writes, resuming to the bit, and clear errors before anything is lost."""

from __future__ import annotations

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from iefvad.checkpoints.hub import IEFVAD, load_model
from iefvad.cli.train import main
from iefvad.data.batches import Batch
from iefvad.features.store import FeatureStore
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, Share
from iefvad.training import train as train_module
from iefvad.training import trainer as trainer_module
from iefvad.training.run import Run
from iefvad.training.settings import TrainConfig, resolve
from iefvad.training.step import training_step
from iefvad.training.trainer import Trainer
from iefvad.utils.tensors import read_tensors
from tests.helpers.stores import training_flags, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder of all three modalities and the other methods, on enough videos to learn from."""
    store = write_store(tmp_path_factory.mktemp("store"), train=128)
    out = tmp_path_factory.mktemp("run") / "all"
    flags = ["--modality", "all", "--compare", "true", "--fused", "--epochs", "10", "--lr", "2e-3"]
    assert main(training_flags(store, out, *flags)) == 0
    return out


def test_run_folder_holds_what_the_specification_names(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    for name in (
        "fusion",
        "image",
        "event",
        "fusion (q = 0.4)",
        "fusion (paper)",
        "fusion (released)",
        "event density",
    ):
        assert {"auc", "ap", "ano_auc", "per_class", "brier"} <= metrics[name].keys()
    assert set(metrics["fusion"]["per_class"]) == {"Run", "Smoke"}
    with (finished / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["video", "segment", "start s", "end s", "score", "w_img", "w_evt", "gain"]
    assert len({row["video"] for row in rows}) == 8
    assert all(float(row["w_img"]) + float(row["w_evt"]) == pytest.approx(1, abs=1e-4) for row in rows)
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert len(log) == 6 * 10
    assert {"model", "seed", "epoch", "loss", "loss_cls", "loss_kl", "loss_reg", "lr", "val_auc"} <= log[0].keys()
    assert yaml.safe_load((finished / "config.yaml").read_text())["method"] == "ief"
    report = (finished / "report.html").read_text()
    assert "<svg" in report or "data:image" in report
    assert not list(finished.rglob("*.pt")) + list(finished.rglob("*.pkl"))


def test_training_learns_what_is_visible_in_each_stream(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    # An untrained network is near 0.5 here; each stream shows one of the two classes, the fusion both.
    assert metrics["fusion"]["auc"] > 0.95
    assert metrics["image"]["per_class"]["Smoke"]["auc"] > metrics["image"]["per_class"]["Run"]["auc"]
    assert metrics["event"]["per_class"]["Run"]["auc"] > metrics["event"]["per_class"]["Smoke"]["auc"]


def test_same_seed_gives_the_same_bits_another_seed_others(store, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(training_flags(store, tmp_path / name, "--seeds", seed)) == 0
    a, b, c = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resume_continues_to_the_same_bits(store, tmp_path, monkeypatch, capsys, stop_after):
    assert main(training_flags(store, tmp_path / "whole", "--fused")) == 0
    original = Trainer._train_epoch

    def interrupted(self, *arguments):
        if self.progress.epoch == stop_after:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    assert main(training_flags(store, tmp_path / "parts", "--fused")) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "metrics.json").exists()
    calls = []

    def counted(self, *arguments):
        calls.append(self.progress.epoch)
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_epoch", counted)
    assert main(["--config", str(tmp_path / "parts" / "config.yaml"), "--resume"]) == 0
    assert calls == list(range(stop_after, 4)), "epochs were trained again"
    for name in ("checkpoint.safetensors", "scores.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("parts", "whole")
    ]
    assert losses[0] == losses[1]


def test_a_large_state_is_not_written_more_often_than_once_per_second(store, tmp_path, monkeypatch):
    """The first epoch and the last one are, and a run that ended between them goes on to the same bits."""
    written, save = [], trainer_module.save_state

    def counting(path, model, optimizer, progress):
        written.append(progress.epoch)
        if kept:
            save(path, model, optimizer, progress)
            kept.pop()

    monkeypatch.setattr(trainer_module, "save_state", counting)
    monkeypatch.setattr(trainer_module, "_LARGE", 0)
    monkeypatch.setattr(trainer_module, "_PAUSE", 3600.0)
    kept, out = [True], tmp_path / "run"
    flags = training_flags(store, out, "--epochs", "4")
    assert main(flags) == 0 and written == [1, 4]
    whole = (out / "checkpoint.safetensors").read_bytes()
    (out / "checkpoint.safetensors").unlink()
    (out / "metrics.json").unlink()
    kept += [True, True]
    assert main([*flags, "--resume"]) == 0 and written == [1, 4, 2, 4]  # the file had the first epoch
    assert (out / "checkpoint.safetensors").read_bytes() == whole
    assert len((out / "log.jsonl").read_text().splitlines()) == 4


def test_a_run_of_the_reference_operators_goes_on_with_them(store, tmp_path):
    config = resolve(TrainConfig(features=str(store), preset="synth", out=str(tmp_path), fused=False))
    Run.create(config)  # as --no-fused was the default once
    again = resolve(TrainConfig(features=str(store), preset="synth", out=str(tmp_path), resume=True))
    assert Run.create(again).config.fused is False


@pytest.mark.parametrize(("select", "chosen"), [("last", False), ("validation", True)])
def test_the_last_weights_are_never_those_within_an_epoch(select, chosen):
    config = SimpleNamespace(select=select, select_every=4, batch=4, mixed=True)
    assert Trainer._is_choice(SimpleNamespace(config=config), 3) is chosen


def test_resume_with_other_settings_is_refused(store, tmp_path, capsys):
    assert main(training_flags(store, tmp_path)) == 0
    assert main([*training_flags(store, tmp_path, "--resume"), "--lr", "0.5"]) == 2
    assert "lr was 0.005, now 0.5" in capsys.readouterr().err


def test_fused_and_reference_training_agree(store, tmp_path):
    """The same seed with and without the kernels: the losses step by step, and the final metrics."""
    for name, flags in (("fused", []), ("reference", ["--no-fused"])):
        assert main(training_flags(store, tmp_path / name, *flags)) == 0
    logs, metrics = [], []
    for name in ("fused", "reference"):
        rows = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        logs.append([row["loss"] for row in rows])
        metrics.append(json.loads((tmp_path / name / "metrics.json").read_text())["fusion"]["auc"])
    # Rounding differences of 1e-7 a step grow through four epochs of AdamW at a high learning rate.
    np.testing.assert_allclose(logs[0], logs[1], rtol=5e-3)
    assert metrics[0] == pytest.approx(metrics[1], abs=0.02)


def test_seeds_are_summarised(store, tmp_path, capsys):
    assert main(training_flags(store, tmp_path, "--seeds", "0", "1", "--epochs", "1")) == 0
    assert re.search(r"fusion +0\.\d+ ± 0\.\d+", capsys.readouterr().out)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    values = metrics["fusion"]["seeds"]["auc"]["values"]
    assert metrics["fusion"]["seeds"]["auc"]["mean"] == pytest.approx(sum(values) / 2)
    assert (tmp_path / "checkpoint_seed1.safetensors").exists()


@pytest.mark.parametrize("select", ["last", "test"])
def test_selection_is_written_into_the_result(store, tmp_path, select):
    assert main(training_flags(store, tmp_path, "--select", select)) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run"]["select"] == select
    assert any("test set" in note for note in metrics["run"]["notes"]) == (select == "test")
    if select == "last":
        assert load_model(tmp_path / "checkpoint.safetensors").provenance["epoch"] == 4


def test_checkpoint_is_a_safetensors_file_with_its_configuration(finished):
    model = load_model(finished / "checkpoint.safetensors")
    assert model.config.dim == 16 and model.config.process_noise == "learned"
    assert 0 < model.provenance["threshold"] < 1
    _, metadata = read_tensors(finished / "checkpoint.safetensors")
    assert json.loads(metadata["iefvad"])["config"]["refine_steps"] == 2


def test_features_that_are_not_finite_are_named_and_repaired_only_on_request(tmp_path, capsys):
    root = write_store(tmp_path / "store")
    store = FeatureStore(root)
    image, event, _ = store.read("train001")
    image[0, 2, 3] = np.nan
    path = root / "train001.safetensors"
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    del metadata["xxh3"]  # as a store of an earlier version
    save_file({"image": image, "event": event}, path, metadata)
    assert main(training_flags(root, tmp_path / "run")) == 2
    assert "train001" in capsys.readouterr().err
    assert main(training_flags(root, tmp_path / "run", "--nan", "zero")) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["path,label"], "empty|no "),
        (["path,label", "absent.mp4,Normal", "train001.mp4,Run"], "absent"),
        (["path,label", "train000.mp4,Normal", "train002.mp4,Normal"], "abnormal"),
    ],
)
def test_lists_that_cannot_be_trained_on(tmp_path, capsys, rows, message):
    root = write_store(tmp_path / "store")
    (root / "bad.csv").write_text("\n".join(rows) + "\n")
    flags = training_flags(root, tmp_path / "run", "--train-list", str(root / "bad.csv"))
    assert main(flags) == 2
    assert re.search(message, capsys.readouterr().err)


def test_ground_truth_of_the_wrong_length(tmp_path, capsys):
    root = write_store(tmp_path / "store")
    np.save(tmp_path / "gt.npy", np.zeros(160))
    assert main(training_flags(root, tmp_path / "run", "--gt", str(tmp_path / "gt.npy"))) == 2
    assert "160" in capsys.readouterr().err


def test_no_data_where_features_point(tmp_path, capsys):
    assert main(["--features", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "store.json" in capsys.readouterr().err


def test_a_full_disk_loses_nothing_and_says_so(store, tmp_path, monkeypatch, capsys):
    import errno

    saved = train_module.save_model
    monkeypatch.setattr(
        train_module, "save_model", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full", str(tmp_path / "x")))
    )
    assert main(training_flags(store, tmp_path)) == 2
    assert "full" in capsys.readouterr().err
    monkeypatch.setattr(train_module, "save_model", saved)
    # All epochs were kept, so resuming trains nothing again.
    monkeypatch.setattr(Trainer, "_train_epoch", lambda *a: pytest.fail("trained again"))
    assert main(["--config", str(tmp_path / "config.yaml"), "--resume"]) == 0


def test_a_diverging_loss_is_explained(store, tmp_path, capsys):
    assert main([*training_flags(store, tmp_path, "--lambda-kl", "1e9"), "--lr", "1e9"]) == 2
    assert "lower --lr" in capsys.readouterr().err


@pytest.mark.parametrize("released", [False, True])
def test_a_step_never_asks_for_a_value(released):
    """On a GPU each value that Python asks for waits until the device has finished all that came before."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.name() not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
            return function(*args, **(kwargs or {}))

    config = ModelConfig(dim=8, heads=2, refine_steps=2, released=released, window=None if released else 2)
    model = IEFVAD(config, backend="reference").train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    lengths, labels = torch.tensor([5, 3, 1]), torch.tensor([0.0, 1.0, 1.0])
    batch = Batch(torch.randn(3, 5, 8), torch.randn(3, 5, 8), lengths, labels)
    with Watch():
        losses = training_step(model, batch, optimizer, LossWeights(), share=Share(0.5, 0.25))
        with pytest.raises(AssertionError):
            losses[0].item()
    assert losses.shape == (4,) and torch.isfinite(losses).all()
    assert losses[0].item() == pytest.approx(losses[1:].sum().item(), rel=1e-6)
