"""Benchmarks from a store and from the field's lists, with all checks that protect a result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from iefvad.data.datasets import load_lists, load_store
from iefvad.data.lists import read_list
from iefvad.features.store import FeatureStore, Sidecar
from iefvad.features.videos import pad_batch, resample
from iefvad.utils.errors import UserError

DIM = 6


def values(segments: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(segments, DIM)).astype(np.float32)


# --- from the field's lists -------------------------------------------------------------------------------------------


class Field:
    """A small data set in the field's layout: two normal and two abnormal training videos, and three test videos."""

    train = (("Abuse", "A1", 3), ("Abuse", "A2", 4), ("Normal", "N1", 5), ("Normal", "N2", 2))
    test = (("Abuse", "A3", 3), ("Normal", "N3", 2), ("Abuse", "A4", 5))

    def __init__(self, root: Path, *, event: str = "event", crops: Sequence[int] = (0, 5)) -> None:
        self.root, self.event = root, event
        for split, videos, listed in (("train", self.train, crops), ("test", self.test, (5,))):
            rows = ["path,label"]
            for label, name, segments in videos:
                for crop in listed:
                    for seed, folder in enumerate(("rgb", event)):
                        path = self.path(folder, label, name, crop)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        np.save(path, values(segments, 10 * crop + seed))
                    rows.append(f"/media/Data1/set/vitl/rgb/{label}/{name}__{crop}.npy,{label}")
            (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
        self.truth = np.zeros(160)
        self.truth[20:30] = self.truth[100:160] = 1
        np.save(root / "gt.npy", self.truth)

    def path(self, folder: str, label: str, name: str, crop: int) -> Path:
        return self.root / folder / label / f"{name}__{crop}.npy"

    def load(self, **options: object):
        arguments = {"features": self.root, "event_folder": self.event, **options}
        return load_lists(self.root / "train.csv", self.root / "test.csv", self.root / "gt.npy", **arguments)


@pytest.fixture
def layout(tmp_path: Path) -> Field:
    return Field(tmp_path)


def test_lists(layout: Field) -> None:
    benchmark = layout.load()
    assert benchmark.dim == DIM and benchmark.notes == [] and benchmark.settings == {}
    described = [(video.name, video.classes, video.segments, video.crops) for video in benchmark.train]
    assert described == [
        ("A1", ("Abuse",), 3, (0, 5)),
        ("A2", ("Abuse",), 4, (0, 5)),
        ("N1", (), 5, (0, 5)),
        ("N2", (), 2, (0, 5)),
    ]
    assert all(video.truth is None for video in benchmark.train)
    assert [video.name for video in benchmark.test] == ["A3", "N3", "A4"]
    truth = np.concatenate([video.truth for video in benchmark.test])
    assert truth.dtype == np.uint8
    np.testing.assert_array_equal(truth, layout.truth)
    first = benchmark.test[0]
    assert (first.frames, first.fps, first.crops, first.event_density) == (48, 30.0, (5,), None)
    image, event = first.features(5)
    assert image.dtype == event.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), values(3, 50))
    np.testing.assert_array_equal(event.numpy(), values(3, 51))
    with pytest.raises(UserError, match=r"A3 has the crops \[5\], not 0"):
        first.features(0)


@pytest.mark.parametrize("event", ["event_thr_10", "thr_10"])
@pytest.mark.parametrize("below", ["", "rgb"])
def test_lists_of_other_layouts(tmp_path: Path, event: str, below: str) -> None:
    benchmark = Field(tmp_path, event=event).load(features=tmp_path / below)
    assert len(benchmark.train) == 4 and len(benchmark.test) == 3


