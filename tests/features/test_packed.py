"""The packed store: its content, its size, features without lists, and damaged stores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from iefvad.data.datasets import load_packed, load_store
from iefvad.features import packing
from iefvad.features.packed import is_packed
from iefvad.features.packing import folder_pair, pack
from iefvad.features.readers import NpyReader
from iefvad.features.videos import Benchmark, Video, resample
from iefvad.utils.errors import UserError
from tests.helpers.fields import BINS, DIM, Field
from tests.helpers.stores import write_store


@pytest.fixture
def field(tmp_path: Path) -> Field:
    (tmp_path / "field").mkdir()
    return Field(tmp_path / "field")


def half(features: torch.Tensor) -> np.ndarray:
    return features.half().numpy()


def test_packed_store_holds_the_benchmark(field: Field, tmp_path: Path) -> None:
    field.pack(tmp_path / "p")
    original, packed = field.load(), load_packed(tmp_path / "p")
    assert packed.dim == DIM and packed.settings == {} and packed.name == original.name
    assert packed.notes == [
        "2 of 4 training videos are longer than 8 segments and are stored as 8 bins; those held out are scored on the"
        " bins"
    ]
    described = [(video.name, video.classes, video.segments, video.crops) for video in packed.train]
    assert described == [
        ("a", ("Fire",), 3, (0, 5)),
        ("b", ("Fire",), 8, (0, 5)),
        ("c", (), 8, (0, 5)),
        ("d", (), 8, (0, 5)),
    ]
    for before, after in zip(original.train, packed.train, strict=True):
        assert (after.fps, after.frames, after.source, after.truth) == (before.fps, before.frames, before.source, None)
        for crop in before.crops:
            for left, right in zip(before.features(crop), after.features(crop), strict=True):
                assert right.dtype == torch.float32
                np.testing.assert_array_equal(right.numpy(), half(resample(left, BINS)).astype(np.float32))
    for before, after in zip(original.test, packed.test, strict=True):
        assert (after.segments, after.crops, after.event_density) == (before.segments, (5,), None)
        np.testing.assert_array_equal(after.truth, before.truth)
        for left, right in zip(before.features(5), after.features(5), strict=True):
            np.testing.assert_array_equal(right.numpy(), half(left).astype(np.float32))
    with pytest.raises(UserError, match=r"e has the crops \[5\], not 0"):
        packed.test[0].features(0)


def test_any_safetensors_reader_opens_it(field: Field, tmp_path: Path) -> None:
    field.pack(tmp_path / "p")
    tensors = load_file(tmp_path / "p" / "train.safetensors")
    np.testing.assert_array_equal(tensors["offsets"], [0, 3, 6, 14, 22, 30, 38, 46, 54])
    assert tensors["features"].shape == (2, 55, DIM) and tensors["features"].dtype == np.float16
    assert not tensors["features"][:, -1].any()
    image, event = field.load().train[0].features(5)
    np.testing.assert_array_equal(tensors["features"][0, 3:6], half(image))
    np.testing.assert_array_equal(tensors["features"][1, 3:6], half(event))
    test = load_file(tmp_path / "p" / "test.safetensors")
    assert test["truth"].dtype == np.uint8 and np.flatnonzero(test["truth"]).tolist() == list(range(100, 140))
    catalogue = json.loads((tmp_path / "p" / "packed.json").read_text())
    assert [video["segments"] for video in catalogue["videos"]] == [3, 21, 8, 9, 30, 2]
    data = (tmp_path / "p" / "train.safetensors").read_bytes()
    begin = data.index(tensors["features"].tobytes())
    assert begin % 64 == 0, "rows should begin with cache lines"


def test_store_s_settings_densities_and_truth_go_along(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", train=4, test=4)
    original, packed = load_store(store), pack(load_store(store), tmp_path / "p", progress=False)
    assert packed.settings == original.settings
    for before, after in zip(original.test, packed.benchmark_videos("test"), strict=True):
        np.testing.assert_array_equal(after.event_density, before.event_density)
        np.testing.assert_array_equal(after.truth, before.truth)
        assert (after.source, after.fps) == (before.source, before.fps)


def test_other_truth_takes_the_place_of_the_stored(field: Field, tmp_path: Path) -> None:
    field.pack(tmp_path / "p")
    (tmp_path / "a.txt").write_text("e Fire 3 5\n")
    assert load_packed(tmp_path / "p", annotations=tmp_path / "a.txt").test[0].truth.sum() == 2
    np.save(tmp_path / "gt.npy", np.ones(512))
    assert load_packed(tmp_path / "p", gt=tmp_path / "gt.npy").test[1].truth.all()
    np.save(tmp_path / "gt.npy", np.ones(511))
    with pytest.raises(UserError, match="expected 512"):
        load_packed(tmp_path / "p", gt=tmp_path / "gt.npy")


@pytest.mark.parametrize(("clips", "segments", "dim"), [(1, 1, 1), (7, 5, 3), (161, 16, 24)])
def test_size_is_known_before_writing(tmp_path: Path, clips: int, segments: int, dim: int) -> None:
    np.save(tmp_path / "v.npy", np.zeros((segments, dim), np.float16))
    reader = NpyReader({0: (tmp_path / "v.npy", tmp_path / "v.npy")}, "error", [])
    videos = [Video(f"v{index}", (), segments, 30.0, 16 * segments, reader=reader) for index in range(clips)]
    pack(Benchmark("b", videos, videos[:1], dim), tmp_path / "p", progress=False)
    size = (tmp_path / "p" / "train.safetensors").stat().st_size
    features = 2 * 2 * (clips * segments + 1) * dim
    # beside the features: 16 bytes per clip and a header of less than 1 kB
    assert features < size < features + 16 * (clips + 1) + 1024


def test_ucf_crime_fits_in_13_gb() -> None:
    table = packing._Table("train", 768, Path("train.safetensors"))
    table.offsets = list(range(0, 16100 * 256 + 1, 256))
    packing._frame(table, [])
    test = packing._Table("test", 768, Path("test.safetensors"))
    test.offsets = [0, 1_109_680 // 16]  # the 290 test videos in the crop that is tested
    packing._frame(test, [])
    assert 12.6e9 < table.size < table.size + test.size < 13e9


# --- bare features ----------------------------------------------------------------------------------------------------


def test_folder_pair(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    files = {"a.npy": 3, "b/c__5.npy": 4, "b/c__0.npy": 4, "d.e__3.npy": 1}
    for folder in ("image", "event"):
        for name, segments in files.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / folder / name, random.normal(size=(segments, DIM)))
    pair = folder_pair(tmp_path / "image", tmp_path / "event", fps=25.0)
    pack(pair, tmp_path / "p", progress=False)
    packed = load_packed(tmp_path / "p")
    assert packed.train == [] and [(video.name, video.crops) for video in packed.test] == [
        ("a", (0,)),
        ("b/c", (0, 5)),
        ("d.e", (3,)),
    ]
    assert all(video.truth is None and video.classes == () and video.fps == 25.0 for video in packed.test)
    expected = np.load(tmp_path / "event" / "b/c__5.npy").astype(np.float32).astype(np.float16)
    np.testing.assert_array_equal(packed.test[1].features(5)[1].numpy(), expected.astype(np.float32))
    np.save(tmp_path / "image" / "a__0.npy", np.zeros((3, DIM)))
    with pytest.raises(UserError, match="both crop 0 of a"):
        folder_pair(tmp_path / "image", tmp_path / "image")
    (tmp_path / "event" / "a.npy").unlink()
    (tmp_path / "image" / "a__0.npy").unlink()
    with pytest.raises(UserError, match=r"1 event files are missing: .*event/a.npy"):
        folder_pair(tmp_path / "image", tmp_path / "event")
    with pytest.raises(UserError, match=r"contains no .npy files"):
        folder_pair(tmp_path / "absent", tmp_path / "event")


def test_videos_of_several_widths(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 4)))
    np.save(tmp_path / "b.npy", np.zeros((2, 5)))
    with pytest.raises(UserError, match=r"b.npy is 5 wide, other videos 4"):
        pack(folder_pair(tmp_path, tmp_path), tmp_path / "p")


# --- wrong stores -----------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        assert not is_packed(root)
        with pytest.raises(UserError, match="is not a packed store"):
            load_packed(root)


@pytest.mark.parametrize("name", ["train.safetensors", "test.safetensors"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(b"\xff" * 4096), "is damaged"),
    ],
)
def test_damaged_tables(field: Field, tmp_path: Path, name: str, harm: Callable, message: str) -> None:
    field.pack(tmp_path / "p")
    harm(tmp_path / "p" / name)
    with pytest.raises(UserError, match=rf"{name} {message}.*`iefvad features import` again"):
        load_packed(tmp_path / "p")


def test_tables_of_another_store(field: Field, tmp_path: Path) -> None:
    field.pack(tmp_path / "p")
    pack(field.load(), tmp_path / "q", max_segments=5, progress=False)
    shutil.copy(tmp_path / "q" / "train.safetensors", tmp_path / "p")
    with pytest.raises(UserError, match=r"does not belong to the packed\.json"):
        load_packed(tmp_path / "p")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_damaged_catalogue(field: Field, tmp_path: Path, text: str) -> None:
    field.pack(tmp_path / "p")
    (tmp_path / "p" / "packed.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read|has packed format 99"):
        load_packed(tmp_path / "p")
