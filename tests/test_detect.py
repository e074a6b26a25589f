"""`iefvad detect`: scores, intervals and a timeline for videos; bad ones are reported and the rest go on."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from iefvad.detect import DetectConfig, Detector, main
from iefvad.extract import ExtractConfig, extract
from iefvad.run import load_model, save_model
from iefvad.train import main as train

SEGMENTS = 12


def write_video(path: Path, *, burst: bool, seed: int, segments: int = SEGMENTS) -> None:
    """A textured still picture; with `burst` a block flickers in the segments 4 to 7."""
    random = np.random.default_rng(seed)
    still = cv2.GaussianBlur(random.integers(0, 255, (96, 128, 3), dtype=np.uint8), (0, 0), 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(16 * segments):
            picture = still.copy()
            if burst and 4 <= index // 16 < 8:
                picture[30:70, 40:90] = 255 * (index % 2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


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
    assert scores[4:8].min() > np.delete(scores, slice(4, 8)).max()
    assert float(rows[4]["start s"]) == pytest.approx(4 * 16 / 25, abs=1e-3)
    html = (tmp_path / "out" / "new.html").read_text()
    assert html.count("data:image/jpeg") == min(8, SEGMENTS)
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    printed = capsys.readouterr().out
    assert "1 of 1 videos scored" in printed and "frames/s" in printed
    with (tmp_path / "out" / "new_intervals.csv").open() as file:
        intervals = list(csv.DictReader(file))
    assert len(intervals) >= 1
    assert all(2.0 < float(row["start s"]) < 5.5 for row in intervals)


def test_detection_gives_the_scores_that_training_gave_for_the_same_video(run, tmp_path):
    """Streaming a file and scoring its stored features are one path."""
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
    model, extra = load_model(other / "checkpoint.safetensors")
    extra["encoder"]["image_weights_hash"] = "another"
    save_model(other / "checkpoint.safetensors", model, extra)
    assert main([str(other), str(run.parent / "videos" / "v00.mp4")]) == 2
    assert "image_weights_hash" in capsys.readouterr().err


def test_state_is_carried_over_chunks_in_a_long_video(run, tmp_path):
    """Chunks shorter than the video: every segment gets a score, and the recursion does not start again."""
    write_video(tmp_path / "long.mp4", burst=False, seed=3, segments=9)
    detector = Detector(run, DetectConfig(device="cpu"))
    detector.extra["chunk"] = 4
    detection = detector(tmp_path / "long.mp4")
    assert len(detection.scores.scores) == 9
    gain = detection.scores.gain
    assert gain is not None
    assert gain[0] == pytest.approx(1.0)
    assert (gain[[4, 8]] < 0.99).all(), "a chunk started from nothing"
    assert torch.isfinite(torch.from_numpy(detection.scores.scores)).all()
