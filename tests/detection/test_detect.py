"""`iefvad detect`: scores, intervals and a timeline for videos; bad videos are reported and the others are scored."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import iefvad
from iefvad.checkpoints.files import save_model
from iefvad.checkpoints.hub import load_model
from iefvad.cli.detect import main
from iefvad.cli.train import main as train
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.outputs import Names
from iefvad.detection.result import Detection
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract
from iefvad.utils.errors import UserError
from tests.helpers.detecting import small_detector, small_model
from tests.helpers.detecting import write_video as write_frames

SEGMENTS = 12


def write_video(path: Path, *, burst: bool, seed: int, segments: int = SEGMENTS) -> None:
    """A textured still picture; with `burst` a block flickers in the segments 4 to 7."""
    write_frames(path, frames=16 * segments, seed=seed, burst=range(4, 8) if burst else range(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run trained on a few small videos; flickering ones are abnormal."""
    root = tmp_path_factory.mktemp("detect")
    videos = root / "videos"
    videos.mkdir()
    lists = {"train": ["path,label"], "test": ["path,label"]}
    annotations = []
    for index in range(12):
        name, burst = f"v{index:02d}", index % 2 == 1
        write_video(videos / f"{name}.mp4", burst=burst, seed=index)
        label = "Flicker" if burst else "Normal"
        lists["train" if index < 8 else "test"].append(f"{name}.mp4,{label}")
        interval = "64  128" if burst else "-1  -1"
        annotations.append(f"{name}.mp4  {label}  {interval}  -1  -1")
    store = root / "store"
    assert not extract([videos], store, ExtractConfig(quiet=True)).failed
    for split, rows in lists.items():
        (store / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (store / "annotations.txt").write_text("\n".join(annotations) + "\n")
    flags = ["--features", str(store), "--preset", "synth", "--epochs", "12", "--batch", "4", "--device", "cpu"]
    assert train([*flags, "--out", str(root / "run"), "--fused", "--refine-steps", "2", "--lr", "1e-3"]) == 0
    return root / "run"


def test_flickering_video_is_flagged_where_it_flickers(run, tmp_path, capsys):
    write_video(tmp_path / "new.mp4", burst=True, seed=99)
    assert main([str(run), str(tmp_path / "new.mp4"), "--out", str(tmp_path / "out"), "--threshold", "0.5"]) == 0
    with (tmp_path / "out" / "new.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SEGMENTS
    scores = np.array([float(row["score"]) for row in rows])
    # The change back to the still picture is an event of segment 8.
    assert scores[4:8].min() > np.delete(scores, slice(4, 9)).max()
    assert float(rows[4]["start s"]) == pytest.approx(4 * 16 / 25, abs=1e-3)
    html = (tmp_path / "out" / "new.html").read_text()
    assert html.count("data:image/jpeg") == 2, "the flickering block and the still picture"
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    printed = capsys.readouterr().out
    assert "1 of 1 videos scored" in printed and "frames/s" in printed
    with (tmp_path / "out" / "new_intervals.csv").open() as file:
        intervals = list(csv.DictReader(file))
    assert len(intervals) >= 1
    assert all(2.0 < float(row["start s"]) < 5.5 for row in intervals)


def test_detection_gives_the_scores_that_training_gave_for_the_same_video(run, tmp_path):
    """Streaming a file gives the same scores as its stored features."""
    with (run / "scores.csv").open() as file:
        stored = [row for row in csv.DictReader(file) if row["video"] == "v09"]
    detection = Detector(run, DetectConfig(device="cpu"))(run.parent / "videos" / "v09.mp4")
    # The store keeps features as float16: 3 digits, which the network may amplify.
    expected = np.array([float(row["score"]) for row in stored])
    np.testing.assert_allclose(detection.scores.scores, expected, atol=0.02)


def test_a_short_tail_is_scored_and_a_tiny_video_too(run, tmp_path):
    write_video(tmp_path / "tiny.mp4", burst=False, seed=5, segments=1)
    detection = Detector(run, DetectConfig(device="cpu", thumbnails=1))(tmp_path / "tiny.mp4")
    assert len(detection.scores.scores) == 1
    assert len(detection.pictures) == 1


def test_bad_videos_are_reported_and_the_rest_go_on(run, tmp_path, capsys):
    write_video(tmp_path / "good.mp4", burst=False, seed=1, segments=2)
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").touch()
    assert main([str(run), str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "text.mp4" in captured.err and "empty.mp4" in captured.err
    assert "1 of 3 videos scored" in captured.out
    assert (tmp_path / "out" / "good.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["absent.mp4"], "absent.mp4"), (["."], "no video"), (["run-that-is-not-there"], "run-that-is-not-there")],
)
def test_what_is_not_there_is_named(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    first = arguments[0] if arguments[0].startswith("run") else str(run)
    assert main([first, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_on_other_weights_is_refused(run, tmp_path, monkeypatch, capsys):
    import shutil

    other = tmp_path / "run"
    shutil.copytree(run, other)
    model = load_model(other / "checkpoint.safetensors")
    model.provenance["encoder"]["image_weights_hash"] = "another"
    save_model(other / "checkpoint.safetensors", model, model.provenance)
    assert main([str(other), str(run.parent / "videos" / "v00.mp4")]) == 2
    assert "image_weights_hash" in capsys.readouterr().err


def test_state_is_carried_over_chunks_in_a_long_video(run, tmp_path):
    """Chunks shorter than the video: every segment gets a score, and the recursion does not start again."""
    write_video(tmp_path / "long.mp4", burst=False, seed=3, segments=9)
    detector = Detector(run, DetectConfig(device="cpu", hop=4, context=0))
    detection = detector(tmp_path / "long.mp4")
    assert len(detection.scores.scores) == 9
    gain = detection.scores.gain
    assert gain is not None
    assert gain[0] == pytest.approx(1.0)
    assert (gain[[4, 8]] < 0.99).all(), "a chunk started from nothing"
    assert torch.isfinite(torch.from_numpy(detection.scores.scores)).all()


def test_json_holds_everything(run, tmp_path):
    write_video(tmp_path / "new.mp4", burst=True, seed=99)
    flags = ["--out", str(tmp_path / "out"), "--threshold", "0.6", "--low", "0.5", "--merge-gap", "1", "--hop", "4"]
    assert main([str(run), str(tmp_path / "new.mp4"), *flags]) == 0
    document = json.loads((tmp_path / "out" / "new.json").read_text())
    assert document["path"] == str((tmp_path / "new.mp4").resolve())
    assert document["rule"] == {
        "threshold": 0.6, "low": 0.5, "merge_gap": 1.0, "min_length": 0.0, "origin": "--threshold"
    }  # fmt: skip
    assert (document["model"]["hop"], document["model"]["context"]) == (4, 28)
    assert document["live"] is None and document["timing"]["latency"] is None
    assert {"total", "decode", "encode", "score"} == set(document["timing"]["ms_per_segment"])
    assert all(value > 0 for value in document["timing"]["ms_per_segment"].values())
    assert [segment["start"] for segment in document["segments"]] == [round(0.64 * t, 6) for t in range(SEGMENTS)]
    with (tmp_path / "out" / "new.csv").open() as file:
        rows = list(csv.DictReader(file))
    for segment, row in zip(document["segments"], rows, strict=True):
        for column in ("score", "w_img", "w_evt", "gain"):
            assert segment[column] == float(row[column])
    with (tmp_path / "out" / "new_intervals.csv").open() as file:
        intervals = list(csv.DictReader(file))
    assert [round(i["start"], 3) for i in document["intervals"]] == [float(i["start s"]) for i in intervals]


def test_videos_of_one_name_do_not_overwrite_each_other(run, tmp_path):
    videos = [tmp_path / "a" / "clip.mp4", tmp_path / "b" / "clip.mp4", tmp_path / "b" / "clip.mkv"]
    for seed, path in enumerate(videos):
        path.parent.mkdir(exist_ok=True)
        write_video(path, burst=False, seed=seed, segments=2 + seed)
    out = tmp_path / "out"
    for _ in range(2):  # again: each replaces its own
        assert main([str(run), str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
        lengths = {path.stem: len(json.loads(path.read_text())["segments"]) for path in out.glob("*.json")}
        assert lengths == {"clip": 2, "clip_mkv": 4, "clip_mp4": 3}
    # Alone, in another call, it is still not taken for the other video.
    assert main([str(run), str(videos[1]), "--out", str(out)]) == 0
    assert {p.stem for p in out.glob("*.json")} == {"clip", "clip_mkv", "clip_mp4"}


def test_names_that_would_meet_in_another_file(tmp_path):
    names = Names(tmp_path)
    assert names.of(Path("x/a.mp4")) == "a"
    assert names.of(Path("x/A.mp4")) == "A_mp4"  # where a file system does not tell case
    assert names.of(Path("x/a_intervals.mp4")) == "a_intervals_mp4"  # a_intervals.csv is the first one's
    assert names.of(Path("x/a.mp4")) == "a"


def test_what_lies_in_the_folder_of_results_does_not_stop_them(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    names = Names(tmp_path)
    assert names.of(Path("x/pipe.mp4")) == "pipe" and names.of(Path("x/deep.mp4")) == "deep"


def test_the_module_is_the_function(run, tmp_path):
    write_video(tmp_path / "a.mp4", burst=True, seed=1)
    from_module = iefvad.detect
    [one] = from_module(run, tmp_path / "a.mp4", device="cpu", thumbnails=0)
    [two] = from_module(iefvad.IEFVAD.from_pretrained(run), [str(tmp_path)], device="cpu", threshold=0.0)
    assert isinstance(one, Detection) and one.pictures == [] and one.files == []
    np.testing.assert_array_equal(one.scores.scores, two.scores.scores)
    assert two.intervals[0][:2] == pytest.approx((0, 16 * SEGMENTS / 25))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"], "nothing is written"
    [three] = from_module(run, tmp_path, device="cpu", out=str(tmp_path / "out"))
    assert [path.name for path in three.files] == ["a.csv", "a_intervals.csv", "a.json", "a.html"]
    with pytest.raises(TypeError):
        from_module(run, tmp_path, colour="blue")
    with pytest.raises(UserError, match="absent"):
        from_module(run, tmp_path / "absent.mp4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": 0}, "--hop"),
        ({"hop": 4, "context": 5}, "--context"),
        ({"merge_gap": -1.0}, "--merge-gap"),
        ({"thumbnails": -1}, "--thumbnails"),
        ({"duration": 0.0}, "--duration"),
        ({"threshold": 0.4, "low": 0.5}, "--low"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        small_detector(**settings)


def test_a_model_without_a_record_of_its_encoder_is_refused():
    model = small_model()
    model.provenance = {}
    with pytest.raises(UserError, match="record of their encoder"):
        small_detector(model=model)


@pytest.mark.parametrize("config", [{"released": True, "temporal": "none"}, {"modality": "image"}, {"window": 3}])
@pytest.mark.parametrize("hop", [None, 1])
def test_every_kind_of_network(tmp_path, config, hop):
    write_video(tmp_path / "a.mp4", burst=True, seed=1, segments=9)
    detection = small_detector(model=small_model(**config), hop=hop)(tmp_path / "a.mp4")
    assert detection.scores.scores.shape == (9,)
    assert (detection.scores.gain is None) == (config.get("temporal") == "none")
    assert (detection.scores.w_img is None) == (config.get("modality") == "image")


def _peak() -> float:
    """Highest resident memory of this process since `_reset_peak`, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory cannot be reset here")
def test_memory_does_not_grow_with_the_video(tmp_path):
    """Nine times the video: the pictures alone would be 23 MB more, the decoded segments 1.7 GB."""
    write_frames(tmp_path / "short.mp4", frames=16 * 50)
    write_frames(tmp_path / "long.mp4", frames=16 * 450)
    detector = small_detector(hop=4)
    peaks = []
    for name in ("short", "short", "short", "long"):  # the first run fills allocators and caches
        _reset_peak()
        detection = detector(tmp_path / f"{name}.mp4")
        peaks.append(_peak())
    assert detection.scores.scores.size == 450
    # Peaks of equal runs differ by up to 16 MB, by where the allocator finds room.
    assert peaks[3] - max(peaks[1:3]) < 15, peaks


def test_all_real_clips(run, shared_data, tmp_path, capsys):
    """Every short clip of the shared data, of any size, rate, codec and container, without the video of an hour."""
    folder = shared_data / "videos"
    clips = [path for path in sorted(folder.iterdir()) if path.suffix in (".mp4", ".avi") and "upcam" not in path.name]
    clips = [path for path in clips if path.stat().st_size < 2.5e6 or path.suffix == ".avi"]
    out = tmp_path / "out"
    assert main([str(run), *map(str, clips), "--out", str(out), "--device", "cpu"]) == 0
    assert f"{len(clips)} of {len(clips)} videos scored" in capsys.readouterr().out
    truth = json.loads((folder / "frame_gt.json").read_text())["videos"]
    for path in clips:
        document = json.loads((out / f"{path.stem}.json").read_text())
        frames = sum(1 for _ in document["segments"]) * 16
        assert 0 <= frames - truth[path.name]["n_frames"] < 16, path.name
        assert "data:image/jpeg" in (out / f"{path.stem}.html").read_text()
