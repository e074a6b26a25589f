"""The command: results equal to those of `iefvad train`, the same bytes after damage, and what fails costs itself."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from iefvad.cli.sweep import main, parse_sweep
from iefvad.cli.train import main as train
from iefvad.cli.train import parse_train
from iefvad.features.store import FeatureStore
from iefvad.sweep import local
from iefvad.sweep.data import prepare
from iefvad.sweep.documents import document_path, locked, measured, read_document
from iefvad.sweep.runner import _devices, run_all
from iefvad.sweep.trainings import Training
from iefvad.sweep.work import make_document
from iefvad.training import results
from iefvad.utils.errors import UserError
from tests.helpers.stores import training_flags, write_store

RESULTS = ("results.csv", "tables.csv", "tables.tex", "index.html")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes of a sweep: bits may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_run_report", lambda *_, **__: None)  # a page that nobody looks at
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store", train=16)


def flags(store: Path, out: Path, *more: str) -> list[str]:
    return training_flags(store, out, "--epochs", "2", "--refit", "true", *more)


def contents(folder: Path) -> dict[str, bytes]:
    """All result files of a sweep."""
    files = [folder / name for name in RESULTS] + sorted((folder / "trainings").iterdir())
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def swept(store, tmp_path_factory):
    """A finished sweep and its command line."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    line = flags(store, out, "--vary", "nu=2,8", "--vary", "modality=fusion,event", "--seeds", "0..2", "--jobs", "2")
    assert main(line) == 0
    return out, line


def test_results_are_those_of_train(store, swept, tmp_path):
    """Refit, choice of the epoch and all metrics, for one training of each kind."""
    out, _ = swept
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["data", "protocol", "model", "setting", "value", "seed", "metric", "result"]
    for setting, value, more in (("nu", "2", ["--nu", "2"]), ("modality", "event", ["--modality", "event"])):
        assert train(flags(store, tmp_path / value, *more, "--seeds", "1")) == 0
        metrics = json.loads((tmp_path / value / "metrics.json").read_text())
        expected = next(iter(metrics.values()))
        found = {
            row["metric"]: float(row["result"])
            for row in rows
            if (row["setting"], row["value"], row["seed"]) == (setting, value, "1")
        }
        assert {name: found[name] for name in ("auc", "ap", "ano_auc", "brier")} == {
            name: expected[name] for name in ("auc", "ap", "ano_auc", "brier")
        }
        assert found["auc[Run]"] == expected["per_class"]["Run"]["auc"]
        if setting == "nu":
            assert found["w_img[normal]"] == expected["weights"]["w_img"]["normal"]
            assert found["q_mean"] == expected["learned"]["q_mean"]
    # The base is one training in both tables.
    base = [row["result"] for row in rows if row["metric"] == "auc" and row["value"] in ("8", "fusion")]
    assert len(base) == 6 and base[:3] == base[3:] and len(list((out / "trainings").iterdir())) == 9


def test_damaged_and_missing_documents_are_made_again(swept, tmp_path, capsys):
    whole = contents(swept[0])
    out = tmp_path / "copy"
    shutil.copytree(swept[0], out)
    missing, cut, changed = sorted((out / "trainings").iterdir())[:3]
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:200])
    changed.write_text(re.sub(r'"auc": 0\.\d', '"auc": 0.0', changed.read_text(), count=1))
    (out / "results.csv").unlink()
    log = (out / "log.jsonl").read_text().count("\n")
    assert main([*swept[1][:-2], "--jobs", "1", "--out", str(out)]) == 0
    assert contents(out) == whole  # with another number of processes, too
    assert (out / "log.jsonl").read_text().count("\n") == log + 3
    assert "6 of 9 trainings are there" in capsys.readouterr().err
    stamps = [path.stat().st_mtime_ns for path in sorted((out / "trainings").iterdir())]
    assert main([*swept[1], "--out", str(out)]) == 0  # now nothing is trained
    assert [path.stat().st_mtime_ns for path in sorted((out / "trainings").iterdir())] == stamps


