"""`iefvad extract` killed at random moments and started again: nothing is lost, done twice or different."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iefvad.features.store import FeatureStore
from tests.helpers.server import Server
from tests.helpers.video_files import content, make_video, small_vit

KILLS = 20
VIDEOS = 8


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("extract_server.py")
    yield server
    server.close()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for index in range(VIDEOS):
        make_video(folder / f"sub{index % 2}" / f"v{index}.mp4", 16 + 16 * (index % 3), seed=index)
    (folder / "bad.mp4").write_text("not a video")
    return folder


def versions(root: Path) -> dict[str, tuple[int, int]]:
    """{name: (time, inode)} of the stored videos."""
    if not (root / "store.json").exists():
        return {}
    store = FeatureStore(root)
    stats = {name: (root / f"{name}.safetensors").stat() for name in store.names()}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def wait_for_a_moment(seeded: random.Random, store: Path, needed: float) -> None:
    """Wait for a random part of the whole time, or, because most of it is start-up, for a moment during the writing."""
    if seeded.random() < 0.4:
        time.sleep(seeded.uniform(0, needed))
        return
    files = len(list(store.rglob("*"))) + seeded.randint(1, 6)
    end = time.perf_counter() + 1.2 * needed
    while len(list(store.rglob("*"))) < files and time.perf_counter() < end:
        time.sleep(0.002)
    time.sleep(seeded.uniform(0, 0.02))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["descriptor", "small"])
def test_killed_twenty_times(server: Server, videos: Path, tmp_path: Path, model: str) -> None:
    if model == "small":
        model = small_vit(tmp_path / "model")
    options = [str(videos), "--image-model", model, "--device", "cpu", "--quiet", "--workers", "2", "--out"]
    begin = time.perf_counter()
    server.start([*options, str(tmp_path / "whole")])
    assert server.wait() == 1  # the bad video
    needed = time.perf_counter() - begin
    whole = content(tmp_path / "whole")
    seeded = random.Random(20)
    killed, rounds, kept = 0, 0, 0
    while killed < KILLS // 2:  # ten per model
        rounds += 1
        store = tmp_path / f"store{rounds}"
        status = None
        while status is None:
            finished = versions(store)
            child = server.start([*options, str(store)])
            if killed < KILLS // 2:
                wait_for_a_moment(seeded, store, needed)
                os.kill(child, signal.SIGKILL)
            status = server.wait()
            assert status in (1, -signal.SIGKILL)
            if status == -signal.SIGKILL:
                killed, status = killed + 1, None
            now = versions(store)
            assert finished.items() <= now.items()  # what was finished was neither lost nor made again
            kept += len(finished) > 0
        assert content(store) == whole
    assert kept  # some kills came between two videos