def test_lists_with_paths_that_hold(layout: Field) -> None:
    for split in ("train", "test"):
        path = layout.root / f"{split}.csv"
        path.write_text(
            path.read_text().replace("/media/Data1/set/vitl/", "" if split == "test" else f"{layout.root}/")
        )
    assert len(layout.load(features=None).train) == 4


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, bool])
def test_gt_of_any_number_type(layout: Field, dtype: type) -> None:
    np.save(layout.root / "gt.npy", layout.truth.astype(dtype))
    np.testing.assert_array_equal(np.concatenate([video.truth for video in layout.load().test]), layout.truth)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (np.zeros(159), "expected 160 frame labels .* 3 test videos.*, found 159"),
        (np.zeros(176), "expected 160 .* found 176"),
        (np.zeros(0), "expected 160 .* found 0"),
        (np.zeros((160, 1)), r"expected 160 .* an array of shape \(160, 1\)"),
        (np.full(160, 0.5), "only 0 and 1, but it also contains 0.5"),
        (np.full(160, np.nan), "only 0 and 1, but it also contains nan"),
        (np.array([{}] * 160, dtype=object), "contains pickled objects"),
    ],
)
def test_wrong_gt(layout: Field, truth: np.ndarray, message: str) -> None:
    np.save(layout.root / "gt.npy", truth, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        layout.load()


def test_missing_gt(layout: Field) -> None:
    (layout.root / "gt.npy").unlink()
    with pytest.raises(UserError, match=r"gt\.npy does not exist"):
        layout.load()
    lists = layout.root / "train.csv", layout.root / "test.csv"
    assert load_lists(*lists, None, features=layout.root).test[0].truth is None


def test_annotations_in_place_of_gt(layout: Field) -> None:
    path = layout.root / "annotations.txt"
    path.write_text("A3.mp4 Abuse 20 30\nN3.mp4 Normal -1 -1\nA4.mp4 Abuse 20 999\n")
    benchmark = load_lists(layout.root / "train.csv", layout.root / "test.csv", path, features=layout.root)
    np.testing.assert_array_equal(np.concatenate([video.truth for video in benchmark.test]), layout.truth)


def test_absent_files_are_named(layout: Field) -> None:
    layout.path("rgb", "Abuse", "A2", 5).unlink()
    layout.path("event", "Normal", "N1", 0).unlink()
    with pytest.raises(UserError, match=r"1 feature files of .*train.csv are missing: .*A2__5.npy; .*--features"):
        layout.load()
    np.save(layout.path("rgb", "Abuse", "A2", 5), values(4, 0))
    with pytest.raises(UserError, match=r"1 event features of .*train.csv are missing: .*event/Normal/N1__0.npy"):
        layout.load()
    with pytest.raises(UserError, match=r"8 feature files of .*train.csv are missing.* and 5 more; "):
        layout.load(features=None)
    with pytest.raises(UserError, match="no folder 'clip' that 'event' could replace"):
        layout.load(image_folder="clip")


def test_lengths_must_agree(layout: Field) -> None:
    path = layout.path("event", "Abuse", "A3", 5)
    np.save(path, values(4, 0))
    with pytest.raises(UserError, match=r"event/Abuse/A3__5.npy is 4 segments x 6, but .*rgb/Abuse/A3__5.npy is 3 x 6"):
        layout.load()
    np.save(path, values(3, 0)[:, :5])
    with pytest.raises(UserError, match="is 3 segments x 5"):
        layout.load()
    np.save(path, values(3, 0))
    np.save(layout.path("rgb", "Abuse", "A1", 5), values(7, 0))
    with pytest.raises(UserError, match=r"A1__5.npy is 7 segments x 6, but another crop is 3 x 6"):
        layout.load().train[0].features(5)


def test_widths_must_agree(layout: Field) -> None:
    for folder in ("rgb", "event"):
        np.save(layout.path(folder, "Abuse", "A4", 5), np.zeros((5, 9), np.float32))
    with pytest.raises(UserError, match=r"different widths \(.*6, A4 9\)"):
        layout.load()


def test_empty_features(layout: Field) -> None:
    for folder in ("rgb", "event"):
        np.save(layout.path(folder, "Abuse", "A4", 5), np.zeros((0, DIM), np.float32))
    with pytest.raises(UserError, match=r"A4__5.npy has no segments"):
        layout.load()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("eager", [True, False])
def test_nan(layout: Field, monkeypatch: pytest.MonkeyPatch, bad: float, eager: bool) -> None:
    if not eager:
        monkeypatch.setattr("iefvad.data.datasets._EAGER_FILES", 0)
    path = layout.path("event", "Abuse", "A2", 5)
    features = values(4, 51)
    features[1, 2:4] = bad
    np.save(path, features)
    with pytest.raises(UserError, match=r"(NaN|infinit).*--nan zero") as caught:
        layout.load().train[1].features(5)
    assert str(path) in str(caught.value)
    benchmark = layout.load(nan="zero")
    for _ in range(2):
        image, event = benchmark.train[1].features(5)
    assert torch.isfinite(image).all() and torch.isfinite(event).all()
    features[1, 2:4] = 0
    np.testing.assert_array_equal(event.numpy(), features)
    assert len(benchmark.notes) == 1 and str(path) in benchmark.notes[0]


def test_overlap_is_noted(layout: Field) -> None:
    with open(layout.root / "train.csv", "a") as file:
        file.write("/media/Data1/set/vitl/rgb/Normal/N3__5.npy,Normal\n")
    (note,) = layout.load().notes
    assert note.startswith("1 of 3 test videos are also trained on") and "N3" in note


def test_doubtful_labels_are_noted(layout: Field) -> None:
    truth = np.zeros(160)
    truth[60] = 1
    np.save(layout.root / "gt.npy", truth)
    notes = layout.load().notes
    assert notes == [
        "1 test videos labelled normal have abnormal frames: N3",
        "2 test videos labelled abnormal have none: A3, A4",
    ]


def test_rows_that_contradict(layout: Field) -> None:
    with open(layout.root / "train.csv", "a") as file:
        file.write("/media/Data1/set/vitl/rgb/Abuse/A1__5.npy,Abuse\n")
    assert layout.load().notes == ["train.csv lists 1 files twice; each is used once"]
    with open(layout.root / "train.csv", "a") as file:
        file.write("/media/Data1/set/vitl/rgb/Abuse/A1__5.npy,Arson\n")
    with pytest.raises(UserError, match=r"A1 is listed with several labels \(Abuse, Arson\)"):
        layout.load()


def test_one_name_in_two_folders(layout: Field) -> None:
    for folder in ("rgb", "event"):
        path = layout.path(folder, "Arson", "A1", 0)
        path.parent.mkdir()
        np.save(path, values(2, 0))
    with open(layout.root / "train.csv", "a") as file:
        file.write("/media/Data1/set/vitl/rgb/Arson/A1__0.npy,Arson\n")
    assert [video.name for video in layout.load().train] == ["Abuse/A1", "A2", "N1", "N2", "Arson/A1"]


def test_released_list_and_gt(shared_data: Path, tmp_path: Path) -> None:
    """The published MSAD list, with artificial features whose lengths fit the length of the published truth."""
    source = shared_data / "annotations" / "msad"
    entries = read_list(source / "rgb_vitl_test.csv")
    total = len(np.load(source / "gt.npy", allow_pickle=False)) // 16
    lengths = np.full(len(entries), total // len(entries))
    lengths[: total % len(entries)] += 1
    for entry, length in zip(entries, lengths, strict=True):
        for folder in ("rgb", "event"):
            path = tmp_path / folder / entry.label / f"{entry.name}__5.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.zeros((length, 2), np.float16))
    lists = source / "rgb_vitl_test.csv", source / "rgb_vitl_test.csv"
    benchmark = load_lists(*lists, source / "gt.npy", features=tmp_path)
    assert len(benchmark.test) == 241
    assert sum(int(video.truth.sum()) for video in benchmark.test) == 33248
    assert benchmark.notes[0].startswith("241 of 241 test videos are also trained on")


def test_a_large_list_loads_in_seconds(tmp_path: Path) -> None:
    rows = []
    for folder in ("rgb", "event"):
        (tmp_path / folder / "Abuse").mkdir(parents=True)
    np.save(tmp_path / "one.npy", np.zeros((2, 2), np.float32))
    for index in range(300):
        for crop in range(10):
            name = f"Abuse/V{index}__{crop}.npy"
            for folder in ("rgb", "event"):
                os.link(tmp_path / "one.npy", tmp_path / folder / name)
            rows.append(f"/media/rgb/{name},Abuse")
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    start = time.perf_counter()
    benchmark = load_lists(tmp_path / "list.csv", tmp_path / "list.csv", None, features=tmp_path)
    assert len(benchmark.train) == 300 and benchmark.train[0].crops == tuple(range(10))
    # 6,000 rows take 0.6 s; a look at every file for every row would take minutes on the field's 16,100
    assert time.perf_counter() - start < 15


# --- from a store -----------------------------------------------------------------------------------------------------

SETTINGS = {"image_encoder": "descriptor", "dim": DIM, "crops": [0, 5]}


def fill(root: Path, names: dict[str, int], settings: dict = SETTINGS) -> FeatureStore:
    store = FeatureStore(root, settings=settings, create=True)
    for seed, (name, segments) in enumerate(names.items()):
        features = np.random.default_rng(seed).normal(size=(2, 2, segments, DIM))
        density = np.linspace(0, 1, segments).tolist()
        starts, ends = ([2.0 * (number + shift) for number in range(segments)] for shift in (0, 1))  # half the rate
        side = Sidecar(
            name, f"{name}.mp4", "h", 12.5, 16 * segments + 5, segments, 5, [0, 5], {}, density, starts, ends
        )
        store.write(name, *features, side)
    return store


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    store = fill(tmp_path, {"a": 2, "Fire/b": 3, "n": 4, "Test/c": 3, "m": 2})
    (store.root / "train.csv").write_text("path,label\nvideos/a.mp4,Smoke\nFire/b__5.npy,Fire\nn,Normal\n")
    (store.root / "test.csv").write_text("path,label\n/x/Test/c.mp4,Fire\nm.mp4,Normal\n")
    (store.root / "annotations.txt").write_text("c.mp4  Fire  10  20  40  900\n")
    return store


def test_store(store: FeatureStore) -> None:
    benchmark = load_store(store.root)
    assert benchmark.dim == DIM and benchmark.notes == [] and benchmark.settings == store.settings
    assert benchmark.name == store.root.name
    described = [(video.name, video.classes, video.segments, video.crops) for video in benchmark.train]
    assert described == [("a", ("Smoke",), 2, (0, 5)), ("Fire/b", ("Fire",), 3, (5,)), ("n", (), 4, (0, 5))]
    abnormal, normal = benchmark.test
    assert (abnormal.fps, abnormal.frames, abnormal.source) == (12.5, 53, "Test/c.mp4")
    assert np.flatnonzero(abnormal.truth).tolist() == [*range(10, 20), *range(40, 48)]
    assert abnormal.truth.shape == (48,) and not normal.truth.any() and normal.truth.shape == (32,)
    np.testing.assert_allclose(abnormal.event_density, [0, 0.5, 1])
    assert abnormal.starts.tolist() == [0, 2, 4] and abnormal.ends.tolist() == [2, 4, 6]
    image, event = abnormal.features(5)
    expected = store.read("Test/c")
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), expected[0][1].astype(np.float32))
    np.testing.assert_array_equal(event.numpy(), expected[1][1].astype(np.float32))
    with pytest.raises(UserError, match="not 3"):
        abnormal.features(3)


