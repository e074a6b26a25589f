"""A run has a folder of its own: it is numbered, refused or held, and never overwritten."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from iefvad.cli.train import main, parse_train
from iefvad.training.folder import LOCK, claimed
from iefvad.utils.errors import UserError
from tests.helpers.stores import training_flags, write_store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    store = write_store(folder / "store")
    assert main(training_flags(store, folder / "run", "--epochs", "1")) == 0
    return store, folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_overwritten(finished, capsys):
    store, run = finished
    before = contents(run)
    assert main(training_flags(store, run, "--epochs", "1")) == 2
    assert f"{run} contains a finished run: choose another --out." in capsys.readouterr().err
    assert contents(run) == before


def test_runs_without_a_name_are_numbered(finished, tmp_path, monkeypatch, capsys):
    store, _ = finished
    monkeypatch.chdir(tmp_path)
    flags = training_flags(store, tmp_path / "unused", "--epochs", "1")
    place = flags.index("--out")
    del flags[place : place + 2]
    for _ in range(3):
        assert main(flags) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 3 and names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]
    assert f"report: {Path('runs') / names[2] / 'report.html'}" in capsys.readouterr().out
    document = json.loads((tmp_path / "runs" / names[2] / "metrics.json").read_text())
    assert document["run"]["seeds"] == [0]
    # The configuration of a numbered run names its folder, so that --resume finds it.
    assert parse_train(["--config", str(tmp_path / "runs" / names[2] / "config.yaml")]).run_dir.name == names[2]


def test_what_belongs_to_something_else_is_left_alone(finished, tmp_path, capsys):
    store, _ = finished
    before = contents(store)
    assert main(training_flags(store, store, "--epochs", "1")) == 2
    assert "contains store.json, but no run: choose another --out." in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(training_flags(store, tmp_path / "file")) == 2
    assert "file is a file: choose another --out." in capsys.readouterr().err
    assert contents(store) == before


def test_an_interrupted_run_is_continued_only_when_asked(finished, tmp_path, capsys):
    store, run = finished
    again = Path(shutil.copytree(run, tmp_path / "again"))
    (again / "metrics.json").unlink()
    assert main(training_flags(store, again, "--epochs", "1")) == 2
    assert "contains an interrupted run: add --resume to continue it" in capsys.readouterr().err
    assert main(training_flags(store, again, "--epochs", "1", "--resume")) == 0


def test_resume_needs_a_run(finished, tmp_path, capsys):
    store, _ = finished
    assert main(training_flags(store, tmp_path / "none", "--resume")) == 2
    assert f"--resume: there is no run in {tmp_path / 'none'}" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_that_ended_before_its_first_epoch_may_be_started_again(finished, tmp_path):
    store, _ = finished
    flags = training_flags(store, tmp_path / "run", "--epochs", "1")
    broken = Path(shutil.copytree(store, tmp_path / "broken"))
    (broken / "train.csv").write_text("path,label\nmissing,Normal\n")
    flags[flags.index("--features") + 1] = str(broken)
    assert main(flags) == 2
    flags[flags.index("--features") + 1] = str(store)
    assert main(flags) == 0


def test_one_training_at_a_time_holds_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("iefvad.utils.locks.PATIENCE", 0.1)
    config = parse_train(["--out", str(tmp_path / "run")])
    with claimed(config) as held:
        assert held.out == str(tmp_path / "run")
        who = f"process {os.getpid()} on {socket.gethostname()} works in {tmp_path / 'run'}"
        with pytest.raises(UserError, match=who), claimed(config):
            pass
    with claimed(config):
        pass


def test_two_runs_without_a_name_that_start_together_take_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iefvad.utils.locks.PATIENCE", 0.1)
    config = parse_train([])
    with claimed(config) as first, claimed(config) as second:
        assert first.run_dir == Path("runs/synth") and second.run_dir == Path("runs/synth-2")
        assert (tmp_path / second.run_dir / LOCK).exists()


def test_temporary_files_of_a_killed_training_are_removed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    host = __import__("iefvad.utils.files", fromlist=["_HOST"])._HOST
    left = folder / f".{host}-999999999-00000000-00000000.tmp"
    left.write_text("half")
    with claimed(parse_train(["--out", str(folder)])):
        assert not left.exists()
