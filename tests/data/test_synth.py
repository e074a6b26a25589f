"""The embedded benchmark: it is reproducible and resumable, and each stream sees what the labels promise."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from iefvad.data.synth.anomalies import APPEARANCE, CLASSES, MOTION
from iefvad.data.synth.dataset import SynthSpec, generate, plan, settings_of
from iefvad.data.synth.render import NORMAL, VideoPlan, plan_video, render, write_video
from iefvad.data.synth.scene import HEIGHT, LAYOUTS, WIDTH, build_scene
from iefvad.utils.errors import UserError

SMALL = {"train": (1, 0), "test": (1, 1), "workers": 1, "progress": False}  # 10 videos


def short(label: str, seed: int = 3, segments: int = 6) -> VideoPlan:
    return plan_video(
        f"{label}_x", label, (seed, 9, list(CLASSES).index(label) if label in CLASSES else 8), (segments,) * 2
    )


def contents(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def event_density(video: VideoPlan, *, anomaly: bool) -> np.ndarray:
    """Fraction of pixels per frame whose luma changes by more than 10 levels. The first frame has none."""
    luma = np.stack(list(render(video, anomaly=anomaly))) @ np.array([2989, 5870, 1140], np.int32)
    moved = (np.abs(np.diff(luma, axis=0)) > 100_000).mean((1, 2))
    return np.concatenate([[0.0], moved])


def inside(video: VideoPlan) -> np.ndarray:
    truth = np.zeros(video.frames, bool)
    for start, end in video.intervals:
        truth[start:end] = True
    return truth


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SynthSpec:
    return generate(tmp_path_factory.mktemp("synth"), seed=5, **SMALL)


def test_one_plan_gives_one_file(tmp_path: Path) -> None:
    video = short("Explosion")
    first = write_video(video, tmp_path / "a.mp4")
    assert write_video(video, tmp_path / "b.mp4") == first
    assert first == hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]  # no temporary file is left


def test_seeds_differ() -> None:
    one, other = plan(0)[0], plan(1)[0]
    assert [v.label for v in one] == [v.label for v in other]
    assert sum(a.frames == b.frames for a, b in zip(one, other, strict=True)) < len(one) / 2
    frames = [next(iter(render(dataclasses.replace(short("Smoke"), seed=(s, 0, 0))))) for s in (0, 1)]
    assert not np.array_equal(*frames)


def test_a_larger_set_contains_the_smaller() -> None:
    few, many = plan(0, train=(2, 1))[0], plan(0, train=(4, 2))[0]
    for video in few:
        assert (video.seed, video.frames, video.intervals) in [(v.seed, v.frames, v.intervals) for v in many]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plans_are_valid(seed: int) -> None:
    train, test = plan(seed)
    names = [v.name for v in (*train, *test)]
    assert len(set(names)) == len(names)
    assert len({v.seed for v in (*train, *test)}) == len(names)
    for videos in (train, test):
        count = Counter(v.label for v in videos)
        assert set(count) == {NORMAL, *CLASSES}
        assert len({count[c] for c in CLASSES}) == 1
    assert Counter(v.label for v in train)[NORMAL] == len(train) // 2
    for video in (*train, *test):
        assert video.fps in (25, 30)
        assert video.frames >= 128
        if video.label == NORMAL:
            assert video.intervals == ()
            continue
        assert 1 <= len(video.intervals) <= 2
        edges = [frame for interval in video.intervals for frame in interval]
        assert edges == sorted(edges)
        assert edges[0] >= 0
        assert edges[-1] <= video.frames
        assert all(end - start >= 16 for start, end in video.intervals)
        # A small part, so that the everyday scene is what the video mostly shows.
        assert 0.08 < inside(video).mean() < 0.35


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scenes(layout: str) -> None:
    for seed in range(4):
        scene = build_scene(np.random.default_rng(seed), layout)
        assert scene.layout == layout
        assert scene.background.shape == (HEIGHT, WIDTH, 3)
        assert scene.background.std() > 10  # textured
        for top, bottom in scene.walkways:
            assert scene.horizon < top < bottom < HEIGHT
            assert scene.person_height(top) < scene.person_height(bottom)


@pytest.mark.parametrize("label", [NORMAL, *CLASSES])
def test_frames(label: str) -> None:
    """Shapes and brightness are right, and appearance-only anomalies are visible in the frames that truth marks."""
    video = short(label)
    frames = np.stack(list(render(video)))
    assert frames.shape == (video.frames, HEIGHT, WIDTH, 3)
    assert frames.dtype == np.uint8
    assert 20 < frames.mean() < 230
    if label in APPEARANCE:
        truth = inside(video)
        everyday = np.median(frames[~truth][::3], axis=0)
        late = np.median(frames[truth][len(frames[truth]) // 3 :: 3], axis=0)
        changed = (np.abs(late - everyday).max(-1) > 15).mean()
        assert changed > 0.003, "what stands or hangs there must be seen in a still picture"


def test_files_lists_and_annotations(small: SynthSpec) -> None:
    for listed, videos in ((small.train_list, small.train), (small.test_list, small.test)):
        with listed.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(r["path"], r["label"]) for r in rows] == [(f"videos/{v.name}.mp4", v.label) for v in videos]
        assert all((small.root / r["path"]).is_file() for r in rows)
    lines = small.annotations.read_text().splitlines()
    assert len(lines) == len(small.test)
    for line, video in zip(lines, small.test, strict=True):
        name, label, *numbers = line.split("  ")
        assert (name, label, len(numbers)) == (f"{video.name}.mp4", video.label, 4)
        starts, ends = map(int, numbers[::2]), map(int, numbers[1::2])
        assert tuple((s, e) for s, e in zip(starts, ends, strict=True) if s >= 0) == video.intervals
    for video in (*small.train, *small.test)[:3]:
        with av.open(str(small.videos / f"{video.name}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("h264", WIDTH, HEIGHT)
            assert stream.average_rate == video.fps
            assert sum(1 for _ in container.decode(video=0)) == video.frames


def test_complete_set_is_reused(small: SynthSpec) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in small.root.rglob("*")}
    again = generate(small.root, seed=5, **SMALL)
    assert again.rendered == 0
    assert again.train == small.train
    assert {p: p.stat().st_mtime_ns for p in small.root.rglob("*")} == stamps


def test_lost_and_damaged_files_come_back(small: SynthSpec) -> None:
    before = contents(small.root)
    lost, damaged = (small.videos / f"{v.name}.mp4" for v in small.test[:2])
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert generate(small.root, seed=5, **SMALL).rendered == 2
    assert contents(small.root) == before


def test_interrupted_set_is_resumed(small: SynthSpec) -> None:
    before = contents(small.root)
    marker = small.root / "synth.json"
    marker.write_text(json.dumps({"settings": small.settings, "complete": False, "videos": {}}))
    for video in small.test[2:5]:
        (small.videos / f"{video.name}.mp4").unlink()
    small.annotations.unlink()
    assert generate(small.root, seed=5, **SMALL).rendered == 3
    assert contents(small.root) == before


def test_workers_render_the_same_bytes(small: SynthSpec, tmp_path: Path) -> None:
    """Two processes give the same bytes, and a truncated marker counts as missing."""
    (tmp_path / "synth.json").write_text('{"settings": {"ver')
    arguments = SMALL | {"train": (3, 0), "test": (0, 0), "workers": 2}
    spec = generate(tmp_path, seed=5, **arguments)
    assert spec.rendered == 3
    name = small.train[0].name
    assert contents(spec.videos)[f"{name}.mp4"] == contents(small.videos)[f"{name}.mp4"]


def test_other_settings_are_refused(small: SynthSpec) -> None:
    with pytest.raises(UserError, match="another seed"):
        generate(small.root, seed=6, **SMALL)
    assert settings_of(5)["hash"] != settings_of(6)["hash"]


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        generate(tmp_path / "file" / "set", **SMALL)
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(UserError, match="cannot be written"):
            generate(tmp_path / "locked", **SMALL)


def test_negative_seed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed"):
        generate(tmp_path, seed=-1, **SMALL)


@pytest.mark.parametrize("label", list(CLASSES))
def test_events_see_motion_and_not_appearance(label: str) -> None:
    """Number of events that the anomaly adds to the same scene, summed over three videos."""
    added_inside, added_outside, everyday = 0.0, 0.0, 0.0
    for seed in range(3):
        # Long enough that the vehicle stands for a while after it has rolled in.
        video = short(label, seed=20 + seed, segments=14 if label == "VehicleOnWalkway" else 6)
        truth = inside(video)
        if label == "VehicleOnWalkway":  # arriving, it moves like any car; what counts is that it stands there
            truth[video.intervals[0][0] : video.intervals[0][0] + 30] = False
        without = event_density(video, anomaly=False)
        added = event_density(video, anomaly=True) - without
        added_inside += added[truth].mean()
        added_outside += added[: video.intervals[0][0]].mean()
        everyday += without.mean()
    if label in APPEARANCE:
        # Nothing beyond a tenth of the scene's own motion; smoke even hides some of that.
        assert added_inside - max(added_outside, 0.0) < 0.1 * everyday
    else:
        assert added_inside > 1.4 * max(added_outside, 0.0)
        assert added_inside > 0.15 * everyday
    assert label in (*MOTION, *APPEARANCE, "Explosion")
