"""A lack of memory or of open files is one line, whoever reports it."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iefvad.cli.command import guarded
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.utils.memory import is_shortage, memory_is_short, shortage
from iefvad.utils.tensors import read_tensors
from iefvad.video.decoding import Decoder
from tests.helpers.stores import write_store
from tests.helpers.video_files import make_video


def raised(function) -> Exception:
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


@pytest.mark.parametrize(
    ("function", "amount"),
    [
        (lambda: np.zeros(2**57), "more were needed"),
        (lambda: torch.empty(2**57), "more were needed"),
        (lambda: bytearray(2**60), "not enough memory"),
    ],
    ids=["numpy", "torch", "python"],
)
def test_libraries(function, amount, capsys):
    error = raised(function)
    assert is_shortage(error) and amount in shortage(error)

    def work() -> int:
        function()
        return 0

    assert guarded("iefvad x", work, memory="use a smaller --batch") == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and "not enough memory" in printed[0] and "use a smaller --batch" in printed[0]


def test_messages():
    assert shortage(RuntimeError("you tried to allocate 4294967296 bytes. Error")) == (
        "not enough memory (4.3 GB more were needed)"
    )
    assert "8.6 GB" in shortage(MemoryError("Unable to allocate 8.00 GiB for an array"))
    assert shortage(MemoryError()) == "not enough memory"
    assert is_shortage(MemoryError("std::bad_alloc")) and is_shortage(OSError(errno.ENOMEM, ""))
    assert "ulimit -u" in shortage(RuntimeError("can't start new thread"))
    assert not is_shortage(ValueError("shapes differ"))


@pytest.fixture
def little_memory(monkeypatch):
    """Return a function that lets the limit of memory be this number of MiB above what is used."""

    def limit(left: int) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + (left << 20), resource.RLIM_INFINITY))

    yield limit


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from Linux's /proc")
def test_little_memory_is_one_line_whatever_a_library_says(little_memory, capsys):
    started = []

    def work() -> int:
        started.append(True)
        raise ImportError("libx.so: some part is missing")

    with pytest.raises(ImportError):
        guarded("iefvad x", work)
    little_memory(48)
    assert memory_is_short() and not memory_is_short(16 << 20)
    assert guarded("iefvad x", work, memory="use a smaller --batch") == 2
    assert "some part is missing: probably there is not enough memory: use a smaller" in capsys.readouterr().err
    little_memory(16)
    assert guarded("iefvad x", work, memory="use a smaller --batch") == 2
    assert len(started) == 2  # not a third time: a thread that cannot start may hang Python
    assert capsys.readouterr().err == "iefvad x: error: not enough memory: use a smaller --batch.\n"


def test_a_decoder_without_memory_does_not_call_the_video_damaged(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", frames=20)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 2000] = bytes(2000)  # no packet can be decoded
    path.write_bytes(data)
    assert list(Decoder(path)) == []
    monkeypatch.setattr("iefvad.video.decoding.memory_is_short", lambda: True)
    with pytest.raises(MemoryError, match=r"decoding .*a\.mp4"):
        list(Decoder(path))


@pytest.fixture
def few_files():
    """No further file can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_many_open_files_are_no_damage(tmp_path: Path, few_files, capsys):
    save_file({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    store = FeatureStore(write_store(tmp_path / "store", train=1, test=1))
    (name, *_) = store.names()
    few_files()

    def work() -> int:
        read_tensors(tmp_path / "a.safetensors")
        return 0

    assert guarded("iefvad x", work) == 2
    assert guarded("iefvad x", lambda: len(store.names())) == 2  # videos do not count as missing
    assert guarded("iefvad x", lambda: int(name in store)) == 2

    def explained() -> int:
        try:
            open(tmp_path / "a.safetensors")  # noqa: SIM115
        except OSError:
            raise UserError("a.mp4 cannot be read.") from None
        return 0

    assert guarded("iefvad x", explained) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 4 and all("ulimit -n" in line for line in printed) and "a.mp4" in printed[3]