def test_the_tables_show_what_is_asked_for_now(swept, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(swept[0], out)
    line = [word for word in swept[1] if word not in ("--vary", "modality=fusion,event")]
    line[line.index("nu=2,8") : line.index("nu=2,8")] = ["--vary"]
    assert main([*line, "--seeds", "1", "--out", str(out)]) == 0
    with (out / "results.csv").open() as file:
        assert {(row["setting"], row["value"], row["seed"]) for row in csv.DictReader(file)} == {
            ("nu", "2", "1"),
            ("nu", "8", "1"),
        }
    assert len(list((out / "trainings").iterdir())) == 9  # the others are kept
    assert "No tests: they need at least three seeds" in (out / "index.html").read_text()


def test_page(swept):
    page = (swept[0] / "index.html").read_text()
    assert page.count("<svg") == 2 and "8 (base)" in page and "paired t-test" in page and "Holm" in page
    assert str(swept[0]) not in page and "AUC by anomaly class" in page


def test_folders_that_cannot_be_used(swept, tmp_path, capsys):
    out, line = swept
    with locked(out, 1):
        assert main(line) == 2
    assert f"process {os.getpid()} on " in (error := capsys.readouterr().err) and "choose another --out" in error
    assert main([*line, "--threads", "2"]) == 2
    assert "use --threads 1, or another --out" in capsys.readouterr().err
    (tmp_path / "other.txt").touch()
    assert main([*line, "--out", str(tmp_path)]) == 2
    assert "contains something else than a sweep" in capsys.readouterr().err
    assert main([*line, "--jobs", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_what_dies_or_diverges_costs_itself(store, tmp_path, monkeypatch, capsys):
    """Over two folds: one process is killed at its first training, and one training cannot but diverge."""
    lists = tmp_path / "lists"
    for fold in ("a", "b"):
        (lists / fold).mkdir(parents=True)
        for name in ("train.csv", "test.csv", "annotations.txt"):
            shutil.copy(store / name, lists / fold / name)
    line = flags(store, tmp_path / "out", "--lists", str(lists), "--vary", "lr=1e-3,1e9", "--modality", "event")
    killed = []
    give = local._Worker.give

    def fatal(self, task):
        give(self, task)
        if not killed and task.training.settings.lr == 1e-3:
            killed.append(task.training.key)
            os.kill(self.process.pid, signal.SIGKILL)

    monkeypatch.setattr(local._Worker, "give", fatal)
    line += ["--jobs", "1"]
    assert main(line) == 1
    error = capsys.readouterr().err
    assert "lr 1e-3, a, seed 0 failed: its process was killed by signal 9" in error
    assert "lr 1e9, b, seed 0 failed: epoch 1 of the event model diverged" in error
    assert "3 of 6 trainings failed" in error
    with (tmp_path / "out" / "results.csv").open() as file:
        failed = [row for row in csv.DictReader(file) if row["metric"] == "failed"]
    assert [(row["data"], row["value"]) for row in failed] == [
        ("store/a", "1e-3"),
        ("store/a", "1e9"),
        ("store/b", "1e9"),
    ]
    assert "diverged" in failed[1]["result"]
    assert "Failed trainings" in (tmp_path / "out" / "index.html").read_text()
    assert not document_path(tmp_path / "out", killed[0]).exists()  # it is tried again; what diverged is not
    assert main(line) == 1
    assert "2 of 6 trainings failed" in (error := capsys.readouterr().err) and "4 of 6" not in error
    assert "5 of 6 trainings are there" in error


def test_data_of_any_kind_give_the_results_of_train(store, tmp_path):
    """Clips that are averaged, and .npy files of float32, whose values the table does not have."""
    folder = tmp_path / "npy"
    random = np.random.default_rng(0)
    source = FeatureStore(store)
    for name in source.names():
        for stream, values in zip(("rgb", "event"), source.read(name)[:2], strict=True):
            path = folder / stream / f"{name}__0.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            exact = values[0].astype(np.float32)
            np.save(path, exact + random.normal(size=exact.shape).astype(np.float32) * 1e-5)
    for split in ("train", "test"):
        text = re.sub(r"^(\w+)\.mp4", r"rgb/\1__0.npy", (store / f"{split}.csv").read_text(), flags=re.M)
        (folder / f"{split}.csv").write_text(text)
    lists = ["--train-list", str(folder / "train.csv"), "--test-list", str(folder / "test.csv")]
    lists += ["--annotations", str(store / "annotations.txt")]
    shifts = frozenset({"shifts"})
    for name, features, more, measures in (("averaged", store, [], frozenset()), ("npy", folder, lists, shifts)):
        line = flags(features, tmp_path / name, "--max-segments", "8", "--modality", "fusion", "--compare", "false")
        settings = parse_train([*line, *more])
        assert train([*line, *more]) == 0
        training = Training(settings, measures)
        prepared = prepare([training], tmp_path / "sweep", progress=False)
        found = json.loads(make_document(training, next(iter(prepared.values())), tmp_path / "sweep", "cpu"))
        expected = json.loads((tmp_path / name / "metrics.json").read_text())["fusion"]
        assert found["metrics"] == {key: expected[key] for key in found["metrics"]}
        assert found["learned"] == {key: expected["learned"][key] for key in found["learned"]}
    assert set(found["shifts"]) == {"image", "event"} and len(found["shifts"]["event"]["0.5"]) == 16
    assert max(map(abs, found["shifts"]["image"]["0.5"])) > 0


def test_documents_answer_for_their_settings_and_measures(store, tmp_path):
    settings = parse_train(flags(store, tmp_path, "--modality", "fusion", "--compare", "false", "--epochs", "1"))
    plain, more = Training(settings), Training(settings, frozenset({"robustness"}))
    prepared = next(iter(prepare([plain], tmp_path, progress=False).values()))
    path = document_path(tmp_path, plain.key)
    path.parent.mkdir()
    path.write_text(make_document(more, prepared, tmp_path, "cpu"))
    document = read_document(tmp_path, plain)
    assert document and measured(document, plain) and measured(document, more)
    assert [row["masked"] for row in document["robustness"]][:2] == ["none", "image"]
    other = dataclasses.replace(more, settings=dataclasses.replace(settings, robustness="segments"))
    assert other.key == more.key and not measured(document, other)
    assert not measured(document, Training(settings, frozenset({"shifts"})))
    assert read_document(tmp_path, Training(dataclasses.replace(settings, nu=3.0))) is None
    path.rename(document_path(tmp_path, "0" * 16))
    assert read_document(tmp_path, plain) is None


def test_wrong_settings_and_data_are_found_before_training(store, tmp_path, capsys):
    line = flags(store, tmp_path / "out")
    assert main([*line, "--vary", "heads=2,3"]) == 2
    assert "--heads 3 does not divide" in capsys.readouterr().err.replace("which --heads 3 does", "--heads 3 does")
    assert main([*line, "--features", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "out" / "trainings").exists()
    with pytest.raises(UserError, match="no setting --mu"):
        parse_sweep([*line, "--vary", "mu=1"])


def test_jobs(store, tmp_path, monkeypatch):
    settings = parse_train(flags(store, tmp_path, "--modality", "fusion", "--compare", "false"))
    one = [Training(settings)]
    monkeypatch.setattr("iefvad.sweep.runner.cpus", lambda: 8)
    assert _devices(one, None, 1, 1) == ["cpu"] * 8 and _devices(one, None, 3, 1) == ["cpu"] * 2
    assert _devices(one, 3, 8, 1) == ["cpu"] * 3
    monkeypatch.setattr("iefvad.sweep.runner.resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = [Training(dataclasses.replace(settings, device="cuda"))]
    assert _devices(gpu, None, 1, 2) == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert _devices([Training(dataclasses.replace(settings, device="cuda:1"))], None, 1, 2) == ["cuda:1"] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ray_workers_give_the_same_documents(store, swept, tmp_path):
    ray = pytest.importorskip("ray")
    out = tmp_path / "ray"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    try:
        assert main([*swept[1], "--engine", "ray", "--out", str(out)]) == 0
        assert ray.is_initialized()  # what was running stays
    finally:
        ray.shutdown()
    assert contents(out) == contents(swept[0])


def test_run_all_returns_documents_in_order(swept, capsys):
    entries = parse_sweep(swept[1]).entries
    trainings = [entry.training for entry in entries][::-1]
    found = run_all(trainings, swept[0], progress=False)
    assert list(found) == list(dict.fromkeys(training.key for training in trainings))
    assert all(document["metrics"]["auc"] is not None for document in found.values())
    assert not capsys.readouterr().err
