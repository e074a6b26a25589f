"""Several cameras at once: what is given, what each of them gets, and what happens when one is lost."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from iefvad.cli.detect import main
from iefvad.detection.config import DetectConfig
from iefvad.detection.detect import _watch, detect
from iefvad.detection.live.cameras import Camera, find_cameras, read_cameras
from iefvad.detection.live.watch import Watch
from iefvad.detection.terminal import watch
from iefvad.utils.errors import UserError
from tests.helpers.detecting import paced, small_detector, small_model, tcp_server, write_video

CLOSED = "tcp://127.0.0.1:9"
QUICK = ["--retries", "0", "--retry-seconds", "0.05", "--timeout", "3", "--device", "cpu"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two videos of 128 and 96 frames, 25 per second, as files that a server can send."""
    folder = tmp_path_factory.mktemp("live")
    first = write_video(folder / "first.ts", frames=128, burst=range(3, 5))
    return first, write_video(folder / "second.ts", frames=96, seed=1, burst=range(2, 3))


def cameras(tmp_path, text: str) -> list[Camera]:
    path = tmp_path / "cameras.yaml"
    path.write_text(text, encoding="utf-8")
    return find_cameras([str(path)])


def test_addresses_and_lists(tmp_path):
    found = cameras(
        tmp_path, "yard: rtsp://u:s3cr3t@host/a\ndesk: 0\ngate:\n  address: http://host/b\n  threshold: 1\n"
    )
    assert [(camera.name, camera.address, camera.stem) for camera in found] == [
        ("yard", "rtsp://u:s3cr3t@host/a", "yard"),
        ("desk", "0", "desk"),
        ("gate", "http://host/b", "gate"),
    ]
    assert found[2].settings == {"threshold": 1.0}
    assert found[2].configured(DetectConfig(retries=7)) == DetectConfig(retries=7, threshold=1.0)
    both = find_cameras([str(tmp_path / "cameras.yaml"), "rtsp://host/c", "rtsp://host/c"])
    assert [camera.name for camera in both][3:] == ["rtsp://host/c"]
    assert find_cameras(["video.mp4", "folder"]) == []


