"""Frame annotations in the formats of the four data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from iefvad.data.annotations import Annotation, annotation_of, frame_truth, parts_of, read_annotations
from iefvad.data.lists import read_list
from iefvad.utils.errors import UserError


def read(tmp_path: Path, text: str, **options: str) -> dict[str, Annotation]:
    path = tmp_path / "annotations.txt"
    path.write_text(text)
    return read_annotations(path, **options)


@pytest.mark.parametrize(
    ("line", "name", "classes", "intervals"),
    [
        ("Abuse028_x264.mp4  Abuse  165  240  -1  -1  ", "Abuse028_x264", ("Abuse",), ((165, 240),)),
        ("Arson.mp4 Arson 5 9 20 31", "Arson", ("Arson",), ((5, 9), (20, 31))),
        ("Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1", "Normal_Videos_003_x264", (), ()),
        ("01_001.avi normal -1 -1 -1 -1", "01_001", (), ()),
        ("v=x__#1_label_B2-G-0 0 15 30 38", "v=x__#1_label_B2-G-0", ("B2", "G"), ((0, 15), (30, 38))),
        (
            "v=y__#1_label_B4-0-0 B4 0 15 G 30 38 B4 50 60",
            "v=y__#1_label_B4-0-0",
            ("B4", "G"),
            ((0, 15), (30, 38), (50, 60)),
        ),
        ("City.2002__#1_label_B5-0-0.mp4 Abuse 530 750 -1 -1", "City.2002__#1_label_B5-0-0", ("Abuse",), ((530, 750),)),
        ("mine.mp4 3 7", "mine", ("Anomaly",), ((3, 7),)),
        ("mine.mp4", "mine", (), ()),
        ("my holiday clip.mp4 fall 3.0 7", "my holiday clip", ("fall",), ((3, 7),)),
        ("my clip\tfall\t3\t7", "my clip", ("fall",), ((3, 7),)),
        ("Abuse/Abuse028_x264.mp4 Abuse 1 2", "Abuse028_x264", ("Abuse",), ((1, 2),)),
    ],
)
def test_lines(
    tmp_path: Path, line: str, name: str, classes: tuple[str, ...], intervals: tuple[tuple[int, int], ...]
) -> None:
    assert read(tmp_path, f"\n{line}\r\n\n") == {name: Annotation(name, classes, intervals)}


def test_msad_s_second_column_is_the_scene(tmp_path: Path) -> None:
    text = "Water_incident_10.mp4  frontdoor  635  990  -1  -1\n"
    normal = "MSAD_normal_testing_1.mp4  Normal  -1  -1  -1  -1\n"
    found = read(tmp_path, text + normal)
    assert found["Water_incident_10"].classes == ("Water_incident",)
    assert found["MSAD_normal_testing_1"].classes == ()
    assert read(tmp_path, text)["Water_incident_10"].classes == ("frontdoor",)
    assert read(tmp_path, text, scene_column="yes")["Water_incident_10"].classes == ("Water_incident",)
    assert read(tmp_path, text + normal, scene_column="no")["Water_incident_10"].classes == ("frontdoor",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 Abuse 5 9 20\n", "line 1: a has 3 frame numbers"),
        ("b.mp4 Abuse 5 9\na.mp4 Abuse 9 5\n", "line 2: a has the interval 9 5"),
        ("a.mp4 Abuse 5 -1\n", "interval 5 -1"),
        ("a.mp4 Abuse 5 Fire 9 10\n", "'Fire' is between"),
        ("a.mp4 Abuse 5 9\n\na.mp4 Abuse 5 10\n", "line 3: a has two different annotations"),
        ("\n\n", "annotates no video"),
        ("a.mp4 Abuse 5 9\nThis is prose, no annotation\n", "line 2: 'is' and 'prose,' follow each other"),
        ("a.mp4 Abuse 5.5 9\n", "line 1: '5.5' is neither a class nor a whole frame number"),
        ("a.mp4 Abuse -1 9\n", "interval -1 9"),
    ],
)
def test_bad_annotations(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert "annotations.txt" in str(caught.value)


def test_unreadable_annotations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_annotations(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_annotations(tmp_path)


def test_the_same_line_twice_is_no_contradiction(tmp_path: Path) -> None:
    assert len(read(tmp_path, "a.mp4 Abuse 5 9\na.mp4 Abuse 5 9\n")) == 1


def test_inverted_intervals_can_be_kept_and_have_no_frame(tmp_path: Path) -> None:
    found = read(tmp_path, "a.mp4 Abuse 9 5 7 7\n", inverted="keep")
    assert found["a"] == Annotation("a", ("Abuse",), ((9, 5), (7, 7)))
    assert not frame_truth(found["a"], 20).any()


def test_videos_annotated_in_parts(tmp_path: Path) -> None:
    found = read(tmp_path, "04_0012_0.avi car 0 4\n04_0012_1.avi run 6 9\n04_0012_3.avi run 6 9\n05_1.avi car 1 2\n")
    assert parts_of(found, "04_0012") == ["04_0012_0", "04_0012_1"]
    assert annotation_of(found, "04_0012") == Annotation("04_0012", ("car", "run"), ((0, 4), (6, 9)))
    assert annotation_of(found, "folder/05_1") == found["05_1"]
    assert annotation_of(found, "05") is None
    assert annotation_of(found, "05_1_0") is None


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ((), [0, 0, 0, 0, 0, 0]),
        (((1, 3),), [0, 1, 1, 0, 0, 0]),
        (((0, 1), (4, 90)), [1, 0, 0, 0, 1, 1]),
        (((3, 3), (7, 9)), [0, 0, 0, 0, 0, 0]),
    ],
)
def test_frame_truth(intervals: tuple[tuple[int, int], ...], expected: list[int]) -> None:
    for given in (intervals, Annotation("a", ("x",), intervals)):
        truth = frame_truth(given, 6)
        assert truth.dtype == np.uint8
        assert truth.tolist() == expected
    assert frame_truth(intervals, 0).shape == (0,)


REAL = {
    "ucf/ucf_annotations.txt": (290, 150, 156, "Abuse028_x264", ("Abuse",), ((165, 240),)),
    "ucf/vadclip_Temporal_Anomaly_Annotation.txt": (290, 150, 156, "Abuse028_x264", ("Abuse",), ((165, 240),)),
    "msad/msad_annotations.txt": (241, 120, 121, "Water_incident_10", ("Water_incident",), ((635, 990),)),
    "shang/shang_annotations.txt": (203, 155, 78, "01_0015", ("skateboard",), ((86, 373),)),
    "xd/xd_annotation.txt": (
        753, 300, 1082, "wangted.2008__#0-22-55_0-23-40_label_B2-0-0", ("Shooting",), ((395, 560), (632, 697))
    ),
    "xd/vadclip_annotations.txt": (
        500, 0, 1238, "v=S-7rRLrxnVQ__#1_label_B4-0-0", ("B4",), ((0, 1517), (1970, 3038))
    ),
    "xd/vadclip_annotations_multiclasses.txt": (
        500, 0, 1272, "v=S-7rRLrxnVQ__#1_label_B4-0-0", ("B4",), ((0, 1517), (1970, 3038))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_annotations(shared_data: Path, name: str) -> None:
    annotations = read_annotations(shared_data / "annotations" / name)
    videos, normal, intervals, one, classes, one_intervals = REAL[name]
    assert len(annotations) == videos
    assert sum(not annotation.classes for annotation in annotations.values()) == normal
    assert sum(len(annotation.intervals) for annotation in annotations.values()) == intervals
    assert annotations[one] == Annotation(one, classes, one_intervals)
    assert all(bool(annotation.classes) == bool(annotation.intervals) for annotation in annotations.values())


@pytest.mark.parametrize(
    ("truth", "annotations", "suffix", "compared"),
    [
        ("ucf/frame_gt_per_video.npz", "ucf/ucf_annotations.txt", "__9_gt.npy", 290),
        ("xd/frame_gt_per_video.npz", "xd/xd_annotation.txt", "__0.npy", 753),
    ],
)
def test_published_frame_truth_follows(
    shared_data: Path, truth: str, annotations: str, suffix: str, compared: int
) -> None:
    packed = np.load(shared_data / "annotations" / truth, allow_pickle=False)
    found = read_annotations(shared_data / "annotations" / annotations)
    published, ends = packed["gt"], np.cumsum(packed["lengths"])
    names = [str(name).removesuffix(suffix) for name in packed["names"]]
    count = 0
    for name, end, length in zip(names, ends, packed["lengths"], strict=True):
        if name in found:
            count += 1
            np.testing.assert_array_equal(
                frame_truth(found[name], int(length)), published[end - length : end], err_msg=name
            )
    assert count == compared


@pytest.mark.parametrize(
    ("test_list", "annotations"),
    [
        ("ucf/rgb_vitl_test.csv", "ucf/ucf_annotations.txt"),
        ("msad/rgb_vitl_test.csv", "msad/msad_annotations.txt"),
        ("shang/rgb_vitl_test.csv", "shang/shang_annotations.txt"),
        ("xd/rgb_vitl_test.csv", "xd/xd_annotation.txt"),
    ],
)
def test_every_listed_test_video_is_annotated(shared_data: Path, test_list: str, annotations: str) -> None:
    found = read_annotations(shared_data / "annotations" / annotations)
    entries = read_list(shared_data / "annotations" / test_list)
    assert [entry.name for entry in entries if entry.name not in found] == []
