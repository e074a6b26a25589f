"""Frame truth, name lists, label maps, JSON pairs and lengths: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iefvad.data.annotations import Annotation
from iefvad.data.lists import ListEntry
from iefvad.data.truth_files import (
    read_label_map,
    read_lengths,
    read_names,
    read_segments,
    read_truth,
    truth_annotations,
)
from iefvad.utils.errors import UserError

LABELS = np.array([0, 1, 1, 0, 1], np.uint8)


def entries(*rows: tuple[str, str]) -> list[ListEntry]:
    return [ListEntry(f"{name}__0.npy", name, 0, label) for name, label in rows]


def test_truth_by_video_packed_and_as_a_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "mask.npz", a=LABELS, b=np.zeros(3))
    np.savez(
        tmp_path / "packed.npz",
        names=np.array(["a__9_gt.npy", "b__0.npy"]),
        lengths=np.array([5, 3]),
        gt=np.concatenate([LABELS, np.zeros(3, np.uint8)]),
    )
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "a.npy", LABELS.astype(float))
    np.save(tmp_path / "folder" / "b.npy", np.zeros(3, bool))
    for path in ("mask.npz", "packed.npz", "folder"):
        truth = read_truth(tmp_path / path)
        assert list(truth) == ["a", "b"]
        assert truth["a"].dtype == np.uint8
        assert truth["a"].tolist() == LABELS.tolist()
        assert truth["b"].tolist() == [0, 0, 0]
        found = truth_annotations(truth)
        assert found["a"] == Annotation("a", ("Anomaly",), ((1, 3), (4, 5)), 5)
        assert found["b"] == Annotation("b", (), (), 3)
        assert read_lengths(tmp_path / path) == {"a": 5, "b": 3}


def test_refused_truth(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", a=np.array([{}, {}], object))
    np.savez(tmp_path / "grey.npz", a=np.array([0, 2, 1]))
    np.savez(tmp_path / "flat.npz", a=np.zeros((2, 3)))
    np.savez(tmp_path / "short.npz", names=np.array(["a"]), lengths=np.array([4]), gt=np.zeros(3))
    np.savez(tmp_path / "twice.npz", **{"a": LABELS, "a_gt": LABELS})
    np.savez(tmp_path / "empty.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "grey.npz").read_bytes()[:60])
    (tmp_path / "none.npz").write_bytes(b"")
    np.save(tmp_path / "labels.npy", LABELS)
    (tmp_path / "folder").mkdir()
    for name, message in {
        "pickled.npz": "pickled objects",
        "grey.npz": "a is not one 0 or 1 per frame",
        "flat.npz": r"\(2, 3\)",
        "short.npz": "do not belong together",
        "twice.npz": "contains a twice",
        "empty.npz": "contains no video",
        "cut.npz": "cannot be read",
        "none.npz": "cannot be read",
        "labels.npy": "cannot be read as .npz",
        "absent.npz": "does not exist",
        "folder": "contains no .npy",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            read_truth(tmp_path / name)
        assert name in str(caught.value)
    np.save(tmp_path / "folder" / "a.npy", np.array([None]))
    with pytest.raises(UserError, match="pickled objects"):
        read_truth(tmp_path / "folder")


def test_names(tmp_path: Path) -> None:
    path = tmp_path / "test_list.txt"
    path.write_text(
        "\ufeffAbuse/Abuse028_x264.mp4\n\nTesting_Normal_Videos_Anomaly/N3.mp4\r\n01_001\nx.2008__#1_label_A Riot\n"
    )
    found = [(entry.name, entry.label) for entry in read_names(path)]
    assert found == [("Abuse028_x264", "Abuse"), ("N3", "Normal"), ("01_001", ""), ("x.2008__#1_label_A", "Riot")]
    path.write_text("a Riot\nb Riot 3\n")
    with pytest.raises(UserError, match=r"line 2: expected NAME or NAME CLASS, found 'b Riot 3'"):
        read_names(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="names no video"):
        read_names(path)


def test_label_map(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"B1": "fighting"}')
    assert read_label_map(path) == {"B1": "fighting"}
    for text, message in (
        ('["B1"]', "not a label map"),
        ('{"B1": 3}', "not a label map"),
        ('{\n"B1": \n}', "line 3: not"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_label_map(path)


def test_json_pair(tmp_path: Path) -> None:
    segments, labels = tmp_path / "gt_segment.json", tmp_path / "gt_label.json"
    segments.write_text("[[[3, 9], [12, 20]], [[0, 32]]]")
    labels.write_text('[["B1", "G"], ["A"]]')
    rows = entries(("x", "B1-G-0"), ("y", "A"))
    assert read_segments(segments, labels, rows) == {
        "x": Annotation("x", ("B1", "G"), ((3, 9), (12, 20))),
        "y": Annotation("y", (), (), 32),
    }
    with pytest.raises(UserError, match=r"2 videos, .* 2 and the list 1"):
        read_segments(segments, labels, rows[:1])
    for wrong in ("[[[3, 9, 1]]]", "[[[3.5, 9]]]", "[[3, 9]]", "{}", "3"):
        segments.write_text(wrong)
        with pytest.raises(UserError, match="not a list of lists of"):
            read_segments(segments, labels, rows)
    segments.write_text("[[[3, 9]], [[0, 32]]]")
    with pytest.raises(UserError, match=r"video 1 has 1 intervals, .* 2 classes"):
        read_segments(segments, labels, rows)
    for wrong in ('["B1", "A"]', "[[1], [2]]"):
        labels.write_text(wrong)
        with pytest.raises(UserError, match="not a list of lists of class names"):
            read_segments(segments, labels, rows)


def test_lengths(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("fps,frames,name\n25,40,a.mp4\n25,7,b\n")
    assert read_lengths(path) == {"a": 40, "b": 7}
    for text, message in (("a,40\n", "must begin"), ("name,frames\na,4.5\n", "line 2: expected"), ("", "must begin")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_lengths(path)


def test_real_truth(shared_data: Path) -> None:
    root = shared_data / "annotations"
    for name, videos, frames, abnormal in (
        ("ucf/frame_gt_per_video.npz", 290, 1_109_680, 84_128),
        ("xd/frame_gt_per_video.npz", 800, 2_330_384, 537_805),
        ("shang/test_frame_mask.npz", 107, 40_791, 17_326),
    ):
        truth = read_truth(root / name)
        assert len(truth) == videos
        assert sum(len(labels) for labels in truth.values()) == frames
        assert sum(int(labels.sum()) for labels in truth.values()) == abnormal
        assert not any(name.endswith((".npy", "_gt", "__0", "__9")) for name in truth)


def test_real_name_lists(shared_data: Path) -> None:
    root = shared_data / "annotations"
    for name, videos, normal in (
        ("ucf/vadclip_Anomaly_Train.txt", 1610, 800),
        ("ucf/vadclip_Anomaly_Test.txt", 290, 150),
        ("xd/xd_test_list.txt", 753, 300),
    ):
        found = read_names(root / name)
        assert len(found) == videos
        assert sum(entry.label == "Normal" for entry in found) == normal
    for name, count in (
        ("ucf/ucf_test_list.txt", 290),
        ("shang/shang_test_list.txt", 203),
        ("msad/msad_test_list.txt", 241),
    ):
        assert [entry.label for entry in read_names(root / name)] == [""] * count
    sizes = {
        name: len(json.loads((root / name).read_text()))
        for name in ("xd/xd_label_map.json", "msad/msad_label_map.json")
    }
    assert {name: len(read_label_map(root / name)) for name in sizes} == sizes
