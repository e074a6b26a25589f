"""What of `_triton` does not need a GPU: where choices are kept, and how one is forced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ief_kernels import _spills, _triton
from ief_kernels._spills import Spill
from ief_kernels._triton import Config, Tuner

CONFIGS = [Config({"BLOCK": 64}, 2), Config({"BLOCK": 128}), Config({"BLOCK": 256}, 8, 2)]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path / "here"))
    assert _triton.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("IEF_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _triton.cache_folder() == tmp_path / "ief_kernels"


def test_choices_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path / "new" / "folder"))
    assert _triton._read("GPU") == {}
    _triton._write("GPU", "a", 1)
    _triton._write("GPU", "b", 2)
    assert _triton._read("GPU") == {"a": 1, "b": 2} and _triton._read("other") == {}
    assert [path.name for path in _triton.cache_folder().iterdir()] == ["GPU.json"]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_file_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path))
    (tmp_path / "GPU.json").write_text(text)
    assert _triton._read("GPU") == {}
    _triton._write("GPU", "a", 1)
    assert json.loads((tmp_path / "GPU.json").read_text()) == {"a": 1}


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path / "file"))
    _triton._write("GPU", "a", 1)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_forced_and_first() -> None:
    tuner = Tuner("kernel", CONFIGS)
    ran: list[Config] = []

    def launch() -> Config:
        return tuner.launch(torch.zeros(1), ("key",), ran.append)

    assert launch() == CONFIGS[0]  # nothing is measured on the CPU
    with _triton.forced(1):
        assert launch() == CONFIGS[1]
        with _triton.forced(9):
            assert launch() == CONFIGS[2]
        assert launch() == CONFIGS[1]
    assert launch() == CONFIGS[0]
    assert ran == [CONFIGS[i] for i in (0, 1, 2, 1, 0)]


def test_other_configurations_are_another_entry() -> None:
    versions = [
        Tuner("kernel", configs)._version for configs in (CONFIGS, CONFIGS[:2], list(reversed(CONFIGS)), CONFIGS)
    ]
    assert len(set(versions)) == 3 and versions[0] == versions[3]


def test_configurations_that_spill_do_not_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(config: Config, arch: int, tuner: str = "kernel") -> Spill:
        return Spill(tuner, "op", "jitted", "fp32", arch, f"FLAG=1,{config.name}", 4)

    monkeypatch.setattr(_spills, "version", lambda: "3.0")
    tuner = Tuner("kernel", CONFIGS)
    assert tuner.usable(9) == (0, 1, 2)
    rows = (row(CONFIGS[0], 90), row(CONFIGS[1], 80), row(CONFIGS[2], 90, "other"))
    monkeypatch.setitem(_spills.RECORDED, "3.0", rows)
    assert tuner.usable(9) == (1, 2) and tuner.usable(8) == (0, 2) and tuner.usable(10) == (0, 1, 2)
    monkeypatch.setitem(_spills.RECORDED, "3.0", tuple(row(config, 90) for config in CONFIGS))
    assert tuner.usable(9) == (0, 1, 2)  # one has to serve
    monkeypatch.setattr(_spills, "version", lambda: "")
    assert tuner.usable(9) == (0, 1, 2)


def test_a_name_tells_configurations_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [config.name for config in CONFIGS[:2]] == ["BLOCK=64,warps=2,stages=1", "BLOCK=128,warps=4,stages=1"]
    # a name that another ends with is not taken for it
    monkeypatch.setattr(_spills, "version", lambda: "3.0")
    row = Spill("kernel", "op", "jitted", "fp32", 90, "BLOCK_K=6,warps=4,stages=1", 4)
    monkeypatch.setitem(_spills.RECORDED, "3.0", (row,))
    assert Tuner("kernel", [Config({"K": 6}), Config({"BLOCK_K": 6})]).usable(9) == (0,)


def test_options() -> None:
    options = Config({"BLOCK": 64}, 2, 3).options()
    assert options == {"BLOCK": 64, "num_warps": 2, "num_stages": 3, "enable_fp_fusion": True}
