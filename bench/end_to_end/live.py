"""`python -m bench live --cameras 8 --seconds 600`: several cameras at once, their latency and memory over time.

Another process serves motion JPEG over HTTP on this machine, as network cameras do. They are scored as `iefvad detect`
scores cameras, with the descriptor encoder and a full context. "last frame read" counts from the time when the last
frame of a segment was read; "last frame due" from the time when the camera had to send it, so that connection and
decoding are in it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import memory
from bench.end_to_end import _records as records
from bench.end_to_end._clip import write_clip
from bench.end_to_end.detect import FullDetector, random_model
from bench.tables import significant, text_table
from bench.targets import Target
from iefvad.detection.config import DetectConfig
from iefvad.detection.live.cameras import Camera
from iefvad.detection.live.watch import Watch
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 96
"""Frames of the made-up clip that the cameras repeat."""
SAMPLES = 120
"""Number of times that memory is read."""
SETTLE = 10.0
"""Seconds at the beginning without figures: FFmpeg reads several frames before it gives the first one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = records.make_parser("live", "Several cameras at once: latency, lost frames, and memory over time.")
    parser.add_argument("--cameras", type=int, default=8, help="number of cameras (default: 8)")
    parser.add_argument("--seconds", type=float, help="how long they are watched (default: 60; 1.5 with --quick)")
    parser.add_argument("--fps", type=float, help="frames per second of each camera (default: 10; 40 with --quick)")
    options = parser.parse_args(argv)
    seconds = options.seconds or (1.5 if options.quick else 60.0)
    fps = options.fps or (40.0 if options.quick else 10.0)
    if options.cameras < 1 or seconds <= 0 or fps <= 0:
        raise UserError("--cameras, --seconds and --fps must be greater than 0")
    began = time.perf_counter()
    device, about = records.begin(options)
    detector = FullDetector(
        random_model("descriptor", device), DetectConfig(device=device.type, duration=seconds, retries=0), live=True
    )
    detector.filled = 4 if options.quick else detector.context
    with tempfile.TemporaryDirectory() as folder:
        video = options.video
        if video is None:
            video = Path(folder) / "clip.mp4"
            write_clip(video, frames=FRAMES)
        with served(video, fps) as port:
            found = measure(detector, port, options.cameras, fps, min(SETTLE, seconds / 4))
    targets = targets_of(found)
    more: dict[str, Any] = {"video": "made up" if options.video is None else options.video.name, "live": found}
    content = records.document(
        "live", about, quick=options.quick, seconds=time.perf_counter() - began, rows=[], targets=targets, **more
    )
    records.publish(content, options, [latency_table(found), summary(found)], targets)
    return 0


