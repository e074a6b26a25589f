"""Damaged feature files, stores and packed stores: what the fuzzing harness found, one test per kind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from iefvad.cli.main import main
from iefvad.data.datasets import load_store
from iefvad.features.npy import load_npy, open_npy
from iefvad.features.packed import PackedStore
from iefvad.features.packing import pack
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.utils.plain_json import parse_json
from tests.helpers.stores import without_checksums, write_store


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of an earlier version, without checksums, and a packed store of one."""
    root = tmp_path_factory.mktemp("stock")
    write_store(root / "store", train=4, test=2)
    pack(load_store(root / "store"), root / "packed", progress=False)
    for path in (root / "store").glob("*.safetensors"):
        without_checksums(path)
    catalogue = json.loads((root / "packed/packed.json").read_text())
    catalogue = {key: value for key, value in catalogue.items() if key not in ("check", "checks")}
    (root / "packed/packed.json").write_text(json.dumps(catalogue))
    return root


@pytest.fixture
def copies(stock: Path, tmp_path: Path) -> Path:
    shutil.copytree(stock, tmp_path / "copies")
    return tmp_path / "copies"


# --- npy --------------------------------------------------------------------------------------------------------------


def damaged_npy(path: Path, header: str) -> Path:
    text = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64))
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8)}",
        "{'descr': '''",
        "(" * 3000,
        "[" * 3000,
    ],
)
def test_a_damaged_header_is_one_message(header: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.npy"):
        open_npy(damaged_npy(tmp_path / "x.npy", header))


def test_bytes_beyond_the_header_s_shape_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((3, 4), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(3, 4)", b"(2, 4)"))
    with pytest.raises(UserError, match="has 16 bytes more than its header says"):
        load_npy(path)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(UserError, match="a pipe"):
        open_npy(tmp_path / "x.npy")


def test_an_array_larger_than_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = damaged_npy(tmp_path / "x.npy", "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}")
    os.truncate(path, path.stat().st_size - 64 + 10**12)
    with pytest.raises(UserError, match="1000 GB"):
        open_npy(path)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_become_infinity_quietly(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((1, 2), 1e300))
    assert np.isinf(load_npy(tmp_path / "x.npy")).all()


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', "9" * 5000, "{", b"\xff\xfe"])
def test_every_fault_of_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


# --- feature stores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"fps": "25"}, {"fps": 0}, {"fps": float("nan")}, {"crops": []}, {"crops": [0, 0]}, {"crops": "0"},
        {"segments": True}, {"frames": -1}, {"source": None}, {"name": "test001"}, {"event_density": [0.5]},
        {"event_density": "x"}, {"starts": [1.0]}, {"ends": None}, {"clock": {"origin": "stamps"}}, {"clock": []},
        {"settings": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_sidecar_with_an_odd_entry_makes_its_video_incomplete(change: dict[str, object], copies: Path) -> None:
    path = copies / "store/test000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    store = FeatureStore(copies / "store")
    assert store.incomplete() == ["test000"]
    assert "test000" not in store.names()
    with pytest.raises(UserError, match="no complete video 'test000'"):
        store.read("test000")


def test_times_out_of_order_make_a_video_incomplete(copies: Path) -> None:
    path = copies / "store/test000.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"ends": [-5.0, *content["ends"][1:]]}))
    assert FeatureStore(copies / "store").incomplete() == ["test000"]


@pytest.mark.parametrize("kind", ["another type", "bfloat16", "pipe", "nested", "no features"])
def test_a_damaged_video_is_left_out_by_name(
    kind: str, copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, features, sidecar = (copies / "store" / name for name in ("", "test001.safetensors", "test001.json"))
    if kind == "another type":
        metadata = {"source_hash": "test001"}
        save_file({key: value.astype(np.float32) for key, value in load_file(features).items()}, features, metadata)
    elif kind == "bfloat16":
        data = features.read_bytes()
        length = int.from_bytes(data[:8], "little")
        head = data[8 : 8 + length].replace(b'"F16"', b'"BF16"')
        features.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    elif kind == "pipe":
        sidecar.unlink()
        os.mkfifo(sidecar)
    elif kind == "nested":
        sidecar.write_text("[" * 100_000)
    else:
        features.unlink()
    assert main(["features", "export", str(store), "--out", str(tmp_path / "out")]) == 0
    assert "1 videos are damaged or not complete and are left out: test001" in capsys.readouterr().out
    assert main(["features", "info", str(store)]) == 0
    assert "5 videos" in (text := capsys.readouterr().out)
    assert "left out: test001" in text
    assert main(["data", "verify", str(store)]) == 1
    assert "test001" in capsys.readouterr().out


# --- packed stores ----------------------------------------------------------------------------------------------------


def entry(key: str, value: object) -> Callable[[dict], None]:
    return lambda content: content["videos"][0].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        entry("split", "x"), entry("segments", "6"), entry("segments", 0), entry("crops", [0, 0]), entry("crops", []),
        entry("fps", 0), entry("fps", None), entry("classes", [1]), entry("name", 5), entry("source", []),
        entry("truth", 7), lambda content: content["videos"].append(3), lambda content: content["videos"][0].pop("fps"),
        lambda content: content.update(dim=-1), lambda content: content.update(settings=[]),
        lambda content: content.update(videos=5), lambda content: content.update(notes=None),
    ],
)  # fmt: skip
def test_a_catalogue_with_an_odd_entry_is_refused(change: Callable[[dict], None], copies: Path) -> None:
    path = copies / "packed/packed.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"packed\.json cannot be read|does not belong"):
        PackedStore(copies / "packed")


def test_a_catalogue_that_was_changed_is_refused(tmp_path: Path) -> None:
    """The change is possible in itself: only the checksum tells it."""
    write_store(tmp_path / "store", train=2, test=1)
    pack(load_store(tmp_path / "store"), tmp_path / "packed", progress=False)
    path = tmp_path / "packed/packed.json"
    content = json.loads(path.read_text())
    content["videos"][0]["fps"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"packed\.json is damaged"):
        PackedStore(tmp_path / "packed")


@pytest.mark.parametrize("function", ["opened", "read_regular"])
def test_what_the_file_system_does_not_give_is_no_damage(
    function: str, stock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(number: int) -> Callable[[Path], None]:
        def fail(path: Path) -> None:
            raise OSError(number, os.strerror(number), str(path))

        return fail

    monkeypatch.setattr(f"iefvad.features.packed.{function}", failing(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        PackedStore(stock / "packed")
    monkeypatch.setattr(f"iefvad.features.packed.{function}", failing(errno.EACCES))
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\): check it"):
        PackedStore(stock / "packed")


@pytest.mark.parametrize(
    ("key", "value"), [("truth", 7), ("starts", np.nan), ("starts", 1e9), ("event_density", np.inf)]
)
def test_impossible_small_numbers_of_a_packed_store_are_refused(key: str, value: float, copies: Path) -> None:
    path = copies / "packed/test.safetensors"
    tensors = {name: array.copy() for name, array in load_file(path).items() if name != "checks"}
    tensors[key][0] = value
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"test\.safetensors"):
        PackedStore(copies / "packed").benchmark_videos("test")


def test_a_packed_store_without_its_catalogue_is_no_folder_of_models(
    copies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copies / "packed/packed.json").unlink()
    assert main(["data", "verify", str(copies / "packed")]) == 2
    assert "no packed.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    ["3", "[]", '{"split": "x", "clip": 0}', '{"split": "train", "clip": "0"}', '{"split": "train", "clip": 99}',
     '{"split": "train", "clip": 0, "notes": 5}', '{"split": [], "clip": 0, "notes": []}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_line_of_a_journal_is_not_taken(line: str, copies: Path) -> None:
    expected = PackedStore(copies / "packed")
    fresh = copies / "fresh"
    pack(load_store(copies / "store"), fresh, progress=False)
    plan = json.loads((fresh / "packed.json").read_text())["plan"]
    (fresh / "packed.json").unlink()
    (fresh / "import.journal").write_text(json.dumps({"plan": plan}) + "\n" + line + "\n")
    again = pack(load_store(copies / "store"), fresh, progress=False)
    for split in ("train", "test"):
        assert np.array_equal(again.features[split].numpy(), expected.features[split].numpy())
