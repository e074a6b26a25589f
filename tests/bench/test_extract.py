"""The benchmarks of extraction and detection: the plain way computes the same, figures are right, and both run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench import plain
from bench.__main__ import commands, main
from bench.end_to_end import _plain_extraction as plainly
from bench.end_to_end import _records as records
from bench.end_to_end import detect, extract
from bench.end_to_end._clip import write_clip, write_frames
from bench.end_to_end._records import Row
from bench.providers import ten_crop_events
from bench.timing import Budget
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract as extract_videos
from iefvad.features.store import FeatureStore
from iefvad.video import SEGMENT, crops, probe, read_frames, resize

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
ONCE = Budget(rounds=1, least_rounds=1, provider_seconds=0.0, single_seconds=0.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, frames=5 * SEGMENT + 3, size=(160, 120))
    return path


def test_given_frames_become_a_video(tmp_path: Path) -> None:
    write_frames(tmp_path / "odd.mp4", frames_of(99, 61, 3))
    info = probe(tmp_path / "odd.mp4")
    assert (info.width, info.height, len(list(read_frames(tmp_path / "odd.mp4")))) == (98, 60, 3)


def frames_of(width: int, height: int, count: int = SEGMENT) -> np.ndarray:
    random = np.random.default_rng(0)
    still = random.integers(0, 256, (1, height, width, 3))
    return (still + random.integers(-12, 13, (count, height, width, 3))).clip(0, 255).astype(np.uint8)


def test_the_clip_moves(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.fps) == (160, 120, 30.0)
    frames = np.stack(list(read_frames(clip)))
    assert len(frames) == 5 * SEGMENT + 3
    maps = ten_crop_events(torch.from_numpy(frames), backend="auto")
    assert (maps.flatten(1).mean(1) > 0.05).all(), "every segment has events"


@pytest.mark.parametrize(("width", "height"), [(320, 240), (340, 256), (97, 61)])
def test_the_plain_way_gives_the_same_crops_and_event_maps(width: int, height: int) -> None:
    frames = frames_of(width, height, SEGMENT + 5)
    assert np.array_equal(plainly.image_crops(frames[:3]), crops(resize(frames[:3]), range(10)))
    expected = ten_crop_events(torch.from_numpy(frames), backend="auto").numpy()
    found = plainly.ten_crop_events(frames)
    assert found.shape == expected.shape == (1, 10, 224, 224)
    # counts / clamp, in float64 and rounded here, in float32 there: the same numbers
    assert np.array_equal(found, expected)
    assert np.array_equal(plain.ten_crop_events(torch.from_numpy(frames)).numpy(), expected)
    assert 0 < expected.mean() < 1


def test_the_plain_way_gives_the_same_features(clip: Path, tmp_path: Path) -> None:
    config = ExtractConfig(crops=10, quiet=True, device="cpu")
    encoder = build_encoder(device="cpu", batch=SEGMENT)
    report = extract_videos([clip], tmp_path / "store", config, encoder=encoder)
    stored_image, stored_event, _ = FeatureStore(tmp_path / "store").read(report.done[0])
    image, event = plainly.extract(clip, encoder, extract.ALL)
    assert image.shape == event.shape == (10, 5, encoder.dim)
    # The store keeps float16; sums over frames and cells are taken in other batches.
    for found, kept in ((image, stored_image), (event, stored_event)):
        torch.testing.assert_close(found, torch.from_numpy(kept.astype(np.float32)), rtol=2e-3, atol=2e-3)


class _Slow:
    """An encoder whose calls take a known time."""

    device, dim, batch = CPU, 4, SEGMENT

    def encode_image(self, rows: Tensor) -> Tensor:
        time.sleep(0.02)
        return torch.zeros(len(rows), self.dim)

    encode_event = encode_image


def test_busy_seconds_are_those_within_the_encoder() -> None:
    began = time.perf_counter()
    busy = extract.BusyEncoder(_Slow())  # type: ignore[arg-type]
    assert (busy.dim, busy.first, busy.seconds()) == (4, None, 0.0)
    busy.encode_image(torch.zeros(2))
    time.sleep(0.05)
    busy.encode_event(torch.zeros(2))
    elapsed = time.perf_counter() - began
    assert busy.first is not None and began <= busy.first
    assert 0.04 <= busy.seconds() <= elapsed - 0.05


def test_a_share_is_of_the_running_pipeline(clip: Path, tmp_path: Path) -> None:
    found = extract.share(clip, "descriptor", 1, CPU, tmp_path, quick=True)
    assert found["frames"] == 5 * SEGMENT
    assert 0 < found["encoding_seconds"] < found["seconds"]
    assert 0 <= found["not_encoding"] < found["of_all"] < 1
    assert found["of_all"] == pytest.approx(1 - found["encoding_seconds"] / found["seconds"])
    assert found["frames_per_s"] == pytest.approx(found["frames"] / found["seconds"])


def test_rows_are_compared_with_the_plain_way() -> None:
    def failing() -> None:
        raise RuntimeError("no such codec")

    calls = {"ours": lambda: None, "plain": lambda: time.sleep(0.01), "other": failing}
    rows = {row.way: row for row in records.time_ways("stage", calls, 32, ONCE, CPU)}
    assert rows["plain"].times_plain == 1.0
    assert rows["plain"].median_ms is not None and rows["plain"].median_ms >= 10
    assert rows["plain"].frames_per_s == pytest.approx(32e3 / rows["plain"].median_ms)
    assert rows["ours"].times_plain is not None and rows["ours"].times_plain > 1
    assert rows["other"].reason == "RuntimeError: no such codec"
    assert rows["other"].median_ms is rows["other"].times_plain is None
    text = records.stage_table(list(rows.values()))
    assert len(text.splitlines()) == 5 and "no such codec" in text
    assert records.find(rows.values(), "stage", "other") is None
    assert records.find(rows.values(), "stage", "plain") is rows["plain"]


def measured(way: str, milliseconds: float, frames: int = 64) -> Row:
    return Row(
        "events, ten crops", way, frames, milliseconds, milliseconds, milliseconds, 3, frames / milliseconds * 1e3
    )


def share_of(encoder: str, count: int, value: float) -> dict[str, Any]:
    return {"encoder": encoder, "crops": count, "not_encoding": value, "of_all": 2 * value}


def test_targets() -> None:
    rows = [measured("ours", 4.0), measured("frame after frame", 200.0), measured("plain", 500.0)]
    records.compare(rows)
    shares = [share_of("random-vit", 1, 0.1), share_of("random-vit", 10, 0.2), share_of("descriptor", 1, 0.5)]
    times, rate, one, ten = extract.targets_of(rows, shares)
    assert (times.measured, times.wanted, times.met) == (125.0, 100, True)
    assert times.note.startswith("50.0×")
    assert (rate.measured, rate.wanted, rate.met) == (16_000.0, 11_500.0, True)
    assert rate.note == "plain here: 128"
    assert (one.measured, one.wanted, one.at_most, one.met) == (0.1, 0.15, True, True)
    assert (ten.measured, ten.met) == (0.2, False)
    records.compare(slower := [measured("ours", 10.0), *rows[1:]])
    assert extract.targets_of(slower, [])[0].met is False
    assert [target.met for target in extract.targets_of([], [])] == [None, None]


def run(name: str, *arguments: str, out: Path) -> dict[str, Any]:
    assert main([name, "--quick", "--out", str(out), *arguments]) == 0
    (path,) = out.glob("*.json")
    assert path.name.endswith(f"_{name}_quick.json")
    result = json.loads(path.read_text())
    assert {"format", "device", "versions", "native", "commit", "date", "load", "quick", "targets"} <= result.keys()
    assert result["benchmark"] == name
    return dict(result)


def test_extract_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"extract", "detect"} <= set(commands())
    result = run("extract", out=tmp_path)
    shown = capsys.readouterr().out
    rows = {(row["stage"], row["way"]): row for row in result["results"]}
    assert all(row["median_ms"] > 0 and row["repeats"] and not row["reason"] for row in rows.values()), rows
    stages = {stage for stage, _ in rows}
    assert {"decode", "resize, ten crops", "events, ten crops", "encoder, frames", "encoder, maps"} <= stages
    assert rows["whole, ten crops, descriptor", "ours"]["times_plain"] > 1, "ten times less is done"
    assert rows["events, ten crops", "ours"]["times_plain"] > 5, "far less is done, on however busy a machine"
    assert {share["encoder"] for share in result["shares"]} == set(extract.ENCODERS)
    times, rate, small = result["targets"]
    assert times["measured"] == pytest.approx(rows["events, ten crops", "ours"]["times_plain"])
    assert rate["measured"] == pytest.approx(rows["events, ten crops", "ours"]["frames_per_s"])
    assert small["met"] == (small["measured"] <= 0.15)
    assert "share not encoding" in shown and "frames/s" in shown


def test_detect_runs_with_a_video_of_ones_own(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "ENCODERS", ("descriptor",))
    result = run("detect", "--video", str(clip), "--json", out=tmp_path)
    assert json.loads(capsys.readouterr().out) == result
    assert result["video"] == clip.name and result["model"] == "random weights"
    live, whole, sliding = result["latencies"]
    assert (live["way"], live["hop"], live["segments"], live["context"]) == ("live", 1, 5, 4)
    assert (whole["way"], whole["hop"], whole["segments"]) == ("file", 256, 5)
    assert (sliding["hop"], sliding["context"]) == (1, 255)
    for found in result["latencies"]:
        assert found["dim"] == 128
        assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["max_ms"]
        assert found["frames_per_s"] > 0 and found["peak_mb"] > found["above_mb"] >= 0
        assert all(value >= 0 for value in found["parts_ms"].values())
    assert {"last frame", "encode", "score"} < live["parts_ms"].keys()
    # The parts of a live latency make up its mean.
    assert sum(live["parts_ms"].values()) <= live["max_ms"] + 1e-6


def test_detect_takes_a_trained_model(clip: Path, tmp_path: Path) -> None:
    model = detect.random_model("descriptor", CPU)
    model.save_pretrained(tmp_path / "model")
    result = run("detect", "--video", str(clip), "--run", str(tmp_path / "model"), out=tmp_path / "out")
    assert result["model"] == "trained"
    assert {found["encoder"] for found in result["latencies"]} == {"run"}


def test_live_scores_are_those_of_the_file(clip: Path) -> None:
    model = detect.random_model("descriptor", CPU)
    detector = detect.FullDetector(model, detect.DetectConfig(device="cpu", hop=1, tail="drop"))
    watch, played, seconds = detect._play(detector, clip, 10**9)
    assert len(played.preparing) == 5 and seconds > 0
    # The clip's frames are as large for both; encoders see batches of the same size.
    np.testing.assert_allclose(watch.detections()[0].scores.scores, detector(clip).scores.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract", "--video", "missing.mp4"], "missing.mp4"),
        (["detect", "--video", "missing.mp4"], "missing.mp4"),
        (["detect", "--run", "missing"], "missing"),
        pytest.param(
            ["extract", "--device", "cuda"],
            "CUDA",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--quick", "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("name", ["extract", "detect"])
def test_a_video_without_a_segment_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.mp4"
    write_clip(short, frames=SEGMENT - 1, size=(64, 48))
    assert main([name, "--quick", "--video", str(short), "--out", str(tmp_path)]) == 2
    assert f"fewer than {SEGMENT} frames" in capsys.readouterr().err
