"""The layouts in which authors publish features: read, or refused with the remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from iefvad.cli.main import main
from iefvad.data.datasets import load_lists
from iefvad.features.packed import PackedStore
from iefvad.utils.errors import UserError

DIM = 8
TRAIN = (("ab0", "Fight", 6), ("ab1", "Fight", 9), ("no0", "Normal", 7), ("no1", "Normal", 8))
TEST = (("ab2", "Fight", 11), ("no2", "Normal", 10))
FLAGS = ["--preset", "synth", "--epochs", "1", "--batch", "4", "--heads", "2", "--layers", "1", "--refine-steps", "1"]


def features(name, segments):
    """Return the crops of a video, (10, T, D)."""
    random = np.random.default_rng(list(map(ord, name)))
    return random.normal(size=(10, segments, DIM)).astype(np.float32)


def publish(root: Path, how, *, file="{}_i3d.npy", folders=("rgb", "event"), crops=(None,), prefix="/author", rows=16):
    """Write features, lists and gt.npy: `how` makes an array of a file from the crops (10, T, D) and its crop."""
    for split, videos in (("train", TRAIN), ("test", TEST)):
        lines = ["path,label"]
        for name, label, segments in videos:
            for crop in crops:
                for folder in folders:
                    path = root / folder / label / file.format(name, crop)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, how(features(name, segments), crop))
                lines.append(f"{prefix}/{folders[0]}/{label}/{file.format(name, crop)},{label}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    truth = np.zeros(rows * sum(segments for _, _, segments in TEST), np.uint8)
    truth[2 * rows : 5 * rows] = 1
    np.save(root / "gt.npy", truth)
    return root


def load(root, **more):
    return load_lists(root / "train.csv", root / "test.csv", root / "gt.npy", **{"features": root, **more})


def sources(root):
    return ["--train-list", f"{root}/train.csv", "--test-list", f"{root}/test.csv", "--features", str(root)]


LAYOUTS = {
    "(T, crops, D)": lambda array, crop: array.transpose(1, 0, 2),
    "(crops, T, D)": lambda array, crop: array,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("crops", [10, 5])
def test_all_crops_of_a_video_in_one_file(tmp_path, layout, crops):
    root = publish(tmp_path, lambda array, crop: LAYOUTS[layout](array[:crops], crop))
    benchmark = load(root)
    assert benchmark.dim == DIM
    for video, (name, _, segments) in zip(benchmark.train + benchmark.test, TRAIN + TEST, strict=True):
        assert (video.name, video.segments, video.crops) == (f"{name}_i3d", segments, tuple(range(crops)))
        for crop in video.crops:
            for read in video.reader(crop):
                np.testing.assert_array_equal(read, features(name, segments)[crop])
    assert benchmark.test[0].truth.sum() == 48


def test_all_crops_in_one_file_through_the_commands(tmp_path, capsys):
    root = publish(tmp_path / "data", LAYOUTS["(T, crops, D)"])
    gt, packed, run = root / "gt.npy", tmp_path / "packed", tmp_path / "run"
    assert main(["data", "check", str(root), "--features", str(root), "--strict"]) in (0, 1)
    assert "gt.npy (336 frames) fits the features" in capsys.readouterr().out
    assert main(["features", "import", "--out", str(packed), *sources(root), "--gt", str(gt)]) == 0
    store = PackedStore(packed)
    assert [video["crops"] for video in store.listed("test")] == [list(range(10))] * 2
    video = store.benchmark_videos("test")[0]
    np.testing.assert_array_equal(video.reader(7)[1], features("ab2", 11)[7].astype(np.float16))
    assert main(["train", *sources(root), "--gt", str(gt), "--out", str(run), "--device", "cpu", *FLAGS]) == 0
    assert json.loads((run / "metrics.json").read_text())["run"]["test_crops"] == "5"
    (tmp_path / "annotations.txt").write_text("ab2_x264.mp4  Fight  32  80  -1  -1\n")
    truth = [
        "--annotations",
        f"{tmp_path}/annotations.txt",
        "--test-list",
        f"{root}/test.csv",
        "--out",
        f"{tmp_path}/gt.npy",
    ]
    assert main(["data", "gt", *truth, "--features", str(root)]) == 0


def test_the_crop_that_is_tested_is_named_where_crop_5_is_missing(tmp_path, capsys):
    root = publish(tmp_path / "data", lambda array, crop: array[crop], file="{}__{}.npy", crops=range(5))
    run = tmp_path / "run"
    assert main(["train", *sources(root), "--gt", f"{root}/gt.npy", "--out", str(run), "--device", "cpu", *FLAGS]) == 0
    assert "2 of 2 test videos have no crop 5: crop 0 is tested; choose it with --test-crops 0 or all" in (
        capsys.readouterr().out
    )
    assert json.loads((run / "metrics.json").read_text())["run"]["test_crops"] == "0"


def test_names_with_marks_and_truth_without(tmp_path):
    root = publish(tmp_path, lambda array, crop: array[0], file="{}_x264__{}.npy", crops=(0,))
    (root / "a.txt").write_text("ab2.mp4  Fight  32  80  -1  -1\n")
    benchmark = load_lists(root / "train.csv", root / "test.csv", root / "a.txt", features=root)
    assert benchmark.test[0].name == "ab2_x264" and benchmark.test[0].truth.sum() == 48


REFUSED = {
    "transposed": (
        lambda array, crop: array[0].T,
        {},
        "all videos have 8 rows and different .* transposed: save array.T",
    ),
    "crops that cannot be told": (
        lambda array, crop: array[:, :5].transpose(1, 0, 2)[:, :5],
        {},
        r"shape \(5, 5, 8\), so segments and crops cannot be told apart: save each crop i as NAME__i.npy",
    ),
    "three dimensions without crops": (
        lambda array, crop: array[:3],
        {},
        r"has shape \(3, 6, 8\); features must be \(segments, dimensions\)",
    ),
    "truth per row": (
        lambda array, crop: array[0],
        {"rows": 1},
        r"one label per row .* average 16 of them each; .* repeat each label 16 times \(numpy.repeat\)",
    ),
    "segments of 64 frames": (
        lambda array, crop: array[0],
        {"rows": 64},
        "64 labels per row: .* segments of 16 frames",
    ),
    "no folder rgb": (
        lambda array, crop: array[0],
        {"folders": ("UCFClipFeatures",)},
        "no folder 'rgb' .* --image-folder .*training with --modality image needs no event features",
    ),
    "no event features": (
        lambda array, crop: array[0],
        {"folders": ("rgb",)},
        "event features .* are missing: .*--event-folder .*training with --modality image needs no event features",
    ),
}


_JUDGED = ("truth per row", "segments of 64 frames")


@pytest.mark.parametrize("case", REFUSED)
def test_other_layouts_are_refused_with_the_remedy(tmp_path, case):
    how, options, message = REFUSED[case]
    root = publish(tmp_path, how, **options)
    with pytest.raises(UserError) as error:
        load_lists(root / "train.csv", root / "test.csv", root / "gt.npy" if case in _JUDGED else None, features=root)
    assert re.search(message, str(error.value)), str(error.value)


def test_transposed_features_of_equal_length_are_told_by_their_truth(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.TEST", (("ab2", "Fight", 11), ("no2", "Normal", 11)))
    monkeypatch.setattr(f"{__name__}.TRAIN", (("ab0", "Fight", 11), ("no0", "Normal", 11)))
    root = publish(tmp_path, lambda array, crop: array[0].T)
    with pytest.raises(UserError, match=r"fits the columns of the features, so they are transposed: save array\.T"):
        load(root)


def test_paths_of_another_machine_beside_the_list(tmp_path):
    root = publish(tmp_path, lambda array, crop: array[0], file="{}__0.npy")
    with pytest.raises(UserError, match=re.escape(f"give their folder with --features (they are in {root})")):
        load(root, features=None)
    assert len(load(root).test) == 2


@pytest.mark.parametrize("folder", ["UCFClipFeatures", "rgb"])
def test_image_features_alone(tmp_path, folder):
    root = publish(tmp_path, lambda array, crop: array[0], file="{}__0.npy", folders=(folder,))
    assert load(root, modality="image").dim == DIM