@contextlib.contextmanager
def served(video: Path, fps: float) -> Iterator[int]:
    """Serve cameras from a process of its own in the block; gives their port."""
    command = [sys.executable, "-m", "bench.end_to_end._cameras", str(video.resolve()), str(fps)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise UserError(f"the cameras of this benchmark did not start; can {video} be read?")
        yield int(line)
    finally:
        process.stdin.close()
        process.wait(10)


def measure(detector: FullDetector, port: int, cameras: int, fps: float, settle: float) -> dict[str, Any]:
    """Watch the cameras for the duration of the detector's settings; the record of what was found.

    Args:
        detector: The detector.
        port: Port of the cameras on this machine.
        cameras: Their number.
        fps: Frames per second of each.
        settle: Seconds without figures at the beginning of each camera.
    """
    watched = [Camera(str(n), f"http://127.0.0.1:{port}/{n}", str(n)) for n in range(cameras)]
    watch = Watch(detector, watched)
    channels = {channel.name: channel for channel in watch.channels}
    read: list[float] = []
    done: list[tuple[str, int, float]] = []  # camera, number of the segment and time, of cameras that lost nothing
    samples: list[tuple[float, float]] = []
    duration = detector.config.duration or 0.0
    began = used = 0.0
    begun: dict[str, float] = {}
    with contextlib.closing(iter(watch)) as scores:
        for scored in scores:
            now = time.monotonic()
            if not began:
                began, used = now, time.process_time()
            if not samples or now - began - samples[-1][0] >= duration / SAMPLES:
                samples.append((now - began, memory.resident("VmRSS") / 1e6))
            if scored.start < settle:
                continue
            read.append(scored.latency)
            if not channels[scored.camera].source.health.dropped:
                done.append((scored.camera, scored.number, now))
        running, used = time.monotonic() - began, time.process_time() - used
        begun = _begun(port)
    if not read:
        raise UserError("no segment was scored: raise --seconds or --fps, or watch fewer --cameras")
    due = [now - (begun[name] + (SEGMENT * (number + 1) - 1) / fps) for name, number, now in done if name in begun]
    segments = sum(channel.segments for channel in watch.channels)
    return {
        "encoder": "descriptor",
        "cameras": cameras,
        "fps": fps,
        "seconds": running,
        "settle_s": settle,
        "context": detector.filled,
        "segments": segments,
        "frames": sum(channel.source.health.frames for channel in watch.channels),
        "dropped": sum(channel.source.health.dropped for channel in watch.channels),
        "lost_connections": sum(channel.source.health.lost.total() for channel in watch.channels),
        "frames_per_s": segments * SEGMENT / running,
        "cpu_cores": used / running,
        "latency_ms": {"last frame read": quantiles(read), "last frame due": quantiles(due)},
        "memory_mb": [[round(at, 2), round(size, 2)] for at, size in samples],
        "growth_mb_per_minute": growth(samples),
        "encode_ms": 1e3 * sum(channel.timing.encode for channel in watch.channels) / segments,
        "score_ms": 1e3 * sum(channel.timing.score for channel in watch.channels) / segments,
    }


def _begun(port: int) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/begun")
    found: dict[str, float] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median, 95th percentile and longest, in milliseconds; None of nothing."""
    if not seconds:
        return None
    p50, p95, longest = (np.quantile(np.asarray(seconds), (0.5, 0.95, 1.0)) * 1e3).tolist()
    return {"p50": p50, "p95": p95, "max": longest, "count": len(seconds)}


def growth(samples: Sequence[tuple[float, float]]) -> float | None:
    """Slope of memory over the last two thirds of the time, in MB per minute; None of fewer than three samples."""
    late = [sample for sample in samples if sample[0] >= samples[-1][0] / 3]
    if len(late) < 3:
        return None
    times, sizes = np.asarray(late).T
    return float(60 * np.polyfit(times, sizes, 1)[0])


def targets_of(found: dict[str, Any]) -> list[Target]:
    """The project's figures for live input."""
    latency = found["latency_ms"]["last frame read"]
    whole = found["latency_ms"]["last frame due"]
    note = "" if whole is None else f"from when the frame was due: {significant(whole['p95'])}"
    cameras = found["cameras"]
    slope = found["growth_mb_per_minute"] if found["seconds"] >= 60 else None  # what is set up at first still counts
    return [
        Target(f"{cameras} cameras: latency of a segment, p95 [ms]", 1000, latency["p95"], at_most=True, note=note),
        Target(f"{cameras} cameras: frames that were not scored", 0, found["dropped"], at_most=True),
        Target("memory, last two thirds [MB per minute]", 0.5, slope, at_most=True),
    ]


def latency_table(found: dict[str, Any]) -> str:
    """One line per beginning of the latency."""
    lines = [
        (f"from {name}", *(f"{values[key]:.0f} ms" for key in ("p50", "p95", "max")), str(values["count"]))
        for name, values in found["latency_ms"].items()
        if values is not None
    ]
    return text_table(("latency to the score", "p50", "p95", "max", "segments"), lines)


def summary(found: dict[str, Any]) -> str:
    """What else was found, in words."""
    sizes = [size for _, size in found["memory_mb"]]
    slope = found["growth_mb_per_minute"]
    lines = [
        f"{found['cameras']} cameras at {found['fps']:g} frames/s for {found['seconds']:.0f} s:"
        f" {found['frames']} frames read, {found['dropped']} dropped, {found['lost_connections']} connections lost",
        f"{found['frames_per_s']:.1f} frames/s scored, {found['cpu_cores']:.2f} CPU cores used; per segment"
        f" {found['encode_ms']:.0f} ms to encode, {found['score_ms']:.0f} ms to score",
        f"resident memory: {sizes[0]:.0f} MB at the start, {sizes[-1]:.0f} MB at the end, {max(sizes):.0f} MB at most"
        + ("" if slope is None else f"; {slope:+.2f} MB per minute over the last two thirds"),
    ]
    return "\n".join(lines)
