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

from iefvad.cli.main import main
from iefvad.detection.detector import Detector
from iefvad.training.run import Run
from iefvad.utils import files
from iefvad.utils.files import StorageError, require_writable, rescued
from tests.helpers.detecting import small_model, write_video
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
    assert list((tmp_path / "new" / "sub").iterdir()) == []


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
