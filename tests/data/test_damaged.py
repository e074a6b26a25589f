"""Damaged lists, annotations and frame truth: what the fuzzing harness found, one test per kind."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from iefvad.cli.main import main
from iefvad.data.annotations import read_annotations
from iefvad.data.check.alignment import align
from iefvad.data.clips import read_frame_labels
from iefvad.data.ground_truth import ground_truth_of_list
from iefvad.data.lists import Relocator, read_list
from iefvad.data.truth_files import read_json, read_lengths, read_segments, read_truth
from iefvad.utils.errors import UserError


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path,label\na.npy,Fire\n".encode("utf-16"), "line 1: .*not UTF-8; save the file as UTF-8"),
        ("path,label\na.npy,Fire\n".encode("utf-16-le"), "NUL bytes"),
        (b"path,label\ncaf\xe9.npy,Fire\n", "line 2: .*byte 0xe9 is not UTF-8"),
        (b"path,label\na\0.npy,Fire\n", "line 2: .*NUL bytes"),
        (b'path,label\n"a.npy,Fire\nb.npy,Fire\n', "line 3: cannot be read as CSV list"),
        (b'path,label\n"a"b.npy,Fire\n', "line 2: cannot be read as CSV list"),
        (b"path,label\n" + b"a" * 200_000 + b",Fire\n", "field larger than field limit"),
        (b"path,label,crops\na.npy,Fire," + b"9" * 5000 + b"\n", "is not a number of crops"),
    ],
)
def test_lists_that_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_list(written(tmp_path / "list.csv", data))
    assert len(str(caught.value)) < 1000


def test_a_text_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iefvad.data.text_files.LARGEST", 1 << 20)
    (tmp_path / "list.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="a folder, a pipe, a socket or a device"):
        read_list(tmp_path / "list.csv")
    (tmp_path / "long.csv").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_list(tmp_path / "long.csv")


def test_a_path_that_no_file_can_have_is_absent(tmp_path: Path) -> None:
    assert Relocator(tmp_path, tmp_path).find("a\0b/c.npy") is None


@pytest.mark.parametrize("number", ["9" * 400, "1000000001", "-1000000001", "9" * 5000])
def test_frame_numbers_have_an_end(number: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: the frame number .* is beyond 1,000,000,000"):
        read_annotations(written(tmp_path / "a.txt", f"a.mp4 Fire 1 {number}\n"))
    with pytest.raises(UserError, match="line 2"):
        read_lengths(written(tmp_path / "l.csv", f"name,frames\na,{number}\n"))
    if len(number) < 4000:
        segments = written(tmp_path / "s.json", f"[[[1, {number}]]]")
        labels = written(tmp_path / "k.json", '[["Fire"]]')
        entries = read_list(written(tmp_path / "t.csv", "path,label\na.mp4,Fire\n"))
        with pytest.raises(UserError, match="video 1 has the impossible interval"):
            read_segments(segments, labels, entries)


def test_a_line_of_many_words_takes_no_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match="line 1"):
        read_annotations(written(tmp_path / "a.txt", "a" + " x" * 200_000))
    assert time.monotonic() - begun < 5  # it took minutes: all words were joined for each of them


def test_intervals_of_json_that_end_before_they_start_are_refused(tmp_path: Path) -> None:
    entries = read_list(written(tmp_path / "t.csv", "path,label\na.mp4,Fire\n"))
    files = written(tmp_path / "s.json", "[[[9, 3]]]"), written(tmp_path / "k.json", '[["Fire"]]')
    with pytest.raises(UserError, match="impossible interval 9 to 3"):
        read_segments(*files, entries)
    assert read_segments(*files, entries, inverted="keep")["a"].intervals == ((9, 3),)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": "x", "a": "y"}', "[[[1, " + "9" * 5000 + "]]]"])
def test_odd_json_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not JSON"):
        read_json(written(tmp_path / "x.json", text))


@pytest.mark.parametrize(
    "content",
    [
        {"names": np.array("a"), "lengths": np.array([3])},
        {"names": np.array(["a"]), "lengths": np.array(3)},
        {"names": np.array(["a", "b"]), "lengths": np.array([-1, 4])},
        {"names": np.array([b"a"]), "lengths": np.array([3])},
        {"names": np.array(["a", "a"]), "lengths": np.array([1, 2])},
        {"names": np.array(["a"]), "lengths": np.array([3.0])},
        {"names": np.array(["a"]), "lengths": np.array([3]), "gt": np.array(0)},
        {"names": np.array(["a"]), "lengths": np.array([3]), "gt": np.zeros((3, 1))},
    ],
    ids=str,
)
def test_packed_truth_that_does_not_belong_together(content: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"gt": np.zeros(3, np.uint8), **content})
    with pytest.raises(UserError, match=r"x\.npz"):
        read_truth(tmp_path / "x.npz")


def test_two_lengths_of_one_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 3: a has two different lengths"):
        read_lengths(written(tmp_path / "l.csv", "name,frames\na.mp4,32\na.avi,48\n"))


def test_frame_labels_beyond_memory_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"v{number}.mp4,Normal\n" for number in range(3))
    test_list = written(tmp_path / "t.csv", "path,label\n" + rows)
    annotations = written(tmp_path / "a.txt", "v0.mp4\n")
    lengths = written(tmp_path / "l.csv", "name,frames\n" + "".join(f"v{number},999999999\n" for number in range(3)))
    with pytest.raises(UserError, match="more than 2,147,483,648"):
        ground_truth_of_list(test_list, annotations, lengths=lengths)


def test_a_name_in_two_folders_is_told(tmp_path: Path) -> None:
    test_list = written(tmp_path / "t.csv", "path,label\nx/a.mp4,Fire\ny/a.mp4,Fire\n")
    annotations = written(tmp_path / "a.txt", "a.mp4 Fire 1 5\n")
    lengths = written(tmp_path / "l.csv", "name,frames\na,16\n")
    truth = ground_truth_of_list(test_list, annotations, lengths=lengths)
    assert truth.labels.sum() == 8
    assert any("1 names are listed in several folders" in note for note in truth.notes)


def test_an_interval_far_beyond_gt_takes_no_memory() -> None:
    labels = np.zeros(64, np.uint8)
    labels[32:] = 1
    fit = align(labels, [[], [(16, 900_000_000)]])
    assert fit.starts is not None


def test_pipes_and_devices_in_a_folder_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "train.csv", "path,label\na.mp4,Fire\nb.mp4,Normal\n")
    for name in ("x.csv", "y.json", "z.npy"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "w.txt").symlink_to("/dev/zero")
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "x.csv" in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"label\n\xff\xfe\n", b'label\n"0\n1\n', b"label\n0\n\0\n"])
def test_damaged_frame_labels_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.csv"):
        read_frame_labels(written(tmp_path / "labels.csv", data))


def test_label_maps_name_a_class_once(tmp_path: Path) -> None:
    assert read_json(written(tmp_path / "map.json", json.dumps({"B1": "Fire"}))) == {"B1": "Fire"}
