"""CSV lists: names, crops, labels, and the search for files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iefvad.data.lists import Relocator, classes_of, event_path, is_windows_path, leads_out, read_list
from iefvad.utils.errors import UserError


@pytest.mark.parametrize(
    ("written", "name", "crop"),
    [
        ("/media/Data1/UCFCrime_dataset/vitl/rgb/Abuse/Abuse028_x264__5.npy", "Abuse028_x264", 5),
        (r"C:\data\rgb\Abuse\Abuse028_x264__0.npy", "Abuse028_x264", 0),
        (
            "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6__9.npy",
            "Bad.Boys.1995__#01-11-55_01-12-40_label_G-B2-B6",
            9,
        ),
        ("v=S-7rRLrxnVQ__#1_label_B4-0-0.mp4", "v=S-7rRLrxnVQ__#1_label_B4-0-0", None),
        ("clip__5.mp4", "clip__5", None),
        ("clip.AVI", "clip", None),
        ("clip__12.npy", "clip__12", None),
        ("Abuse001_x264", "Abuse001_x264", None),
        ("Bad.Boys.1995", "Bad.Boys.1995", None),
    ],
)
def test_names_and_crops(tmp_path: Path, written: str, name: str, crop: int | None) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(f"\ufeffpath,label\r\n{written},Abuse\r\n\r\n".encode())
    (entry,) = read_list(path)
    assert (entry.path, entry.name, entry.crop, entry.label) == (written, name, crop, "Abuse")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with the header"),
        ("a.npy,Normal\n", "must begin with the header"),
        ("path,label\n", "lists no videos"),
        ("path,label\na.npy\n", "line 2: expected path,label"),
        ("path,label\na.npy,Normal\n ,Abuse\n", "line 3: expected path,label"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_list(path)
    assert str(path) in str(caught.value)


def test_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_list(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81" * 20)
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path / "binary.csv")


def test_other_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('crops,label,video\n10,"B1-0-0","a, b"\n')
    assert [(entry.name, entry.label) for entry in read_list(path)] == [("a, b", "B1-0-0")]


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        ("Normal", ()),
        ("normal", ()),
        ("A", ()),
        ("", ()),
        ("Abuse", ("Abuse",)),
        ("B2-G-0", ("B2", "G")),
        ("B1-0-0", ("B1",)),
        ("G-B2-B6", ("G", "B2", "B6")),
        ("B2-B2-0", ("B2",)),
        ("hit-and-run", ("hit-and-run",)),
        ("throwing_object", ("throwing_object",)),
    ],
)
def test_classes(label: str, classes: tuple[str, ...]) -> None:
    assert classes_of(label) == classes


@pytest.mark.parametrize(
    ("image", "folder", "expected"),
    [
        ("/d/vitl/rgb/Abuse/a__5.npy", "event", "/d/vitl/event/Abuse/a__5.npy"),
        ("/d/vitl/rgb/Abuse/a__5.npy", "thr_10", "/d/vitl/thr_10/Abuse/a__5.npy"),
        ("rgb/rgb/rgb", "event", "rgb/event/rgb"),
        (r"C:\d\rgb\a__5.npy", "event", r"C:\d\event\a__5.npy"),
    ],
)
def test_event_path(image: str, folder: str, expected: str) -> None:
    assert event_path(image, folder) == expected


def test_event_path_without_image_folder() -> None:
    assert event_path("clip/a.npy", "event", image_folder="clip") == "event/a.npy"
    for path in ("/d/rgbs/a.npy", "rgb"):
        with pytest.raises(UserError, match="no folder 'rgb'"):
            event_path(path)


@pytest.mark.parametrize("root", ["", "rgb", "rgb/Abuse"])
def test_relocator_finds_files_below_another_root(tmp_path: Path, root: str) -> None:
    file = tmp_path / "rgb" / "Abuse" / "a__5.npy"
    file.parent.mkdir(parents=True)
    file.touch()
    relocator = Relocator(tmp_path / root, Path())
    for written in ("/media/x/rgb/Abuse/a__5.npy", r"D:\x\rgb\Abuse\a__5.npy", "rgb/Abuse/a__5.npy"):
        found = relocator.find(written)
        assert found is not None and os.path.samefile(found, file)
    assert relocator.find("/media/x/rgb/Abuse/b__5.npy") is None


def test_relocator_without_root(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    (tmp_path / "rgb" / "a__0.npy").touch()
    relocator = Relocator(None, tmp_path)
    assert relocator.find("rgb/a__0.npy") == tmp_path / "rgb" / "a__0.npy"
    assert relocator.find(str(tmp_path / "rgb" / "a__0.npy")) == tmp_path / "rgb" / "a__0.npy"
    assert relocator.find("/elsewhere/rgb/a__0.npy") is None


@pytest.mark.parametrize("written", ["../rgb/a__0.npy", "rgb/../../a__0.npy", r"D:\x\..\a__0.npy", ".."])
def test_paths_that_lead_out_are_refused(tmp_path: Path, written: str) -> None:
    for root in (tmp_path, None):
        with pytest.raises(UserError, match=r"'\.\.' part"):
            Relocator(root, tmp_path).find(written)
    assert leads_out(written)
    assert not leads_out(r"rgb/a..b\...\x__0.npy")


def test_windows_paths_without_root(tmp_path: Path) -> None:
    (tmp_path / "rgb").mkdir()
    (tmp_path / "rgb" / "a__0.npy").touch()
    assert Relocator(None, tmp_path).find(r"rgb\a__0.npy") == tmp_path / "rgb" / "a__0.npy"
    assert [is_windows_path(path) for path in (r"rgb\a", "D:/a", "/d/a:/b", "a__0.npy")] == [True, True, False, False]


def test_crops_column(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("video,label,crops\na,Normal,10\nb,Abuse,\n")
    assert [entry.crops for entry in read_list(path)] == [10, None]
    path.write_text("video,label,crops\na,Normal,10\nb,Abuse,ten\n")
    with pytest.raises(UserError, match="line 3: 'ten' is not a number of crops"):
        read_list(path)


RELEASED = {
    "ucf/rgb_vitl_test.csv": (290, 290, 150),
    "ucf/event_vitb_thr_10_test.csv": (290, 290, 150),
    "ucf/rgb_vitl_train_head.csv": (199, 20, 0),
    "ucf/released_train_videos.csv": (1610, 1610, 800),
    "msad/rgb_vitl_test.csv": (241, 241, 120),
    "shang/rgb_vitl_test.csv": (197, 197, 155),
    "xd/rgb_vitl_test.csv": (753, 753, 300),
    "xd/released_train_videos.csv": (3988, 3988, 2036),
    "xd/vadclip_xd_CLIP_rgbtest.csv": (800, 800, 300),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_lists(shared_data: Path, name: str) -> None:
    entries = read_list(shared_data / "annotations" / name)
    rows, videos, normal = RELEASED[name]
    assert len(entries) == rows
    assert len({entry.name for entry in entries}) == videos
    assert sum(not classes_of(entry.label) for entry in entries) == normal


def test_every_released_list_reads(shared_data: Path) -> None:
    paths = sorted((shared_data / "annotations").glob("*/*.csv"))
    assert len(paths) >= 24
    for path in paths:
        entries = read_list(path)
        crops = {entry.crop for entry in entries}
        assert crops in ({None}, {0}, {5}, set(range(10))), path
        assert all(entry.name and ".npy" not in entry.name for entry in entries)
