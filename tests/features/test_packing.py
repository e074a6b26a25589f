"""Imports into a packed store: killed ones continue to the same bytes, and wrong inputs are refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iefvad.data.datasets import load_packed
from iefvad.features import packing
from iefvad.features.packed import PackedStore, is_packed
from iefvad.features.packing import pack
from iefvad.features.readers import NpyReader
from iefvad.features.videos import Benchmark, Video
from iefvad.utils.errors import UserError
from tests.helpers.fields import BINS, DIM, Field, bytes_of
from tests.helpers.stores import write_store


@pytest.fixture
def field(tmp_path: Path) -> Field:
    (tmp_path / "field").mkdir()
    return Field(tmp_path / "field")


# --- interrupted imports ----------------------------------------------------------------------------------------------


def dies(function: Callable[[], object]) -> None:
    """Run a function in a child process that must be killed by SIGKILL, which no `finally` notices."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            function()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the import ended before it was killed"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(point: str, count: int) -> None:
    """Kill this process when a point of the import is reached for the `count`-th time."""
    passed = SimpleNamespace(times=0)

    def due() -> bool:
        passed.times += 1
        return passed.times == count

    if point == "rows":
        write = packing._write_all

        def half_written(file: object, values: memoryview) -> None:
            if due():
                write(file, values[: len(values) // 2])
                kill()
            write(file, values)

        packing._write_all = half_written
    elif point == "journal":
        append = packing._Journal._append

        def torn(self: object, line: dict) -> None:
            if due():
                with open(self.path, "ab", buffering=0) as file:
                    file.write(json.dumps(line).encode()[:-9])
                kill()
            append(self, line)

        packing._Journal._append = torn
    elif point == "fsync":
        sync = os.fsync
        os.fsync = lambda number: kill() if due() else sync(number)
    elif point == "catalogue":
        packing.write_json = lambda path, value: kill()
    elif point == "remove":
        packing._Journal.remove = lambda self: kill()


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    original = NpyReader.__call__

    def counted(self: NpyReader, crop: int) -> tuple[np.ndarray, np.ndarray]:
        reads.append(crop)
        return original(self, crop)

    monkeypatch.setattr(NpyReader, "__call__", counted)
    return reads


@pytest.mark.parametrize(
    ("point", "count", "left"),
    [
        ("fsync", 1, 10),  # files allocated, no journal yet
        ("fsync", 2, 10),
        ("journal", 1, 10),
        ("rows", 1, 10),
        ("rows", 6, 8),
        ("rows", 20, 1),
        ("journal", 2, 10),
        ("journal", 7, 5),
        ("fsync", 3, 2),  # after the training clips
        ("fsync", 4, 0),
        ("catalogue", 1, 0),
        ("remove", 1, 0),
    ],
)
def test_killed_import_goes_on_to_the_same_bytes(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, count: int, left: int
) -> None:
    out = tmp_path / "killed"

    def interrupted() -> None:
        killed_at(point, count)
        field.pack(out)

    dies(interrupted)
    if point != "remove" and (out / "import.journal").exists():
        with pytest.raises(UserError, match=r"did not finish: run the same `iefvad features import` again"):
            load_packed(out)
    reads = count_reads(monkeypatch)
    field.pack(out)
    assert len(reads) == left, "finished clips were read again, or an unfinished one was not"
    field.pack(tmp_path / "whole")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert set(bytes_of(out)) == {"packed.json", "train.safetensors", "test.safetensors"}


def test_killed_again_and_again(field: Field, tmp_path: Path) -> None:
    path = field.path("event_thr_10", "Fire", "b", 5)
    values = np.load(path)
    values[3, 2] = np.nan
    np.save(path, values)
    out = tmp_path / "killed"

    def interrupted() -> None:
        killed_at("rows", 4)  # one clip is finished, the second half written
        field.pack(out, nan="zero")

    for _ in range(9):
        dies(interrupted)
    field.pack(out, nan="zero")
    whole = field.pack(tmp_path / "whole", nan="zero")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert any("NaN" in note and str(path) in note for note in whole.notes)


def test_finished_import_is_left_alone(field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field.pack(tmp_path / "p")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p").iterdir()}
    reads = count_reads(monkeypatch)
    field.pack(tmp_path / "p")
    assert not reads and before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "p").iterdir()}


@pytest.mark.parametrize("change", ["file", "list", "bins"])
def test_changed_sources_start_over(
    field: Field, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    out = tmp_path / "p"

    def interrupted() -> None:
        killed_at("rows", 9)
        field.pack(out)

    def altered(folder: Path) -> PackedStore:
        return pack(field.load(), folder, max_segments=BINS - (change == "bins"), progress=False)

    dies(interrupted)
    if change == "file":
        np.save(field.path("rgb", "Fire", "a", 0), np.ones((3, DIM), np.float32))
    elif change == "list":
        lines = (field.root / "train.csv").read_text().splitlines()
        (field.root / "train.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    altered(out)
    assert "changed since the import stopped; it starts again" in capsys.readouterr().out
    altered(tmp_path / "whole")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_rows_lost_with_the_power_are_written_again(field: Field, tmp_path: Path) -> None:
    out = tmp_path / "p"

    def interrupted() -> None:
        killed_at("rows", 15)
        field.pack(out)

    dies(interrupted)
    with open(out / "train.safetensors", "r+b") as file:
        file.seek(-2 * 30 * DIM, os.SEEK_END)
        file.write(bytes(50))
    field.pack(out)
    field.pack(tmp_path / "whole")
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_nan_is_looked_for_again_when_it_is_no_longer_accepted(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iefvad.data.datasets._EAGER_FILES", 0)
    path = field.path("rgb", "Fire", "a", 5)
    np.save(path, np.full((3, DIM), np.nan, np.float32))

    def interrupted() -> None:
        killed_at("rows", 9)
        field.pack(tmp_path / "p", nan="zero")

    dies(interrupted)
    with pytest.raises(UserError, match=r"a__5.npy: 18 of 18 features are NaN .*--nan zero"):
        field.pack(tmp_path / "p")
    reads = count_reads(monkeypatch)
    field.pack(tmp_path / "p", nan="zero")
    assert len(reads) == 6  # the four clips of the first import still count where NaN is accepted


# --- wrong inputs -----------------------------------------------------------------------------------------------------


def test_folder_of_something_else_is_refused(field: Field, tmp_path: Path) -> None:
    field.pack(tmp_path / "p")
    with pytest.raises(UserError, match="contains a packed store of other files, lists or options"):
        pack(field.load(), tmp_path / "p", max_segments=5, progress=False)
    store = write_store(tmp_path / "s", train=2, test=2)
    with pytest.raises(UserError, match="is a feature store; choose another folder"):
        field.pack(store)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        field.pack(tmp_path / "file")


def test_disk_without_room(field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: SimpleNamespace(free=500))
    with pytest.raises(UserError, match=r"takes 0.00 GB and the disk of .* has 0.00 GB left"):
        field.pack(tmp_path / "p")
    assert not (tmp_path / "p" / "train.safetensors").exists() and not is_packed(tmp_path / "p")


@pytest.mark.parametrize("folder", ["rgb", "event_thr_10"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((3, DIM), np.nan), r"NaN or infinity in 1 of \d+ feature files: .*a__5.npy.*--nan zero"),
        (np.full((3, DIM), 1e5), r"a__5.npy: features reach 1e\+05, beyond float16"),
        (np.zeros((4, DIM)), r"a__5.npy is 4 segments x 6, but another crop is 3 x 6|a__5.npy is 4 .* but .* is 3 x 6"),
        (np.zeros((3, 5)), r"a__5.npy is 3 segments x 5, but .* is 3 x 6"),
        (np.zeros(3), r"a__5.npy has shape \(3,\)"),
        (np.array([{}] * 3, dtype=object), "contains pickled objects"),
    ],
)
def test_wrong_features(field: Field, tmp_path: Path, folder: str, values: np.ndarray, message: str) -> None:
    np.save(field.path(folder, "Fire", "a", 5), values, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        field.pack(tmp_path / "p")
    assert not (tmp_path / "p" / "packed.json").exists()


def test_wrong_headers_are_found_before_anything_is_written(field: Field, tmp_path: Path) -> None:
    path = field.path("rgb", "Normal", "d", 5)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"d__5.npy cannot be read .*truncated"):
        field.pack(tmp_path / "p")
    np.save(path, np.zeros((7, DIM)))
    with pytest.raises(UserError, match=r"d__5.npy is 7 segments"):
        field.pack(tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_missing_event_file_and_empty_video(field: Field, tmp_path: Path) -> None:
    for folder in ("rgb", "event_thr_10"):
        np.save(field.path(folder, "Normal", "f", 5), np.zeros((0, DIM)))
    with pytest.raises(UserError, match=r"f__5.npy has no segments"):
        field.pack(tmp_path / "p")
    field.path("event_thr_10", "Fire", "b", 5).unlink()
    with pytest.raises(UserError, match=r"1 event features .* missing: .*event_thr_10/Fire/b__5.npy"):
        field.pack(tmp_path / "p")
    benchmark = Benchmark("b", [], [Video("empty", (), 0, 30.0, 0)], DIM)
    with pytest.raises(UserError, match="empty has no segments"):
        pack(benchmark, tmp_path / "p")
    with pytest.raises(UserError, match="v has no features"):
        pack(Benchmark("b", [], [Video("v", (), 2, 30.0, 0)], DIM), tmp_path / "p")
