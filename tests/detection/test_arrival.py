"""The clock of live input: times are those of arrival, and what is missing is named."""

from __future__ import annotations

import http.server
import itertools
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from iefvad.detection.live.arrival import Arrivals
from iefvad.detection.live.cameras import Camera
from iefvad.detection.live.connections import ConnectionLostError
from iefvad.detection.live.sources import LiveSource
from iefvad.detection.live.watch import Watch
from tests.helpers.detecting import faststart, http_server, small_detector, write_video


class Scripted:
    """A connection whose frames arrive at given times. It stands in for a camera, and takes no time."""

    finite = False

    def __init__(self, arrivals, fps=0.0, stamps=None) -> None:
        self.arrivals, self.fps = list(arrivals), fps
        self.stamps = [None] * len(self.arrivals) if stamps is None else stamps

    def __iter__(self):
        for number, (arrival, stamp) in enumerate(zip(self.arrivals, self.stamps, strict=True)):
            Scripted.now = arrival
            yield np.full((12, 16, 3), number % 256, np.uint8), stamp
        raise ConnectionLostError("the script ended")

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch):
    """Return a function that makes a source of scripted connections, each one after the other."""

    def make(*connections: Scripted) -> LiveSource:
        left = iter(connections)
        monkeypatch.setattr("iefvad.detection.live.sources.connect", lambda *_: next(left, Scripted([])))
        monkeypatch.setattr("iefvad.detection.live.sources._arrival", lambda: Scripted.now)
        return LiveSource("http://camera/", retries=len(connections) - 1, retry_seconds=0.0, ahead=1000)

    return make


def even(count: int, rate: float, start: float = 100.0):
    return [start + number / rate for number in range(count)]


def times(source: LiveSource):
    return [(segment.start, segment.end, segment.gap) for segment in source]


@pytest.mark.parametrize(("rate", "told"), [(10.0, 0.0), (10.0, 25.0), (0.5, 25.0), (0.5, 0.0), (60.0, 60.0)])
def test_segments_last_as_long_as_their_frames_took_to_arrive(scripted, rate, told):
    """Whatever rate is told: a slow camera is slow, and none of its frames counts as lost."""
    source = scripted(Scripted(even(64, rate), told))
    found = times(source)
    np.testing.assert_allclose([start for start, _, _ in found], 16 / rate * np.arange(4), atol=1e-9)
    np.testing.assert_allclose([end for _, end, _ in found], 16 / rate * np.arange(1, 5), atol=1e-9)
    assert source.fps == pytest.approx(rate) and source.health.dropped == 0
    assert not any(gap for _, _, gap in found)


def test_what_is_said_about_the_rate():
    arrivals = Arrivals()
    for arrival in even(30, 10.0):
        assert arrivals.remark() is None or arrivals.measured
        arrivals.add(arrival)
    assert arrivals.remark() == "the source tells no frame rate; 10 frames/s arrive"
    arrivals.told = 25.0
    assert arrivals.remark() == "the source tells 25 frames/s; 10 arrive"
    arrivals.told = 10.3
    assert arrivals.remark() is None


def test_a_pause_counts_as_time_and_is_named(scripted):
    """5 s without frames after frame 40, which is in the middle of a segment: that segment is dropped."""
    moments = even(40, 10.0)
    source = scripted(Scripted(moments + even(48, 10.0, moments[-1] + 5.0)))
    found = times(source)
    assert [gap for _, _, gap in found] == ["", "", "no frames came for 5.0 s", "", ""]
    np.testing.assert_allclose(found[2][:2], (8.9, 10.5))  # the first frame began 0.1 s before it arrived
    assert source.health.dropped == 8


def test_late_frames_are_not_lost(scripted):
    """A stream whose stamps go on: its frames came in a bundle after 3 s."""
    moments = even(20, 10.0)
    late = [moments[-1] + 3.0 + 0.001 * number for number in range(28)]
    source = scripted(Scripted(moments + late, 10.0, [number / 10 for number in range(48)]))
    assert [gap for _, _, gap in times(source)] == ["", "", ""] and source.health.dropped == 0
    jump = [number / 10 + (3 if number >= 20 else 0) for number in range(48)]
    source = scripted(Scripted(moments + late, 10.0, jump))
    assert [gap for _, _, gap in times(source)] == ["", "no frames came for 3.0 s"]


