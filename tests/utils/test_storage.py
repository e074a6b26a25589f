"""Full disks and folders that cannot be written to: known before the work, and nothing computed is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iefvad.cli.main import main
from iefvad.detection.detector import Detector
from iefvad.sweep.outputs import write_outputs
from iefvad.sweep.runner import _kept
from iefvad.training.run import Run
from iefvad.utils import files
from iefvad.utils.files import StorageError, require_writable, require_writable_file, rescued, write_text
from tests.helpers.detecting import small_model, tcp_server, write_video
from tests.helpers.released import Published
from tests.helpers.stores import training_flags, write_store


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Let the disk of a folder be full, for everything but the probe. Temporary folders are elsewhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    replace = os.replace

    def fill(folder: Path) -> None:
        def failing(source: str | Path, target: str | Path) -> None:
            if folder in Path(target).parents:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", failing)

    return fill


def test_a_folder_is_tried_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another folder with --out"):
        require_writable(tmp_path / "file" / "sub")
    require_writable(tmp_path / "new" / "sub")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # a folder that is only tried does not stay


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_cannot_be_written_is_written_elsewhere(tmp_path, monkeypatch, number):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    calls: list[Path] = []

    def write(folder: Path) -> None:
        calls.append(folder)
        if folder == tmp_path / "full":
            raise files.storage_error(OSError(number, os.strerror(number)), folder)
        (folder / "result").write_text("kept")

    with pytest.raises(StorageError, match=r"no space left in .*find the results in (.*)\.") as caught:
        rescued(write, tmp_path / "full", "the results")
    assert str(calls[1]) in str(caught.value) and (calls[1] / "result").read_text() == "kept"


def test_a_disk_that_is_full_everywhere_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def write(folder: Path) -> None:
        raise files.storage_error(OSError(errno.ENOSPC, ""), folder)

    with pytest.raises(StorageError) as caught:
        rescued(write, tmp_path / "full", "the results")
    assert "Until then" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("video")
    small_model().save_pretrained(folder / "model")
    return folder / "model", write_video(folder / "a.mp4", frames=64)


@pytest.mark.parametrize("command", ["detect", "calibrate"])
def test_no_video_is_scored_for_a_folder_that_cannot_be_written_to(command, video, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Detector, "__call__", lambda self, video: pytest.fail("a video was scored"))
    (tmp_path / "file").write_text("")
    assert main([command, *map(str, video), "--out", str(tmp_path / "file" / "sub")]) == 2
    assert "choose another folder with --out" in capsys.readouterr().err


def test_scores_of_a_video_survive_a_full_disk(video, tmp_path, full, capsys):
    full(tmp_path / "out")
    assert main(["detect", *map(str, video), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    (elsewhere,) = tmp_path.glob("iefvad-*")
    assert "no space left" in error and f"find the results of a.mp4 in {elsewhere}." in error
    assert json.loads((elsewhere / "a.json").read_text())["segments"] and (elsewhere / "a.html").is_file()


def test_a_calibration_survives_a_full_disk(video, tmp_path, full, capsys):
    full(tmp_path / "out")
    assert main(["calibrate", *map(str, video), "--out", str(tmp_path / "out")]) == 2
    (elsewhere,) = tmp_path.glob("iefvad-*")
    assert str(elsewhere) in capsys.readouterr().err and (elsewhere / "calibration.json").is_file()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    flags = training_flags(write_store(folder / "store"), folder / "run", "--epochs", "1")
    assert main(["train", *flags]) == 0
    return folder / "run"


def test_an_evaluation_survives_a_full_disk(run, tmp_path, full, capsys):
    full(tmp_path / "out")
    assert main(["evaluate", str(run), "--out", str(tmp_path / "out"), "--robustness", "false"]) == 2
    (elsewhere,) = tmp_path.glob("iefvad-*")
    assert f"find the results in {elsewhere}." in capsys.readouterr().err
    assert (elsewhere / "metrics.json").is_file() and (elsewhere / "report.html").is_file()


def test_a_cut_log_costs_the_log_and_not_the_model(run, tmp_path):
    cut = Path(shutil.copytree(run, tmp_path / "cut"))
    with open(cut / "log.jsonl", "ab") as file:
        file.write(b'{"model": "fusion", "epo\xff')
    assert Run.open(cut).history == Run.open(run).history
    assert main(["evaluate", str(cut), "--robustness", "false"]) == 0


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path / "pipe", "a pipe, a socket or a device"), (tmp_path, "a folder")):
        for function in (require_writable_file, lambda path: write_text(path, "text")):
            with pytest.raises(StorageError, match=what):
                function(path)


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(StorageError, match="it is a link to nowhere, which does not exist"):
        require_writable(tmp_path / "link")


def test_a_start_removes_what_a_kill_left(tmp_path):
    left = tmp_path / f".{files._HOST}-999999999-{files._RUN}-00000000.tmp"
    left.touch()
    require_writable(tmp_path)
    assert not left.exists()


def test_all_results_of_a_folder_go_to_one_other(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fails(name: str) -> Path:
        def write(folder: Path) -> None:
            if folder == tmp_path / "full":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            (folder / name).touch()

        with pytest.raises(StorageError, match="check the folder"):
            rescued(write, tmp_path / "full", name)
        (elsewhere,) = tmp_path.glob("iefvad-*")
        return elsewhere

    assert fails("a") == fails("b")
    assert {path.name for path in fails("a").iterdir()} == {"a", "b"}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (["report", "RUN"], "page.html"),
        (["data", "check", "STORE"], "report.md"),
        (["data", "gt", "--annotations", "STORE/annotations.txt", "--test-list", "STORE/test.csv", "--store", "STORE"],
         "gt.npy"),
    ],
    ids=["report", "check", "gt"],
)  # fmt: skip
def test_a_file_survives_a_full_disk(line, name, run, tmp_path, full, capsys):
    words = [word.replace("RUN", str(run)).replace("STORE", str(run.parent / "store")) for word in line]
    full(tmp_path / "out")
    assert main([*words, "--out", str(tmp_path / "out" / name)]) == 2
    (elsewhere,) = tmp_path.glob("iefvad-*")
    assert f"in {elsewhere}." in capsys.readouterr().err and (elsewhere / name).stat().st_size
    assert not any((tmp_path / "out").iterdir())


def test_a_full_disk_while_training_leaves_the_last_epoch(tmp_path, monkeypatch, capsys):
    """The disk is full at the second epoch. `--resume` goes on after the first."""
    flags = training_flags(write_store(tmp_path / "store"), tmp_path / "run", "--epochs", "2", "--modality", "image")
    flags += ["--compare", "false"]
    with monkeypatch.context() as patch:
        replace, states = os.replace, []

        def failing(source: str | Path, target: str | Path) -> None:
            if "trainer_state" in str(target):
                states.append(target)
                if len(states) == 2:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        patch.setattr(files.os, "replace", failing)
        assert main(["train", *flags]) == 2
    error = capsys.readouterr().err
    assert "no space left" in error and "continue with --resume" in error and "Traceback" not in error
    assert main(["train", *flags, "--resume"]) == 0
    rows = [json.loads(row)["epoch"] for row in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows == [1, 2] and (tmp_path / "run" / "metrics.json").is_file()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_live_scores_survive_a_full_disk(video, tmp_path, monkeypatch, capsys):
    """The CSV that grows cannot be written: the scores stay in memory, and all files are written at the end."""
    clip = write_video(tmp_path / "clip.ts", frames=80)
    writes = []

    def failing(self: object, scored: object) -> None:
        writes.append(scored)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("iefvad.detection.terminal._Recorder._write", failing)
    with tcp_server(clip.read_bytes()) as address:
        line = ["detect", str(video[0]), address, "--out", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*line, "--retries", "1", "--retry-seconds", "0.05"]) == 1  # the stream ended
    error = capsys.readouterr().err
    assert len(writes) == 1 and error.count("The scores are kept in memory") == 1
    (document,) = (tmp_path / "out").glob("*.json")
    assert len(json.loads(document.read_text())["segments"]) == 5


def test_the_document_of_a_training_survives_a_full_disk(tmp_path, full):
    text, out = '{"key": "k"}', tmp_path / "out"
    (out / "work" / "k").mkdir(parents=True)
    (out / "work" / "other").mkdir()
    _kept(out, "other", text)
    assert not (out / "work" / "other").exists()  # its state is no longer needed
    full(out / "trainings")
    with pytest.raises(StorageError, match="find the results of the last training in"):
        _kept(out, "k", text)
    (elsewhere,) = tmp_path.glob("iefvad-*")
    assert (elsewhere / "trainings" / "k.json").read_text() == text
    assert (out / "work" / "k").is_dir()  # the next start does not train again


def test_the_tables_of_a_sweep_survive_a_full_disk(tmp_path, full, monkeypatch):
    for part in ("_name", "_replicates", "_page"):
        monkeypatch.setattr(f"iefvad.sweep.outputs.{part}", lambda *content: "text")
    monkeypatch.setattr("iefvad.sweep.outputs.write_sweep_page", write_text)
    full(tmp_path / "out")
    with pytest.raises(StorageError, match="find the tables in"):
        write_outputs(tmp_path / "out", [], {})
    (elsewhere,) = tmp_path.glob("iefvad-*")
    assert {path.name for path in elsewhere.iterdir()} == {"results.csv", "tables.csv", "tables.tex", "index.html"}


def test_converted_weights_survive_a_full_disk(tmp_path, full, capsys):
    torch.save(Published(dim=16, layers=1, heads=1, steps=2, hidden=8).state_dict(), tmp_path / "a.pth")
    full(tmp_path / "out")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "out" / "a.safetensors")]) == 2
    (elsewhere,) = tmp_path.glob("iefvad-*")
    assert f"find the converted weights in {elsewhere}." in capsys.readouterr().err
    assert (elsewhere / "a.safetensors").is_file()
