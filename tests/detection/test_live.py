"""Live input: streams that arrive, stall, end too early or are missing; cameras; alarms as they happen."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iefvad.cli.detect import main
from iefvad.detection.alarm import AlarmTracker
from iefvad.detection.detect import detect
from iefvad.detection.live.connections import is_live
from iefvad.detection.live.sources import LiveSource
from iefvad.detection.live.watch import Watch
from iefvad.scoring.video_scores import intervals_above, read_scores_csv
from iefvad.utils.addresses import file_stem
from iefvad.utils.errors import UserError
from tests.helpers.detecting import (
    faststart,
    http_server,
    paced,
    silent,
    small_detector,
    small_model,
    tcp_server,
    write_video,
)

QUICK = {"retries": 1, "retry_seconds": 0.05, "timeout": 5.0}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """160 frames, 25 per second, as a file that a server can send."""
    return write_video(tmp_path_factory.mktemp("live") / "clip.ts", frames=160, burst=range(4, 7))


@pytest.fixture
def steady(monkeypatch):
    """Frames that a test sends at once arrive evenly, 25 per second, like those of a camera."""
    count = itertools.count()
    monkeypatch.setattr("iefvad.detection.live.sources._arrival", lambda: next(count) / 25)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("text", "live"),
    [
        ("rtsp://user:secret@camera.lan:554/stream", True),
        ("http://host/video.mp4", True),
        ("udp://@239.0.0.1:1234", True),
        ("tcp://127.0.0.1:9", True),
        ("0", True),
        ("/dev/video0", True),
        ("video.mp4", False),
        ("folder/0", False),
        ("file:///tmp/video.mp4", False),
        ("C:/video.mp4", False),
        ("", False),
    ],
)
def test_what_counts_as_live(text, live):
    assert is_live(text) is live


def test_a_file_named_like_a_camera_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0").touch()
    assert not is_live("0")


@given(
    scores=st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), max_size=40),
    low=st.sampled_from([0.2, 0.4, 0.6]),
    gap=st.sampled_from([0.0, 1.0, 2.5]),
    least=st.sampled_from([0.0, 1.0, 3.0]),
    lengths=st.none() | st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=80, max_size=80),
)
def test_alarms_are_the_intervals_of_the_whole(scores, low, gap, least, lengths):
    """Segments follow each other at a constant rate, or have lengths of their own with pauses between them."""
    rule = {"low": low, "merge_gap_s": gap, "min_length_s": least}
    tracker = AlarmTracker(16.0, 0.6, **rule)
    times = [(None, None)] * len(scores)
    if lengths is not None:
        edges = np.cumsum(lengths)[: 2 * len(scores)]
        starts, ends = edges[::2].tolist(), edges[1::2].tolist()
        times, rule = list(zip(starts, ends, strict=True)), rule | {"starts": starts, "ends": ends}
    alarms = [alarm for score, time in zip(scores, times, strict=True) for alarm in tracker.feed(score, *time)]
    alarms += tracker.finish()
    ended = [(alarm.start, alarm.end, alarm.peak) for alarm in alarms if alarm.kind == "end"]
    assert ended == intervals_above(scores, 16.0, 0.6, **rule)
    assert [alarm.kind for alarm in alarms] == ["start", "end"] * len(ended)


def test_an_alarm_begins_with_the_segment_that_reaches_the_threshold():
    tracker = AlarmTracker(16.0, 0.6, low=0.4)
    kinds = [[alarm.kind for alarm in tracker.feed(score)] for score in (0.1, 0.5, 0.7, 0.5, 0.1, 0.1)]
    assert kinds == [[], [], ["start"], [], ["end"], []]
    with pytest.raises(UserError, match="low"):
        AlarmTracker(16.0, 0.6, low=0.7)


@pytest.mark.parametrize("hop", [1, 4])
def test_a_stream_has_the_scores_of_the_file(clip, hop, room, steady):
    """The same frames give the same scores, except for the rounding of another batch size."""
    file = small_detector(hop=hop)(clip)
    with tcp_server(clip.read_bytes()) as address:
        watch = Watch(small_detector(live=True, hop=hop, retries=0), address)
        scored = list(watch)
    detection = watch.channels[0].detection()
    assert [entry.number for entry in scored] == list(range(10))
    np.testing.assert_allclose(detection.scores.scores, file.scores.scores, atol=1e-5)
    assert detection.scores.fps == pytest.approx(25.0) and file.scores.fps == 25.0
    np.testing.assert_allclose(detection.scores.ends, file.scores.ends, atol=1e-6)
    np.testing.assert_allclose(detection.intervals, file.intervals, atol=1e-5)
    assert all(0 < entry.latency < 30 for entry in scored)
    assert detection.pictures and len(detection.pictures) == len(file.pictures)
    assert detection.live is not None and detection.live["frames_read"] == 160
    assert "ended" in (watch.channels[0].source.gave_up or "")  # a stream without an end was expected to go on


def test_live_input_slides_by_default(clip, room):
    with tcp_server(clip.read_bytes()) as address:
        detector = small_detector(live=True, retries=0)
        scores = [entry.row[0] for entry in Watch(detector, address)]
    assert (detector.hop, detector.context) == (1, 7)
    np.testing.assert_allclose(scores, small_detector(hop=1)(clip).scores.scores, atol=1e-5)


def test_a_served_file_comes_to_its_end(tmp_path):
    """A known end: nothing is dropped, the short tail is filled, and the end does not count as a loss."""
    clip = write_video(tmp_path / "clip.mp4", frames=150)
    with http_server(faststart(clip)) as address:
        watch = Watch(small_detector(live=True, **QUICK), address)
        count = len(list(watch))
    assert count == 10 and watch.channels[0].source.gave_up is None
    assert watch.channels[0].source.health.dropped == 0 and not watch.channels[0].source.health.lost
    np.testing.assert_allclose(
        watch.channels[0].detection().scores.scores, small_detector(hop=1)(clip).scores.scores, atol=1e-5
    )


def test_a_served_file_that_breaks_off_is_read_on(tmp_path):
    """The second connection continues where the first ended, in the middle of a segment."""
    clip = write_video(tmp_path / "clip.mp4", frames=160, seed=4, burst=range(2, 5))
    with http_server(faststart(clip), breaks=1, breaks_at=0.6) as address:
        told: list[str] = []
        watch = Watch(small_detector(live=True, **QUICK), address, notify=lambda name, text: told.append(text))
        rows = [entry.row for entry in watch]
    assert watch.channels[0].source.gave_up is None and watch.channels[0].source.health.lost.total() == 1
    assert told[0].startswith("no connection (") and told[1:] == ["connected again"]
    np.testing.assert_allclose(np.stack(rows)[:, 0], small_detector(hop=1)(clip).scores.scores, atol=1e-5)
    assert all(row[3] < 0.999 for row in rows[1:]), "the recursion started again"


def test_a_stream_that_breaks_off_goes_on_with_its_state(clip, room):
    data = clip.read_bytes()
    with tcp_server(data[: len(data) // 2], data) as address:
        watch = Watch(small_detector(live=True, retries=1, retry_seconds=0.05, timeout=5.0), address)
        rows = [entry.row for entry in watch]
    assert len(rows) > 10 and (len(rows) + 1) * 16 > watch.channels[0].source.health.frames - 16
    assert all(row[3] < 0.999 for row in rows[1:])
    # The half segment before the break is dropped, so that no segment joins two moments.
    assert watch.channels[0].source.health.frames == 16 * len(rows) + watch.channels[0].source.health.dropped
    assert watch.channels[0].source.gave_up is not None and watch.channels[0].source.health.lost.total() >= 2


@pytest.mark.parametrize("address", ["a closed port", "http://127.0.0.1:1/stream", "99"])
def test_what_cannot_be_reached_is_tried_again_and_then_named(address, capfd):
    source = LiveSource(
        closed_port() if address == "a closed port" else address, retries=2, retry_seconds=0.02, timeout=2.0
    )
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be reached \(attempts: 3\)"):
        list(source)
    assert source.health.lost.total() == 3
    assert time.monotonic() - begin >= 0.02 + 0.04  # each wait is twice the one before


def test_an_unknown_protocol_is_not_tried_again():
    source = LiveSource("carrier-pigeon://roof", retries=50, retry_seconds=5)
    with pytest.raises(UserError, match="not a protocol"):
        list(source)


def test_silence_counts_as_lost(clip, room):
    """A server that accepts and sends nothing, and one that stops sending in the middle."""

    with tcp_server(silent(20.0)) as address:
        source = LiveSource(address, retries=0, timeout=0.4)
        with pytest.raises(UserError, match=r"no answer within 0\.4 s"):
            list(source)
    with tcp_server(paced(clip.read_bytes(), 0.2, then=3.0)) as address:
        source = LiveSource(address, retries=0, timeout=0.8)
        assert len(list(source)) >= 9
    assert "no answer within 0.8 s" in (source.gave_up or "")


def test_the_oldest_segments_are_dropped_when_scoring_cannot_keep_up(tmp_path):
    clip = write_video(tmp_path / "long.ts", frames=16 * 30)
    with tcp_server(clip.read_bytes()) as address:
        source = LiveSource(address, retries=0, timeout=5.0)
        seen = 0
        for segment in source:
            if seen == 0:
                first = segment.read
                source._thread.join(20)  # the consumer sleeps while everything arrives
                assert source.health.frames == 480
            seen += 1
        assert segment.read > first
    assert seen + source.health.dropped // 16 == 30 and source.health.dropped >= 16 * 20


def test_a_camera(clip, monkeypatch, room):
    """OpenCV reads a file in place of a camera. The frames must reach the model as RGB."""
    real = cv2.VideoCapture
    monkeypatch.setattr("iefvad.detection.live.connections.cv2.VideoCapture", lambda device: real(str(clip)))
    [detection] = detect(small_model(), "0", device="cpu", retries=0)
    assert detection.video == "camera 0" and len(detection.scores.scores) == 10
    np.testing.assert_allclose(detection.scores.scores, small_detector(hop=1)(clip).scores.scores, atol=0.02)
    assert detection.files == []


def test_the_command_on_a_stream(run, clip, tmp_path, capsys, room, steady):
    out = tmp_path / "out"
    flags = ["--out", str(out), "--device", "cpu", "--retries", "0", "--threshold", "0.5", "--low", "0.4"]
    with tcp_server(clip.read_bytes()) as address:
        assert main([str(run), address, *flags]) == 1  # it was lost, and what came is kept
    captured = capsys.readouterr()
    assert "was lost" in captured.err and "is kept" in captured.err
    stem = file_stem(address)
    assert sorted(p.name for p in out.iterdir()) == [f"{stem}{s}" for s in (".csv", ".html", ".json", "_intervals.csv")]
    document = json.loads((out / f"{stem}.json").read_text())
    assert len(document["segments"]) == 10 and document["live"]["frames_read"] == 160
    assert {"clock", "latency_ms", "score", "w_img", "gain"} <= set(document["segments"][0])
    assert document["timing"]["latency"]["median_ms"] > 0
    [scores] = read_scores_csv(out / f"{stem}.csv")
    assert scores.scores.size == 10
    assert captured.out.count("ALARM since") == len(document["intervals"]) > 0
    lines = re.findall(r"^0:00:0\d\.\d  0\.\d{3}  [#.|]{24} +\d+ ms", captured.out, re.MULTILINE)
    assert len(lines) == 10 and "latency" in captured.out
    with tcp_server(clip.read_bytes()) as again:  # a recording is never replaced
        (out / f"{file_stem(again)}.csv").write_text("from yesterday")
        assert main([str(run), again, *flags]) == 1
    assert (out / f"{file_stem(again)}_2.html").exists()
    assert (out / f"{file_stem(again)}.csv").read_text() == "from yesterday"


def test_unreachable_from_the_command(run, tmp_path, capsys):
    address = closed_port().replace("tcp://", "tcp://user:secret@")
    assert main([str(run), address, "--out", str(tmp_path), "--retries", "1", "--retry-seconds", "0.01"]) == 2
    captured = capsys.readouterr()
    assert "cannot be reached" in captured.err
    assert "secret" not in captured.err + captured.out
    assert main([str(run), address, "video.mp4"]) == 2
    assert "cameras and video files in one call" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("rtsp://admin:p#s3cr3t@127.0.0.1:9/stream", "# as %23"),
        ("rtsp://admin:[s3cr3t]@127.0.0.1:9/s", "[ as %5B"),
        ("rtsp://127.0.0.1:9/user=admin&password=s3cr3t&channel=1&stream=0.sdp", "channel=1&stream=0.sdp cannot be"),
        ("http://127.0.0.1:9/12/x@y?token=s3cr3t", "/ as %2F"),
        ("rtsp:/admin:s3cr3t@127.0.0.1:9/stream", "does not exist"),
        ("admin:s3cr3t@127.0.0.1:9/stream", "does not exist"),
    ],
)
def test_no_secret_of_an_address_is_printed(run, tmp_path, capsys, address, status):
    assert main([str(run), address, "--out", str(tmp_path), "--retries", "0", "--timeout", "2"]) == 2
    captured = capsys.readouterr()
    assert status in captured.err and captured.err.count("\n") == 1
    assert "s3cr3t" not in captured.out + captured.err


def test_no_secret_in_results(run, clip, tmp_path, room):
    with tcp_server(clip.read_bytes()) as address:
        address = address.replace("tcp://", "tcp://admin:s3@cr3t@") + "?token=s3cr3t"
        assert main([str(run), address, "--out", str(tmp_path), "--device", "cpu", "--retries", "0"]) == 1
    files = list(tmp_path.iterdir())
    assert len(files) == 4
    for file in files:
        assert "cr3t" not in file.name and b"cr3t" not in file.read_bytes() and b"admin" not in file.read_bytes()


def test_no_secret_in_what_the_parser_and_a_traceback_say(monkeypatch, capsys):
    address = "rtsp://admin:my s3cr3t@camera/x"
    for arguments in (["RUN", "x", "--bogus", address], ["RUN", address, "--print_config"]):
        monkeypatch.setattr(sys, "argv", ["iefvad", *arguments])
        with pytest.raises(SystemExit):
            main()
    monkeypatch.setattr(sys, "argv", ["iefvad", "RUN", address])
    monkeypatch.setattr("iefvad.detection.detect.inputs", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ZeroDivisionError):
        main()
    sys.excepthook(ValueError, ValueError(f"{address} is bad"), None)
    captured = capsys.readouterr()
    assert "s3cr3t" not in captured.out + captured.err
    assert captured.out.count("rtsp://camera/x") == 1 and "rtsp://camera/x is bad" in captured.err


def test_duration_ends_a_stream_that_would_go_on(run, clip, tmp_path):
    with tcp_server(paced(clip.read_bytes(), 5.0)) as address:
        begin = time.monotonic()
        flags = ["--out", str(tmp_path / "out"), "--duration", "0.5", "--device", "cpu"]
        assert main([str(run), address, *flags]) == 0
        assert time.monotonic() - begin < 15
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_ctrl_c_writes_every_file(run, clip, tmp_path, monkeypatch, capsys):
    shown = []

    def show(scored, *_) -> None:
        shown.append(scored)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("iefvad.detection.terminal._print_score", show)
    with tcp_server(paced(clip.read_bytes(), 0.5, then=5.0)) as address:
        begin = time.monotonic()
        assert main([str(run), address, "--out", str(tmp_path), "--device", "cpu"]) == 0
        assert time.monotonic() - begin < 15
    assert "ended by Ctrl-C" in capsys.readouterr().out
    [path] = tmp_path.glob("*.json")
    assert len(json.loads(path.read_text())["segments"]) == 3
    assert len(read_scores_csv(path.with_suffix(".csv"))[0].scores) == 3
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_by_a_signal(run, clip, tmp_path, how):
    """When a service is stopped, it writes every file. Even after a kill, each scored segment is in the CSV."""
    out = tmp_path / "out"
    with tcp_server(paced(clip.read_bytes(), 1.5, then=20.0)) as address:
        command = [sys.executable, "-m", "iefvad.detect", str(run), address, "--out", str(out), "--device", "cpu"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if len([row for row in printed if row.startswith("0:00:0")]) == 3:
                break
        process.send_signal(how)
        rest, _ = process.communicate(timeout=90)
    [path] = out.glob("*[0-9].csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 3 and all(0 < float(row["score"]) < 1 for row in rows)
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    assert process.returncode == 0 and "ended by Ctrl-C" in rest
    assert len(list(out.iterdir())) == 4
    document = json.loads(path.with_suffix(".json").read_text())
    assert len(document["segments"]) == len(rows)