def test_every_camera_has_a_name_and_files_of_its_own(tmp_path):
    """Two addresses that look the same without their secrets, and names that differ in what a file name cannot hold."""
    found = find_cameras(["rtsp://a:1@host/s?token=x", "rtsp://a:1@host/s?token=y"])
    assert [camera.name for camera in found] == ["rtsp://host/s", "rtsp://host/s (2)"]
    named = cameras(
        tmp_path, 'Yard/1: rtsp://h/1\n"yard:1": rtsp://h/2\n門: rtsp://h/3\n窓: rtsp://h/4\n../../x: rtsp://h/5\n'
    )
    assert len({camera.stem.lower() for camera in named}) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", camera.stem) for camera in named)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no cameras"),
        ("- rtsp://h/s", "contains no cameras"),
        ("a: rtsp://h/s\na: rtsp://h/t", r"line 2: the name a occurs twice"),
        ("a: {address: rtsp://h/s, threshold: 0.5, threshold: 0.6}", "occurs twice"),
        ("a: rtsp://u:s3cr3t@h/s: x", "not a list of cameras, line 1"),
        ("a: video.mp4", "neither an address"),
        ("a: {threshold: 0.5}", "the address is missing"),
        ("a:", "the address is missing"),
        ("a: {address: rtsp://h/s, treshold: 0.5}", "unknown setting treshold; known are address, threshold, low"),
        ("a: {address: rtsp://h/s, threshold: high}", "threshold must be a number"),
        ("a: {address: rtsp://h/s, retries: 1.5}", "retries must be a whole number"),
        ("a: rtsp://u:s3cr3t@h/s\nb: rtsp://u:s3cr3t@h/s", "a and b are the same camera"),
        ("a: !!python/object/apply:os.system ['true']", "not a list of cameras"),
        ("x" * 200 + ": rtsp://h/s", "1 to 100 printable letters"),
        ("a: 2026-99-99", "not a list of cameras"),
        ("a: " + "[" * 5000, "not a list of cameras"),
        ("# comment\n" * 200_000, "not a list of cameras"),
    ],
)
def test_a_wrong_list_is_explained(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        cameras(tmp_path, text)
    assert "s3cr3t" not in str(caught.value)


def test_a_list_that_cannot_be_read_and_mixed_input(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_cameras(tmp_path / "missing.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="cannot be read: a folder, a pipe"):
        read_cameras(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match=r"cameras and video files in one call \(rtsp://h/s, video.mp4\)"):
        find_cameras(["rtsp://u:p@h/s", "video.mp4"])
    with pytest.raises(UserError, match="--webhook is for cameras"):
        detect(small_model(), "video.mp4", webhook="http://h/")
    with pytest.raises(UserError, match="camera a: --timeout must be greater than 0"):
        Watch(small_detector(live=True), [Camera("a", "0", "a", {"timeout": 0.0})])


@pytest.mark.parametrize("batch", [16, 64])
def test_each_camera_has_the_scores_that_it_has_alone(clips, room, batch):
    """State, alarms and results of cameras do not mix, whether the encoder takes one segment at once or several."""
    detector = small_detector(live=True, retries=0)
    detector.encoder.batch = batch
    with tcp_server(clips[0].read_bytes()) as one, tcp_server(clips[1].read_bytes()) as two:
        given = [Camera("first", one, "first"), Camera("second", two, "second", {"threshold": 2.0})]
        watch = Watch(detector, given)
        scored = list(watch)
    for channel, clip in zip(watch.channels, clips, strict=True):
        alone = small_detector(hop=1)(clip)
        np.testing.assert_allclose(channel.detection().scores.scores, alone.scores.scores, atol=1e-5)
        numbers = [entry.number for entry in scored if entry.camera == channel.name]
        assert numbers == list(range(len(alone.scores.scores)))
    assert {alarm.camera for entry in scored for alarm in entry.alarms} == {"first"}
    alarms = [alarm for entry in scored for alarm in entry.alarms] + watch.channels[0].finish()
    assert [(alarm.kind, alarm.number) for alarm in alarms][:2] == [("start", 1), ("end", 1)]
    assert alarms[0].picture is not None and alarms[0].threshold == 0.5


def test_the_command_on_cameras(run, clips, tmp_path, capsys, room):
    """One camera never answers, one is lost and comes back, one ends: the files of the others are complete."""
    data = clips[0].read_bytes()
    out = tmp_path / "out"
    with tcp_server(data[: len(data) // 2], data) as first, tcp_server(clips[1].read_bytes()) as second:
        (tmp_path / "cameras.yaml").write_text(
            f"yard:\n  address: {first}\n  retries: 1\n  threshold: 0.4\ngate: {second}\nnobody: {CLOSED}\n"
        )
        assert main([str(run), str(tmp_path / "cameras.yaml"), "--out", str(out), *QUICK]) == 1
    captured = capsys.readouterr()
    assert sorted(path.name for path in out.glob("*.json")) == ["gate.json", "yard.json"]
    assert len(list(out.iterdir())) == 8
    yard, gate = (json.loads((out / f"{name}.json").read_text()) for name in ("yard", "gate"))
    assert yard["rule"]["threshold"] == 0.4 and gate["rule"]["threshold"] == 0.5
    assert len(gate["segments"]) == 6 and len(yard["segments"]) > 8
    assert sum(yard["live"]["connections_lost"].values()) >= 2 and yard["live"]["camera"] == "yard"
    assert gate["live"]["frames_dropped"] == 0
    assert f"nobody: {CLOSED} cannot be reached (attempts: 1)" in captured.err
    assert re.search(r"^yard    0:00:0\d\.\d  0\.\d{3}  ", captured.out, re.MULTILINE)
    assert "yard: no connection (" in captured.out and "yard: connected again" in captured.out


def test_no_camera_answers(run, tmp_path, capsys):
    assert main([str(run), CLOSED, CLOSED + "/b", "--out", str(tmp_path), *QUICK]) == 2
    assert "none of the 2 cameras can be reached" in capsys.readouterr().err


def test_a_silent_camera_stops_nobody(clips, room):
    """A server that accepts and sends nothing, while another camera is scored."""
    release = threading.Event()
    with tcp_server(lambda connection: release.wait(20)) as silent, tcp_server(clips[0].read_bytes()) as sends:
        watch = Watch(
            small_detector(live=True, retries=0, timeout=30.0),
            [Camera("silent", silent, "silent"), Camera("sends", sends, "sends")],
        )
        begin = time.monotonic()
        scores = iter(watch)
        names = [next(scores).camera for _ in range(8)]
        seconds = time.monotonic() - begin
        release.set()
        scores.close()
    assert set(names) == {"sends"} and seconds < 15


def test_cameras_take_turns_when_scoring_is_too_slow(clips):
    """Two cameras send far more than is scored: both are scored in turn, and each counts its own dropped frames."""
    data = clips[0].read_bytes()
    with tcp_server(data) as one, tcp_server(data) as two:
        watch = Watch(small_detector(live=True, retries=0), [Camera("a", one, "a"), Camera("b", two, "b")])
        for channel in watch.channels:
            channel.source._ahead = 3
        scores = iter(watch)
        order = [next(scores).camera]
        for channel in watch.channels:
            channel.source._thread.join(20)  # everything arrives while nothing is scored
        order += [scored.camera for scored in scores]
    assert sorted(order.count(name) for name in "ab") >= [3, 3] and len(order) <= 8
    assert max(len(streak) for streak in re.findall(r"a+|b+", "".join(order))) <= 2
    for channel in watch.channels:
        health = channel.source.health
        assert health.frames == 128 and health.dropped == 128 - 16 * order.count(channel.name)
        assert [lost.reason for lost in channel.lost] in ([], ["scoring could not keep up"])


def test_ctrl_c_writes_the_files_of_all_cameras(run, clips, tmp_path, monkeypatch, capsys):
    shown = []

    def show(scored, *_) -> None:
        shown.append(scored.camera)
        if len(set(shown)) == 2 and len(shown) >= 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("iefvad.detection.terminal._print_score", show)
    with (
        tcp_server(paced(clips[0].read_bytes(), 0.5, then=5.0)) as one,
        tcp_server(paced(clips[1].read_bytes(), 0.5, then=5.0)) as two,
    ):
        assert main([str(run), one, two, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "ended by Ctrl-C" in capsys.readouterr().out
    documents = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sum(len(document["segments"]) for document in documents) == len(shown) and len(documents) == 2
    assert len(list(tmp_path.iterdir())) == 8


def test_the_function_on_cameras(clips, tmp_path, room):
    with tcp_server(clips[0].read_bytes()) as one, tcp_server(clips[1].read_bytes()) as two:
        first, second = detect(small_model(), [one, two], device="cpu", retries=0, out=str(tmp_path))
    assert (first.scores.scores.size, second.scores.scores.size) == (8, 6)
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("command", [False, True])
def test_results_that_cannot_be_written_cost_one_camera(command, tmp_path, monkeypatch, capsys):
    """The other camera's results are written before the error is told."""
    detector, written = small_detector(), []
    channels = [
        SimpleNamespace(
            camera=Camera(name, name, name), name=name, label=name, rule=detector.rule, trouble=None, segments=[1]
        )
        for name in "ab"
    ]

    class Session:
        def __init__(self, *given, **more):
            self.channels = self.scored = channels

        def __iter__(self):
            yield from ()

        def detections(self):
            return ["of a", "of b"]

    class Recorder:
        def __init__(self, channel, *given):
            self.name, self.channel = channel.name, channel

        def close(self):
            pass

        def finish(self, detector):
            write(f"of {self.name}")

    def write(detection, *rest):
        written.append(detection)
        if detection == "of a":
            raise UserError("a is not written")

    monkeypatch.setattr("iefvad.detection.detect.Watch", Session)
    monkeypatch.setattr("iefvad.detection.detect.write_results", write)
    monkeypatch.setattr("iefvad.detection.terminal.Watch", Session)
    monkeypatch.setattr("iefvad.detection.terminal._Recorder", Recorder)
    if command:
        assert watch(detector, [channel.camera for channel in channels], tmp_path) == 1
        assert "a: a is not written" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match="a is not written"):
            _watch(detector, [], tmp_path)
    assert written == ["of a", "of b"]