def test_a_camera_that_pauses_again_and_again_is_still_scored(scripted):
    """Bundles of ten frames with 2 s between them never fill a segment without a pause."""
    moments = even(16, 10.0)
    for _ in range(6):
        moments += even(10, 10.0, moments[-1] + 2.0)
    source = scripted(Scripted(moments))
    found = times(source)
    assert len(found) >= 4 and found[-1][1] > 10
    assert all(first[1] <= second[0] + 1e-9 for first, second in itertools.pairwise(found))


def test_a_lost_connection_counts_as_time(scripted, monkeypatch):
    """The alarm rule, the intervals and the results see the time that passed, and the stretch is listed."""
    monkeypatch.setattr("iefvad.detection.live.watch._MOST", 100)
    first, second = Scripted(even(40, 10.0)), Scripted(even(48, 10.0, 120.0))
    scripted(first, second)
    watch = Watch(small_detector(live=True, retries=1, retry_seconds=0.0), [Camera("yard", "http://camera/", "yard")])
    scored = list(watch)
    channel = watch.channels[0]
    [lost] = channel.lost
    assert lost.reason == "the connection was lost" and lost is scored[2].lost
    assert lost.start == pytest.approx(3.2) and lost.seconds == pytest.approx(16.8) and lost.frames == 168
    detection = channel.detection()
    assert detection.scores.starts[2] == pytest.approx(20.0) and detection.scores.ends[-1] == pytest.approx(24.8)
    assert detection.scores.fps == pytest.approx(10.0)
    assert detection.live["lost"] == [
        {"start": lost.start, "seconds": lost.seconds, "frames": 168, "reason": "the connection was lost"}
    ]
    assert detection.live["fps_told"] is None


def test_dropped_segments_count_as_time(scripted):
    source = scripted(Scripted(even(160, 10.0)))
    source._ahead = 2
    source.start()
    source._thread.join(10)
    found = times_of_waiting(source)
    assert found == [pytest.approx((12.8, 14.4)), pytest.approx((14.4, 16.0))]
    assert source.health.dropped == 128


def times_of_waiting(source: LiveSource):
    assert source._waiting[0].gap == "scoring could not keep up"
    return [(segment.start, segment.end) for segment in source._waiting]


def test_a_served_file_keeps_its_own_times(tmp_path):
    """It arrives faster than it plays; its presentation times count."""
    clip = write_video(tmp_path / "clip.mp4", frames=48, fps=10)
    with http_server(faststart(clip)) as address:
        source = LiveSource(address, retries=0)
        found = times(source)
    np.testing.assert_allclose([entry[:2] for entry in found], [(0, 1.6), (1.6, 3.2), (3.2, 4.8)], atol=1e-6)
    assert source.fps == 10.0 and source.arrivals.measured == 0.0


def test_a_camera_that_tells_no_rate():
    """Motion JPEG over HTTP, 20 pictures per second. FFmpeg takes 25, and would make the times from it."""
    picture = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            begin = time.monotonic()
            for number in range(33):
                time.sleep(max(0.0, begin + number / 20 - time.monotonic()))
                head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
                self.wfile.write(head + picture + b"\r\n")

        def log_message(self, *arguments) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        source = LiveSource(f"http://127.0.0.1:{server.server_address[1]}/stream", retries=0)
        found = times(source)
    finally:
        server.shutdown()
        server.server_close()
    assert source.arrivals.told == 0.0 and len(found) == 2
    # A busy machine delays single frames; 25 frames per second would be 1.28 s.
    assert found[1][1] == pytest.approx(1.6, abs=0.25) and source.fps == pytest.approx(20.0, rel=0.12)


def test_the_reported_camera(shared_data: Path, tmp_path: Path):
    """A report: motion JPEG at another rate than 25, in real seconds, and a word about the rate."""
    script = shared_data / "reports" / "live_mjpeg" / "serve.py"
    if not script.exists():
        pytest.skip("needs the reported camera")
    clip = write_video(tmp_path / "clip.mp4", frames=35)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(script), str(clip), str(port), "20"])
    try:
        source = LiveSource(f"http://127.0.0.1:{port}/stream", retries=40, retry_seconds=0.1)
        source.start()
        until = time.monotonic() + 20
        segments = []
        while len(segments) < 2 and time.monotonic() < until:
            segment = source.take()
            segments += [segment] if segment is not None else []
            time.sleep(0.01)
        source.stop()
    finally:
        process.kill()
        process.wait()
    assert len(segments) == 2 and segments[0].start == 0.0
    assert segments[1].end == pytest.approx(1.6, abs=0.25), "1.28 s at the 25 frames/s that FFmpeg assumes"
    assert (source.arrivals.remark() or "").startswith("the source tells no frame rate; ")
