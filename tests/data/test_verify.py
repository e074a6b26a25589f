"""Damage that leaves the structure of a file intact is noticed: one flipped bit in a store or a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from iefvad.cli.main import main
from iefvad.data.batches import Clips
from iefvad.data.datasets import load_packed, load_store
from iefvad.features.packing import pack
from iefvad.features.store import FeatureStore, Sidecar
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import read_tensors, write_tensors

DIM, VIDEOS = 4, 4


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A feature store with lists and truth, and a packed store of it."""
    folder = tmp_path_factory.mktemp("stores")
    store = FeatureStore(folder / "store", settings={"dim": DIM, "crops": [0, 5]}, create=True)
    random = np.random.default_rng(0)
    for name in range(VIDEOS):
        image, event = random.normal(size=(2, 2, 3, DIM))
        side = Sidecar(str(name), "", "h", 25.0, 48, 3, crops=[0, 5], event_density=[0.5, 0.25, 0.0])
        store.write(str(name), image, event, side)
    (store.root / "train.csv").write_text("path,label\n0,Normal\n1,Fire\n")
    (store.root / "test.csv").write_text("path,label\n2,Normal\n3,Fire\n")
    (store.root / "annotations.txt").write_text("3 Fire 8 20\n")
    pack(load_store(store.root), folder / "packed", progress=False)
    return {"store": store.root, "packed": folder / "packed"}


def contents(kind: str, root: Path) -> list[np.ndarray]:
    """All that training and testing take from a store."""
    benchmark = load_store(root) if kind == "store" else load_packed(root)
    found = [values.numpy() for video in benchmark.test for crop in video.crops for values in video.features(crop)]
    batch = Clips(benchmark.train, max_segments=256).batch(range(4))
    found += [batch.image.numpy().copy(), batch.event.numpy().copy(), batch.lengths.numpy(), batch.labels.numpy()]
    for video in benchmark.test:
        assert video.truth is not None and video.event_density is not None
        found += [np.array([video.name, video.classes, video.fps, video.frames], object), video.truth]
        found.append(np.asarray(video.event_density))
    return found


def flips(path: Path, every: int) -> list[Callable[[], None]]:
    """Ways to flip one bit of a file, in each of its bytes or in each of so many."""
    data = path.read_bytes()

    def flip(position: int) -> Callable[[], None]:
        def write() -> None:
            changed = bytearray(data)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)

        return write

    return [flip(position) for position in range(0, len(data), every)]


@pytest.mark.parametrize(
    ("kind", "name", "every"),
    [
        ("store", "0.safetensors", 5),
        ("store", "3.safetensors", 5),
        ("store", "3.json", 5),
        ("packed", "train.safetensors", 7),
        ("packed", "test.safetensors", 7),
        ("packed", "packed.json", 11),
    ],
)
def test_a_flipped_bit_is_never_read_as_another_value(stores, tmp_path, kind, name, every):
    root = Path(shutil.copytree(stores[kind], tmp_path / kind))
    expected = contents(kind, root)
    refused = 0
    for flip in flips(root / name, every):
        flip()
        try:
            found = contents(kind, root)
        except UserError:
            refused += 1
            continue
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)  # such as a space of the header that became a tab
    assert refused > 20, "no damage was noticed: the test flips nothing that matters"


def test_a_flipped_bit_of_a_model_is_never_read_as_another_value(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"w": torch.randn(3, 5), "half": torch.randn(4).half(), "n": torch.tensor(3), "none": torch.zeros(0, 2)}
    write_tensors(path, tensors, {"iefvad": '{"attenuation": 0.5}', "more": "text"})
    expected, metadata = read_tensors(path)
    assert metadata == {"iefvad": '{"attenuation": 0.5}', "more": "text"}
    for name, value in tensors.items():
        assert torch.equal(expected[name], value) and expected[name].dtype == value.dtype
    refused = 0
    for flip in flips(path, 1):
        flip()
        try:
            found = read_tensors(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        assert found[1].items() >= metadata.items()  # a bit of the name of the checksums is without effect
        assert found[0].keys() == expected.keys()
        assert all(torch.equal(found[0][name], value) for name, value in expected.items())
    assert refused > 200


def test_files_without_checksums_are_read(stores, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"w": torch.ones(2)}, path, {"who": "another program"})
    assert read_tensors(path)[1] == {"who": "another program"}
    root = Path(shutil.copytree(stores["store"], tmp_path / "old"))
    for features in root.glob("*.safetensors"):
        with safe_open(features, "pt") as file:
            save_file({key: file.get_tensor(key) for key in ("image", "event")}, features, {"source_hash": "h"})
    for one, other in zip(contents("store", root), contents("store", stores["store"]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert main(["data", "verify", str(root), str(path)]) == 0


def flip_exponent(path: Path) -> None:
    data = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    data[head + 2 * DIM + 1] ^= 1 << 4  # of the exponent of a float16; behind the offsets of a packed store
    path.write_bytes(data)


def test_verify_names_what_is_damaged(stores, tmp_path, capsys):
    root = Path(shutil.copytree(stores["store"], tmp_path / "store"))
    assert main(["data", "verify", str(root), str(stores["packed"])]) == 0
    printed = capsys.readouterr().out
    assert f"{root}: feature store, 4 intact, 0 damaged" in printed
    assert f"{stores['packed']}: packed store, 4 intact, 0 damaged" in printed
    flip_exponent(root / "2.safetensors")
    assert main(["data", "verify", str(root)]) == 1
    assert "3 intact, 1 damaged" in (printed := capsys.readouterr().out)
    assert "2.safetensors is damaged (the event features of crop 0 changed" in printed
    assert load_store(root, verify=False).test[0].features(0)[1].shape == (3, DIM)
    assert main(["data", "verify", str(root), "--forget"]) == 1
    assert "2" not in FeatureStore(root).names(), "the next extraction would leave the damaged video as it is"


def test_verify_refuses_what_is_nothing(tmp_path, capsys):
    assert main(["data", "verify", str(tmp_path)]) == 2
    assert "contains nothing to verify" in capsys.readouterr().err
