"""The times of a file with a variable rate, a gap or no rate, in all that detection and extraction write."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest

from iefvad.data.datasets import load_packed, load_store
from iefvad.detection.calibrate import CalibrateConfig, calibrate
from iefvad.detection.outputs import write_results
from iefvad.detection.terminal import summarize
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.decoding import SHAPE, DecodingProcess, Ended
from iefvad.extraction.extract import extract
from iefvad.features.packing import pack
from iefvad.features.store import FeatureStore
from iefvad.scoring.scorer import density_scores
from iefvad.scoring.video_scores import read_scores_csv
from iefvad.video import Segments
from tests.helpers.detecting import small_detector, small_model
from tests.helpers.stores import without_checksums
from tests.video.test_clock import write

STARTS, ENDS = [0.0, 3.2, 6.4, 9.6, 10.24, 10.88], [3.2, 6.4, 9.6, 10.24, 10.88, 11.52]


def slow_then_fast(number: int) -> int:
    """Stamps of a phone in the dark: 48 frames at 5 per second, the others at 25 per second."""
    return 5 * min(number, 48) + max(number - 48, 0)


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("phone") / "phone.mp4", 96, stamp=slow_then_fast)


def test_detection_writes_the_times_of_a_player(phone, tmp_path):
    detector = small_detector(overlay=True)
    scores = detector(phone).scores.scores
    detector = small_detector(overlay=True, threshold=float(np.sort(scores)[-2]), low=float(np.sort(scores)[-2]))
    detection = detector(phone)
    write_results(detection, tmp_path, "phone", detector)
    np.testing.assert_allclose(detection.scores.starts, STARTS)
    np.testing.assert_allclose(detection.scores.ends, ENDS)
    assert detection.scores.seconds == pytest.approx(11.52)
    [back] = read_scores_csv(tmp_path / "phone.csv")
    assert (back.starts.tolist(), back.ends.tolist()) == (STARTS, ENDS)
    document = json.loads((tmp_path / "phone.json").read_text())
    assert document["clock"] == {
        "origin": "stamps", "rate": pytest.approx(96 / 11.52, rel=0.05), "lost": [], "restarts": [], "notes": []
    }  # fmt: skip
    assert [(row["frame"], row["start"], row["end"]) for row in document["segments"]] == [
        (16 * t, start, end) for t, (start, end) in enumerate(zip(STARTS, ENDS, strict=True))
    ]
    with (tmp_path / "phone_intervals.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 1 <= len(rows) <= 2 and len(rows) == len(document["intervals"])
    for row, interval in zip(rows, document["intervals"], strict=True):
        first, last = STARTS.index(round(interval["start"], 6)), ENDS.index(round(interval["end"], 6))
        assert (interval["first_frame"], interval["last_frame"]) == (16 * first, 16 * last + 15)
        assert (int(row["first frame"]), int(row["last frame"])) == (16 * first, 16 * last + 15)
    # The overlay shows each frame when the original does.
    with av.open(str(tmp_path / "phone_overlay.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, [slow_then_fast(i) / 25 for i in range(96)], atol=1e-3)


def test_lost_frames_are_named_everywhere(tmp_path, capsys):
    path = write(tmp_path / "gap.ts", [i for i in range(160) if not 40 <= i < 90])
    detector = small_detector()
    detection = detector(path)
    write_results(detection, tmp_path / "out", "gap", detector)
    summarize(detection)
    said = "about 50 frames lost from 0:00:01.6 to 0:00:03.6"
    assert said in capsys.readouterr().out and said in (tmp_path / "out" / "gap.html").read_text()
    found = json.loads((tmp_path / "out" / "gap.json").read_text())["clock"]
    assert found["lost"] == [{"frame": 40, "start": 1.6, "end": 3.6, "frames": 50}] and said in found["notes"][0]


def test_an_assumed_rate_is_said_everywhere(tmp_path, capsys):
    path = write(tmp_path / "camera.mjpeg", 48, codec="mjpeg")
    detector = small_detector()
    detection = detector(path)
    write_results(detection, tmp_path / "out", "camera", detector)
    summarize(detection)
    said = "assumed 25 frames per second"
    assert said in capsys.readouterr().out and said in (tmp_path / "out" / "camera.html").read_text()
    assert json.loads((tmp_path / "out" / "camera.json").read_text())["clock"]["origin"] == "assumed"
    extract([path], tmp_path / "store", ExtractConfig(device="cpu", quiet=True))
    assert f"camera: {said}" in "".join(capsys.readouterr())


def test_calibration_counts_the_hours_of_a_player(phone, tmp_path):
    """The video has 11.52 s; at its highest momentary rate it would have a third of that."""
    found, failed = calibrate(small_model(), [phone], CalibrateConfig(false_alarms_per_hour=0.0, device="cpu"))
    assert not failed and found.hours == pytest.approx(11.52 / 3600)


def test_extraction_keeps_the_times_until_they_are_evaluated(phone, tmp_path):
    store = (
        FeatureStore(tmp_path / "store") if extract([phone], tmp_path / "store", ExtractConfig(quiet=True)) else None
    )
    assert store is not None
    side = store.sidecar("phone")
    assert (side.starts, side.ends) == (STARTS, ENDS) and side.clock["origin"] == "stamps"
    process = DecodingProcess()
    *_, ended = process.decode(phone, store.settings | {"on_truncated": "error"}, lambda: np.empty(SHAPE, np.uint8))
    process.close()
    segments = Segments(phone)
    assert sum(1 for _ in segments) == 6 and ended == Ended.of(segments)
    assert (ended.starts, ended.ends, ended.clock) == (side.starts, side.ends, side.clock)

    (store.root / "test.csv").write_text("path,label\nphone.mp4,Normal\n")
    pack(load_store(store.root), tmp_path / "packed", progress=False)
    for benchmark in (load_store(store.root), load_packed(tmp_path / "packed")):
        assert not any("time stamps" in note for note in benchmark.notes)
        [scores] = density_scores(benchmark.test)
        assert (scores.starts.tolist(), scores.ends.tolist()) == (STARTS, ENDS)


def test_a_store_of_an_earlier_version_counts_frames_and_says_so_once(phone, tmp_path):
    extract([phone], tmp_path / "store", ExtractConfig(quiet=True))
    side = tmp_path / "store" / "phone.json"
    content = json.loads(side.read_text())
    side.write_text(json.dumps({key: content[key] for key in content if key not in ("starts", "ends", "clock")}))
    without_checksums(side.with_suffix(".safetensors"))
    store = FeatureStore(tmp_path / "store")
    assert store.sidecar("phone").starts is None and store.is_current("phone", content["source_hash"])
    (store.root / "test.csv").write_text("path,label\nphone.mp4,Normal\n")
    benchmark = load_store(store.root)
    assert sum("counted from frames" in note for note in benchmark.notes) == 1
    [scores] = density_scores(benchmark.test)
    np.testing.assert_allclose(scores.starts, 16 * np.arange(6) / scores.fps)
    pack(benchmark, tmp_path / "packed", progress=False)
    assert load_packed(tmp_path / "packed").test[0].starts is None
