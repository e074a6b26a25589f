"""`iefvad data gt` writes the frame labels of a test list, and loading accepts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iefvad.cli.data import main
from iefvad.data.datasets import load_lists, load_store
from tests.helpers.stores import write_store

LIST = "path,label\nrgb/b__0.npy,Fire\nrgb/a__0.npy,Normal\nrgb/c__0.npy,Fall\n"
ANNOTATIONS = "c.mp4 Fall 30 90\nb.mp4 Fire 0 3 10 12\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "test.csv").write_text(LIST)
    (tmp_path / "train.csv").write_text("path,label\nrgb/t__0.npy,Fire\n")
    (tmp_path / "annotations.txt").write_text(ANNOTATIONS)
    (tmp_path / "lengths.csv").write_text("name,frames\nb,20\na,33\nc.mp4,50\n")
    for folder in ("rgb", "event"):
        (tmp_path / "features" / folder).mkdir(parents=True)
        for name, segments in (("a", 3), ("b", 1), ("c", 3), ("t", 2)):
            np.save(tmp_path / "features" / folder / f"{name}__0.npy", np.ones((segments, 4), np.float16))
    return tmp_path


def run(data: Path, *more: str, annotations: str = "annotations.txt") -> int:
    paths = ["--annotations", str(data / annotations), "--test-list", str(data / "test.csv")]
    return main(["gt", *paths, "--out", str(data / "gt.npy"), *more])


def test_lengths_from_features_and_loading(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, "--features", str(data / "features")) == 0
    assert "gt.npy: 3 videos, 112 frames, 23 abnormal (20.5%)" in capsys.readouterr().out
    gt = np.load(data / "gt.npy", allow_pickle=False)
    expected = np.zeros(112)
    expected[[0, 1, 2, 10, 11]] = 1
    expected[64 + 30 : 64 + 48] = 1
    assert gt.tolist() == expected.tolist()
    loaded = load_lists(data / "train.csv", data / "test.csv", data / "gt.npy", features=data / "features")
    from_annotations = load_lists(
        data / "train.csv", data / "test.csv", data / "annotations.txt", features=data / "features"
    )
    for video, other in zip(loaded.test, from_annotations.test, strict=True):
        assert video.truth is not None and other.truth is not None
        assert video.truth.tolist() == other.truth.tolist()


@pytest.mark.parametrize(
    ("flags", "lengths", "abnormal"),
    [([], [16, 32, 48], 23), (["--round-up"], [32, 48, 64], 39), (["--inclusive"], [16, 32, 48], 25)],
)
def test_lengths_from_a_file(data: Path, flags: list[str], lengths: list[int], abnormal: int) -> None:
    assert run(data, "--lengths", str(data / "lengths.csv"), *flags) == 0
    gt = np.load(data / "gt.npy")
    assert len(gt) == sum(lengths)
    # rounded up, the last of c's 50 frames is abnormal and stands for the 14 that repeat it
    assert int(gt.sum()) == abnormal


def test_truth_as_annotations(data: Path) -> None:
    truth = {"a": np.zeros(33, np.uint8), "b": np.zeros(20, np.uint8), "c": np.zeros(50, np.uint8)}
    truth["b"][[0, 1, 2, 10, 11]] = 1
    truth["c"][30:50] = 1
    np.savez(data / "truth.npz", **truth)
    assert run(data, "--lengths", str(data / "truth.npz"), annotations="truth.npz") == 0
    first = np.load(data / "gt.npy")
    assert run(data, "--lengths", str(data / "truth.npz")) == 0
    np.testing.assert_array_equal(first, np.load(data / "gt.npy"))


def test_store_and_loading(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", train=4, test=6)
    out = tmp_path / "gt.npy"
    flags = ["--annotations", str(store / "annotations.txt"), "--test-list", str(store / "test.csv")]
    assert main(["gt", *flags, "--store", str(store), "--out", str(out)]) == 0
    for video, other in zip(load_store(store, gt=out).test, load_store(store).test, strict=True):
        assert video.truth is not None and other.truth is not None
        assert video.truth.any() == bool(video.classes)
        np.testing.assert_array_equal(video.truth, other.truth)


def test_parts_are_joined_and_strangers_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "c_0.mp4 Fall 3 4\nc_1.mp4 Smoke 8 10\nb.mp4 Fire 0 3 10 12\nz.mp4 Fire 1 2\na.mp4 normal 1 5\n"
    (data / "annotations.txt").write_text(text)
    assert run(data, "--features", str(data / "features")) == 0
    printed = capsys.readouterr().out
    assert "annotated in parts, which were joined: c (c_0, c_1)" in printed
    assert "1 annotated videos are not in the list: z" in printed
    assert "1 videos are listed otherwise than their frames say: a (normal, frames are abnormal)" in printed
    assert np.flatnonzero(np.load(data / "gt.npy")[64:]).tolist() == [3, 8, 9]


@pytest.mark.parametrize(
    ("files", "flags", "message"),
    [
        (
            {"annotations.txt": "b.mp4 Fire 0 3\n"},
            ["--features", "features"],
            "videos of the list are not annotated",
        ),
        ({"lengths.csv": "name,frames\na,3\n"}, ["--lengths", "lengths.csv"], "2 videos of the list have no length"),
        ({"annotations.txt": "b.mp4 Fire 0 3 4\n"}, ["--features", "features"], "line 1: b has 3 frame numbers"),
        ({"test.csv": LIST.replace("rgb/b", "rgb/../b")}, ["--features", "features"], "'..' part"),
        ({"test.csv": LIST.replace("rgb/b", "rgb/x")}, ["--features", "features"], "1 feature files are not below"),
        ({"test.csv": "rgb/b__0.npy,Fire\n"}, ["--features", "features"], "must begin with the header"),
        ({}, [], "give one of them"),
        ({}, ["--features", "features", "--lengths", "lengths.csv"], "give one of them"),
        ({}, ["--features", "features", "--round-up"], "--round-up belongs to --lengths"),
        ({}, ["--store", "features"], "not a feature store"),
        ({}, ["--features", "features", "--out", "gt.txt"], "written as .npy"),
    ],
)
def test_refused(
    data: Path,
    files: dict[str, str],
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        (data / name).write_text(text)
    monkeypatch.chdir(data)
    assert run(data, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (data / "gt.npy").exists()


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gt", "--annotations", "x.txt"]) == 2
    assert "--test-list, --out must be given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "annotations", "test_list", "frames", "abnormal"),
    [
        ("ucf", "ucf_annotations.txt", "rgb_vitl_test.csv", 1_109_680, 84_128),
        ("ucf", "vadclip_gt_segment_ucf.json", "vadclip_ucf_CLIP_rgbtest.csv", 1_109_680, 84_128),
        ("xd", "xd_annotation.txt", "rgb_vitl_test.csv", 2_241_312, 500_217),
        ("xd", "vadclip_annotations.txt", "vadclip_xd_CLIP_rgbtest.csv", 2_330_384, 537_805),
    ],
)
def test_real_lists(
    shared_data: Path, tmp_path: Path, name: str, annotations: str, test_list: str, frames: int, abnormal: int
) -> None:
    root = shared_data / "annotations" / name
    flags = ["--annotations", str(root / annotations), "--test-list", str(root / test_list)]
    truth = str(root / "frame_gt_per_video.npz")
    assert main(["gt", *flags, "--lengths", truth, "--out", str(tmp_path / "gt.npy")]) == 0
    gt = np.load(tmp_path / "gt.npy")
    assert (len(gt), int(gt.sum())) == (frames, abnormal)