def test_store_with_lists_elsewhere(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("lists")
    for name in ("train.csv", "test.csv", "annotations.txt"):
        (store.root / name).rename(other / name)
    form = (
        rf"neither train.csv nor test.csv.*iefvad label.*such as {store.names()[0]}.mp4,Normal or .*iefvad data split"
    )
    with pytest.raises(UserError, match=form):
        load_store(store.root)
    options = {"train_list": other / "train.csv", "test_list": other / "test.csv"}
    assert load_store(store.root, **options).test[0].truth is None
    assert load_store(store.root, **options, annotations=other / "annotations.txt").test[0].truth.sum() == 18
    only = load_store(store.root, test_list=other / "test.csv")
    assert (len(only.train), len(only.test)) == (0, 2)
    with pytest.raises(UserError, match="does not exist"):
        load_store(store.root, train_list=other / "absent.csv")


def test_store_with_gt(store: FeatureStore) -> None:
    truth = np.zeros(80)
    truth[70] = 1
    np.save(store.root / "gt.npy", truth)
    benchmark = load_store(store.root, gt=store.root / "gt.npy")
    assert np.flatnonzero(benchmark.test[1].truth).tolist() == [22]
    np.save(store.root / "gt.npy", truth[:-1])
    with pytest.raises(UserError, match=r"expected 80 .* found 79"):
        load_store(store.root, gt=store.root / "gt.npy")


def test_store_lacks_listed_videos(store: FeatureStore) -> None:
    with open(store.root / "train.csv", "a") as file:
        file.write("".join(f"v{index}.mp4,Fire\n" for index in range(5)))
    with pytest.raises(UserError, match=r"5 videos of .*train.csv are not in .*: v0, v1, v2 and 2 more; extract them"):
        load_store(store.root)


def test_half_written_videos_are_not_in_the_store(store: FeatureStore) -> None:
    (store.root / "n.json").unlink()
    with pytest.raises(UserError, match=r"1 videos of .*train.csv are not in .*: n; "):
        load_store(store.root)


def test_store_name_may_be_ambiguous(store: FeatureStore) -> None:
    fill(store.root, {"x/q": 2, "y/q": 2})
    (store.root / "train.csv").write_text("path,label\nz/q.mp4,Fire\n")
    with pytest.raises(UserError, match=r"z/q.mp4 may mean x/q or y/q"):
        load_store(store.root)
    (store.root / "train.csv").write_text("path,label\nvideos/y/q.mp4,Fire\n")
    assert load_store(store.root).train[0].name == "y/q"


def test_abnormal_videos_need_annotations(store: FeatureStore) -> None:
    (store.root / "annotations.txt").write_text("m.mp4 Normal -1 -1\n")
    with pytest.raises(UserError, match=r"1 abnormal test videos are not annotated in .*: Test/c"):
        load_store(store.root)


def test_overlap_in_a_store(store: FeatureStore) -> None:
    with open(store.root / "train.csv", "a") as file:
        file.write("c.mp4,Fire\n")
    (note,) = load_store(store.root).notes
    assert note.startswith("1 of 2 test videos are also trained on")


def test_repeated_tail_keeps_the_last_frame_s_truth(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, settings={**SETTINGS, "tail": "repeat"}, create=True)
    store.write("a", *np.zeros((2, 2, 2, DIM)), Sidecar("a", "", "h", 25.0, 20, 2, 0, [0, 5]))
    (tmp_path / "test.csv").write_text("path,label\na,Fire\n")
    (tmp_path / "annotations.txt").write_text("a Fire 18 20\n")
    assert np.flatnonzero(load_store(tmp_path).test[0].truth).tolist() == list(range(18, 32))


def test_store_features_tampered_with(store: FeatureStore) -> None:
    path = store.root / "n.safetensors"
    with safe_open(path, "np") as file:
        image, event, metadata = file.get_tensor("image"), file.get_tensor("event"), file.metadata()
    image[-1, -1, -1] = np.nan
    del metadata["xxh3"]  # as a store of an earlier version
    save_file({"image": image, "event": event}, path, metadata)
    with pytest.raises(UserError, match=r"n \(image\): 1 of 24 features are NaN"):
        load_store(store.root).train[2].features(5)
    benchmark = load_store(store.root, nan="zero")
    assert benchmark.train[2].features(5)[0][-1, -1] == 0
    assert len(benchmark.notes) == 1


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a feature store"):
        load_store(tmp_path)


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 255, 256])
def test_resample_leaves_short_clips(length: int) -> None:
    features = torch.randn(length, 3)
    assert torch.equal(resample(features), features)


