"""Recordings that are cut into clips: the frames, their times, and the truth that moves along."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from iefvad.cli.data_split import cut_main
from iefvad.data.annotations import annotation_of, frame_truth, read_annotations
from iefvad.data.clips import Truth
from iefvad.data.lists import read_list
from iefvad.video import timed_frames
from tests.helpers.video_files import make_video
from tests.video.test_timeline import VARIABLE, write


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def brightness(path: Path, bias: float = 0.0) -> list[tuple[int, float]]:
    """Number of each frame as its brightness tells it, and its time."""
    return [(round((float(image.mean()) + bias - 10) / 4), time) for image, time in timed_frames(path)]


@pytest.mark.parametrize(
    ("name", "codec", "options", "exact"),
    [
        ("v.mp4", "libx264", {"bf": "3", "g": "6", "crf": "1"}, False),
        ("v.mkv", "libx264", {"bf": "3", "g": "6", "crf": "1", "x264-params": "open-gop=1"}, False),
        ("v.webm", "libvpx", {"g": "6", "crf": "4", "b": "2M"}, False),
        ("v.mp4", "libx264", {"bf": "3", "g": "60", "crf": "1"}, True),
    ],
)
def test_clips_have_their_frames_their_times_and_their_truth(tmp_path, name, codec, options, exact):
    path = write(tmp_path / name, VARIABLE, codec, **options)
    truth = np.zeros(60, np.uint8)
    truth[10:20] = truth[41:43] = 1
    (tmp_path / "labels.txt").write_text("\n".join(map(str, truth)))
    out = tmp_path / "clips"
    cut = [str(path), "--labels", str(tmp_path / "labels.txt"), "--out", str(out), "--length", "3", "--label", "Fall"]
    assert cut_main([*cut, "--overlap", "0.6", *(["--exact", "--quality", "1"] if exact else [])]) == 0
    clips, annotations = rows(out / "clips.csv"), read_annotations(out / "annotations.txt")
    assert len(clips) >= 3 and {clip["source"] for clip in clips} == {"v"}
    seen: set[int] = set()
    for clip in clips:
        found = brightness(out / clip["path"], bias=1.5 if exact else 0.5)  # each conversion of colours rounds down
        numbers = [number for number, _ in found]
        first = min(range(60), key=lambda frame: abs(VARIABLE[frame] - float(clip["start"])))
        assert numbers == list(range(first, first + len(numbers))), clip
        np.testing.assert_allclose([t for _, t in found], np.array(VARIABLE)[numbers] - VARIABLE[first], atol=0.002)
        inside = frame_truth(annotation_of(annotations, clip["path"].rsplit(".", 1)[0]), len(numbers))
        np.testing.assert_array_equal(inside, truth[numbers])
        assert clip["label"] == ("Fall" if inside.any() else "Normal")
        if exact:
            assert abs(found[-1][1] - 3) < 0.6 or clip is clips[-1]
        seen |= set(numbers)
    assert len(seen) >= (60 if not options.get("x264-params") else 50), "nothing but leading pictures is lost"


def test_lists_in_time_order_without_shared_frames(tmp_path):
    path = write(tmp_path / "v.mp4", [number / 10 for number in range(100)], g="5")
    (tmp_path / "a.txt").write_text("v.mp4 Fight 0 3 60 64 Theft 64 90\n")
    cut = [str(path), "--annotations", str(tmp_path / "a.txt"), "--out", str(tmp_path / "c"), "--segments", "2"]
    assert cut_main([*cut, "--overlap", "1", "--exact", "--train-fraction", "0.5", "--least", "4"]) == 0
    train, test = (read_list(tmp_path / "c" / f"{side}.csv") for side in ("train", "test"))
    clips = {clip["path"]: clip for clip in rows(tmp_path / "c" / "clips.csv")}
    assert [clips[entry.path]["start"] for entry in train] == ["0.0", "1.6"], "the third overlaps a test clip"
    assert [clips[entry.path]["start"] for entry in test] == ["4.8", "6.4", "8.0"]
    assert [entry.label for entry in train + test] == ["Normal", "Normal", "Theft", "Theft", "Theft"]
    annotations = read_annotations(tmp_path / "c" / "annotations.txt")
    assert set(annotations) == {entry.name for entry in test}
    assert annotations["v_003"].intervals == ((12, 16), (16, 32))
    assert annotations["v_003"].classes == ("Fight", "Theft") and annotations["v_004"].intervals == ((0, 26),)


def test_what_cannot_be_cut_is_one_line(tmp_path, capsys):
    path, avi = write(tmp_path / "v.mp4", VARIABLE), make_video(tmp_path / "old.avi", 30)
    (tmp_path / "a.txt").write_text("v.mp4 Fight 3 9\nold.avi Normal -1 -1\n")
    given = ["--annotations", str(tmp_path / "a.txt"), "--out", str(tmp_path / "c")]

    def refused(*arguments: str) -> str:
        assert cut_main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    assert "either --labels (one recording) or --annotations" in refused(path, "--out", tmp_path / "c")
    assert "--overlap 5 must be less" in refused(path, *given, "--length", "5", "--overlap", "5")
    assert "add --exact" in refused(avi, *given)
    (tmp_path / "b.txt").write_text("other.mp4 Fight 3 9\n")
    assert "says nothing about v" in refused(path, "--annotations", tmp_path / "b.txt", "--out", tmp_path / "c")
    (tmp_path / "broken.mp4").write_bytes(path.read_bytes()[:500])
    (tmp_path / "a.txt").write_text("v.mp4 Fight 3 9\nbroken.mp4 Normal -1 -1\n")
    assert "broken was not cut" in refused(tmp_path / "broken.mp4", path, *given), "the others are cut"
    assert len(rows(tmp_path / "c" / "clips.csv")) == 1
    assert "exists" in refused(path, *given) and (tmp_path / "c" / "v_000.mp4").is_file()
    assert cut_main([str(path), *given, "--overwrite"]) == 0


def test_marks_of_labelling_are_truth(tmp_path):
    marks = {"1": {"start": 0, "end": 1, "first": 3, "last": 9, "kind": "Fall"}}
    content = {"videos": {"v": {"marks": marks, "normal": False}, "n": {"marks": {}, "normal": True}}}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    truth = Truth(None, str(tmp_path / "labels.json"), "Anomaly")
    assert truth.of("v", 100) == [("Fall", 3, 9)] and truth.of("n", 100) == [] and truth.of("v", 5) == [("Fall", 3, 5)]
