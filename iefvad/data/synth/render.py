"""One video of the benchmark: its plan, its frames, and its compressed file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from iefvad.data.synth.actors import Bird, Chatters, Cyclist, Person, Traffic, Vehicle
from iefvad.data.synth.anomalies import CLASSES, Actor, Anomaly
from iefvad.data.synth.scene import HEIGHT, LAYOUTS, WIDTH, Camera, Scene, build_scene
from iefvad.utils.files import replacing

NORMAL = "Normal"


@dataclass(frozen=True)
class VideoPlan:
    """Plan of one video.

    Attributes:
        name: Name of the file without suffix.
        label: Class, or `NORMAL`.
        seed: Seed of the video, several integers.
        frames: Number of frames.
        fps: Nominal frames per second.
        intervals: Abnormal intervals [start, end) in frames.
    """

    name: str
    label: str
    seed: tuple[int, ...]
    frames: int
    fps: int
    intervals: tuple[tuple[int, int], ...]


def plan_video(name: str, label: str, seed: tuple[int, ...], segments: tuple[int, int]) -> VideoPlan:
    """Draw the length and the abnormal intervals of a video.

    Args:
        name: Name of the video.
        label: Class, or `NORMAL`.
        seed: Seed of the video.
        segments: Minimum and maximum number of segments of 16 frames. Up to 15 frames are added.
    """
    rng = np.random.default_rng([*seed, 0])
    frames = 16 * int(rng.integers(segments[0], segments[1] + 1)) + int(rng.integers(0, 16))
    fps = int(rng.choice([25, 30]))
    if label == NORMAL:
        return VideoPlan(name, label, seed, frames, fps, ())
    covered = int(frames * rng.uniform(*CLASSES[label].coverage))
    intervals: tuple[tuple[int, int], ...]
    if CLASSES[label].lasting:
        intervals = ((frames - covered, frames),)
    elif covered >= 80 and rng.random() < 0.4:  # two bouts of at least 40 frames
        first = covered // 2
        gap = int(rng.integers(40, max(41, (frames - covered) // 2)))
        start = int(rng.integers(8, max(9, frames - covered - gap)))
        second = start + first + gap
        intervals = ((start, start + first), (second, min(second + covered - first, frames)))
    else:
        start = int(rng.integers(min(24, frames - covered), frames - covered + 1))
        if frames - covered - start < 24:  # no short rest after it: it lasts to the end instead
            start = frames - covered
        intervals = ((start, start + covered),)
    return VideoPlan(name, label, seed, frames, fps, intervals)


def _populate(scene: Scene, rng: np.random.Generator) -> list[Actor]:
    """Everyday life: walkers, and what looks similar to an anomaly (cyclists, chats, birds, traffic, parked cars)."""
    actors: list[Actor] = [Person(rng, scene) for _ in range(int(rng.integers(1, 5)))]
    if scene.layout != "corridor" and rng.random() < 0.1:
        actors.append(Cyclist(rng, scene))
    if rng.random() < 0.25:
        actors.append(Chatters(rng, scene))
    if scene.layout != "corridor" and rng.random() < 0.06:
        actors.append(Bird(rng))
    for lane in range(len(scene.lanes)):
        actors += [Traffic(rng, scene, lane) for _ in range(int(rng.integers(0, 3)))]
    if scene.layout == "yard" and rng.random() < 0.12:
        y = scene.walkways[0][0] - 8.0  # beside the path
        actors.append(Vehicle(rng, scene, x=float(rng.uniform(20, WIDTH - 20)), y=y))
    return actors


def render(plan: VideoPlan, *, anomaly: bool = True) -> Iterator[np.ndarray]:
    """Render the frames of a plan. The same plan gives the same frames.

    Args:
        plan: The plan.
        anomaly: False leaves out the anomaly and its people. Everything else stays the same.

    Yields:
        Frames, uint8 (HEIGHT, WIDTH, 3) RGB.
    """
    rng, noise, own = (np.random.default_rng([*plan.seed, stream]) for stream in (1, 2, 3))
    layouts = LAYOUTS if plan.label == NORMAL else CLASSES[plan.label].layouts
    layout = layouts[int(rng.integers(len(layouts)))]
    # One camera per layout: all its videos in a set have the same view, in training and in testing.
    scene = build_scene(np.random.default_rng([plan.seed[0], LAYOUTS.index(layout)]), layout)
    camera = Camera(scene, noise, plan.frames)
    actors = _populate(scene, rng)
    incident: Anomaly | None = None
    if plan.label != NORMAL and anomaly:
        incident = CLASSES[plan.label](own, scene, plan.frames, plan.intervals)
        actors += incident.actors
    for t in range(plan.frames):
        canvas = camera.canvas(t)
        for actor in actors:
            actor.step(t)
        if incident is not None:
            incident.step(t)
        for actor in sorted(actors, key=lambda a: a.y):
            actor.draw(canvas)
        if incident is not None:
            incident.over(canvas, t)
        yield camera.expose(canvas, t)


def write_video(plan: VideoPlan, path: str | Path) -> str:
    """Render a plan to an H.264 MP4 file, completely or not at all.

    The encoder has one thread, and the container has no time stamp of its creation. So the same plan gives the same
    bytes with the same libraries.

    Args:
        plan: The plan.
        path: The file.

    Returns:
        SHA-256 of the file, in hexadecimal digits.
    """
    with replacing(Path(path)) as temporary:
        with av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            options = {"preset": "ultrafast", "crf": "23", "threads": "1"}
            stream = container.add_stream("libx264", rate=plan.fps, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for image in render(plan):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        return hashlib.sha256(temporary.read_bytes()).hexdigest()