@pytest.mark.parametrize(("length", "bins"), [(257, 256), (300, 256), (512, 256), (1000, 256), (7, 3), (61000, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_resample_is_the_field_s_averaging(length: int, bins: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(length)
    features = torch.randn(length, 5, generator=generator, dtype=torch.float64).to(dtype)[:, ::2]
    edges = np.linspace(0, length, bins + 1, dtype=int)
    expected = np.stack([features[start:end].double().numpy().mean(0) for start, end in pairwise(edges)])
    result = resample(features, bins)
    assert result.shape == (bins, 3) and result.dtype == dtype
    # one rounding to the result's type; sums in float64 over up to 61,000 rows lose 1e-12 at most
    np.testing.assert_allclose(result.double().numpy(), expected, atol=2 * torch.finfo(dtype).eps + 1e-11)


def test_pad_batch() -> None:
    clips = [torch.randn(3, 2), torch.randn(5, 2), torch.randn(1, 2)]
    padded, lengths = pad_batch(clips)
    assert padded.shape == (3, 5, 2)
    assert lengths.tolist() == [3, 5, 1] and lengths.dtype == torch.int64
    for row, clip in zip(padded, clips, strict=True):
        assert torch.equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()


def test_sidecars_are_readable_json(store: FeatureStore) -> None:
    content = json.loads((store.root / "Test" / "c.json").read_text())
    assert content["fps"] == 12.5 and content["settings"]["image_encoder"] == "descriptor"
