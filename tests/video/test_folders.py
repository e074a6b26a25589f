"""Folders of frames: order, gaps, damage, sizes, and what is a folder of frames at all."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from iefvad.utils.errors import UserError
from iefvad.video import Segments, find_videos, hash_folder, probe, read_frames, require_rate
from iefvad.video.folders import read_folder


def write_folder(path: Path, names: list[str], *, size: tuple[int, int] = (64, 48)) -> Path:
    """Write pictures of one grey level each: 10, 12, 14 ... in the order of the names."""
    path.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        picture = np.full((size[1], size[0], 3), 10 + 2 * index, np.uint8)
        (path / name).write_bytes(cv2.imencode(Path(name).suffix, picture)[1].tobytes())
    return path


def numbered(count: int, pattern: str = "{:03d}.jpg", first: int = 0) -> list[str]:
    return [pattern.format(first + index) for index in range(count)]


@pytest.mark.parametrize("pattern", ["{:03d}.jpg", "{:03d}.tif", "frame_{}.png", "v01 {}.bmp", "{}.JPG"])
def test_a_folder_of_frames_is_a_video(tmp_path: Path, pattern: str) -> None:
    """In the order of the numbers, also where they have no leading zeros."""
    folder = write_folder(tmp_path / "01_0014", numbered(40, pattern))
    (folder / ".DS_Store").touch()
    (folder / "Thumbs.db").touch()
    frames = list(read_frames(folder, fps=25))
    assert [round(float(frame.mean())) for frame in frames] == [10 + 2 * index for index in range(40)]
    segments = Segments(folder, fps=25)
    assert [segment.shape for segment in segments] == [(16, 256, 340, 3)] * 2
    assert (segments.frames_read, segments.frames_dropped, segments.info.fps) == (40, 8, 25.0)
    assert (segments.info.width, segments.info.height, segments.info.frames) == (64, 48, 40)


def test_frames_are_rgb_and_grey_becomes_rgb(tmp_path: Path) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 2] = 200  # OpenCV's order
    for index in range(2):
        cv2.imwrite(str(tmp_path / f"{index}.png"), red if index == 0 else red[..., 2])
    first, second = read_frames(tmp_path, fps=10)
    assert first[0, 0].tolist() == [200, 0, 0] and second[0, 0].tolist() == [200, 200, 200]


def test_the_rate_must_be_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "01", numbered(20))
    for use in (probe, Segments, lambda path: list(read_frames(path)), lambda path: require_rate([path], None)):
        with pytest.raises(UserError, match=r"folder of frames.*add --fps") as caught:
            use(folder)
        assert str(folder) in str(caught.value)
    for fps in (0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(UserError, match="--fps must be above 0"):
            require_rate([folder], fps)
    require_rate([folder], 25)
    require_rate([tmp_path / "video.mp4"], None)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ([5], "picture 5 is missing"),
        (list(range(6, 12)), "pictures 6 to 11 are missing"),
        ([3, 20], "picture 3 is missing, picture 20 is missing"),
    ],
)
def test_gaps_are_named(tmp_path: Path, missing: list[int], message: str) -> None:
    folder = write_folder(tmp_path / "01", numbered(40))
    for number in missing:
        (folder / f"{number:03d}.jpg").unlink()
    with pytest.raises(UserError, match=f"{message}.*--on-truncated keep"):
        list(Segments(folder, fps=25))
    segments = Segments(folder, fps=25, on_truncated="keep")
    list(segments)
    assert segments.frames_read == 40 - len(missing) and segments.truncated
    sixteenth = [number for number in range(40) if number not in missing][16]
    assert segments.starts[1] == segments.ends[0] == pytest.approx(sixteenth / 25)  # later frames keep their own times


def test_every_fifth_frame_and_times_of_day_are_no_gaps(tmp_path: Path) -> None:
    fifth = write_folder(tmp_path / "fifth", [f"f{number}.png" for number in (0, 5, 10, 15)])
    assert read_folder(fifth).gaps == []
    names = ["2024-01-01 10-59-58.png", "2024-01-01 10-59-59.png", "2024-01-01 11-00-01.png"]
    folder = read_folder(write_folder(tmp_path / "times", names[::-1]))
    assert folder.names == names and folder.gaps == [] and folder.places == [0, 1, 2]
    folder = read_folder(write_folder(tmp_path / "gap", [f"{number}.png" for number in (0, 5, 10, 25, 30)]))
    assert folder.gaps == ["15 to 20"] and folder.places == [0, 1, 2, 5, 6]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_picture_that_cannot_be_read_is_damage(tmp_path: Path, suffix: str, damage: str) -> None:
    folder = write_folder(tmp_path / "01", numbered(40, "{:03d}" + suffix))
    victim = folder / f"020{suffix}"
    victim.write_bytes({"cut": victim.read_bytes()[:-40], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(UserError, match=rf"truncated or damaged: 020{suffix} is .*--on-truncated keep"):
        list(Segments(folder, fps=25))
    assert sum(1 for _ in read_frames(folder, fps=25, on_truncated="keep")) == 39


def test_a_picture_whose_storage_fails_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "01", numbered(20))

    def fail(path: Path) -> object:
        raise OSError(116, "Stale file handle", str(path))

    monkeypatch.setattr("iefvad.video.folders.open_regular", fail)
    with pytest.raises(UserError, match=r"000\.jpg cannot be read: Stale file handle"):
        probe(folder, fps=25)


def test_sizes_and_series_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sizes", numbered(20))
    write_folder(folder, ["020.jpg"], size=(80, 48))
    with pytest.raises(UserError, match=r"different sizes: 020\.jpg has 80x48 pixels, the first 64x48"):
        list(read_frames(folder, fps=25))
    folder = write_folder(tmp_path / "mixed", [*numbered(20), "cover.jpg"])
    with pytest.raises(UserError, match=r"not one numbered series \(.*\(20\), cover\.jpg \(1\)\)"):
        probe(folder, fps=25)
    folder = write_folder(tmp_path / "twins", ["1.jpg", "01.jpg", "2.jpg"])
    with pytest.raises(UserError, match="two pictures of one number"):
        probe(folder, fps=25)


def test_the_hash_is_of_names_content_and_rate(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "01", numbered(20, "{:03d}.bmp"))
    before = hash_folder(folder, 25)
    assert before == hash_folder(folder, 25) and before.startswith("sha256-frames:")
    assert hash_folder(folder, 10) != before
    data = bytearray((folder / "013.bmp").read_bytes())
    data[-1] ^= 1
    (folder / "013.bmp").write_bytes(data)  # of the same size
    changed = hash_folder(folder, 25)
    assert changed != before
    (folder / "019.bmp").rename(folder / "020.bmp")
    assert hash_folder(folder, 25) != changed


def test_videos_and_folders_of_frames_are_found_together(tmp_path: Path) -> None:
    write_folder(tmp_path / "Test" / "Test001", numbered(20))
    write_folder(tmp_path / "Test" / "Test002", numbered(5))
    write_folder(tmp_path / "Test" / "Test001_gt", numbered(20, "{:03d}.bmp"))  # UCSD's masks
    write_folder(tmp_path / "Test" / "posters", ["a.jpg", "b.jpg"])
    write_folder(tmp_path / "Test" / "single", ["0.jpg"])
    write_folder(tmp_path / "Test" / "clips", numbered(30, "thumb_{}.jpg"))  # beside videos
    (tmp_path / "Test" / "clips" / "a.mp4").touch()
    write_folder(tmp_path / "Test" / ".hidden", numbered(20))
    expected = ["Test001", "Test002", "clips/a.mp4"]
    assert [str(path.relative_to(tmp_path / "Test")) for path in find_videos([tmp_path / "Test"])] == expected
    assert find_videos([tmp_path / "Test" / "Test001"]) == [tmp_path / "Test" / "Test001"]
    assert find_videos([tmp_path / "Test" / "posters"]) == [tmp_path / "Test" / "posters"]  # to say what is wrong
    with pytest.raises(UserError, match="no folders of numbered pictures"):
        find_videos([tmp_path / "Test" / "single"])
    with pytest.raises(UserError, match="or give the folder"):
        find_videos([tmp_path / "Test" / "Test001" / "%03d.jpg"])
