"""`detect`, `calibrate` and `features import` killed at random moments and started again: the same bytes in the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.detecting import small_model, write_video
from tests.helpers.server import Server
from tests.helpers.stores import write_store

COMMANDS = {
    "detect": ["detect", "IN/model", "IN/a.mp4", "IN/b.mp4", "IN/c.mp4", "--device", "cpu"],
    "calibrate": ["calibrate", "IN/model", "IN/a.mp4", "IN/b.mp4", "IN/c.mp4", "--device", "cpu"],
    "import": ["features", "import", "IN/store"],
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("command_server.py", {"OMP_NUM_THREADS": "1"})
    yield server
    server.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    small_model().save_pretrained(folder / "model")
    for number, name in enumerate("abc"):
        write_video(folder / f"{name}.mp4", frames=48, seed=number, burst=range(1, 2))
    write_store(folder / "store", train=200, test=40)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files. Of a detection's JSON file, what is not measured in seconds of this run."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in list(found):
        if name.endswith(".json") and b'"timing"' in found[name]:
            document = json.loads(found[name])
            del document["timing"]
            found[name] = json.dumps(document).encode()
        if name.endswith(".html"):
            found[name] = found[name][-8:]  # it is complete; its notes may have times
    return found


def kill_and_compare(server: Server, command: str, inputs: Path, out: Path, kills: int) -> int:
    """Kill a command at random moments of the time it needs, and start it again in the same folder.

    Returns:
        The number of kills after which something was in the folder.
    """
    line = [word.replace("IN", str(inputs)) for word in COMMANDS[command]]
    begin = time.perf_counter()
    server.start([*line, "--out", str(out / "whole")])
    assert server.wait() == 0
    needed, expected = time.perf_counter() - begin, contents(out / "whole")
    seeded = random.Random(kills)
    killed = rounds = kept = 0
    while killed < kills:
        rounds += 1
        folder, status = out / str(rounds), -signal.SIGKILL
        while status == -signal.SIGKILL:
            child = server.start([*line, "--out", str(folder)])
            if killed < kills:
                wait_for_a_moment(seeded, folder, needed)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
            status = server.wait()
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            kept += status == -signal.SIGKILL and folder.is_dir() and any(folder.iterdir())
        assert contents(folder) == expected
    return kept


def _files_in(folder: Path) -> int:
    """Return the number of files. The folder comes, and goes again, while it is tried."""
    try:
        return len(os.listdir(folder))
    except FileNotFoundError:
        return 0


def wait_for_a_moment(seeded: random.Random, folder: Path, needed: float) -> None:
    """Wait for a random part of the time, or for a moment during the writing."""
    until = time.perf_counter() + seeded.uniform(0, 1.0) * needed
    if seeded.random() < 0.5:
        until += needed
        files = seeded.randint(1, 8)
        while time.perf_counter() < until and _files_in(folder) < files:
            time.sleep(0.0005)
        until = time.perf_counter() + seeded.uniform(0, 0.02)
    time.sleep(max(0.0, until - time.perf_counter()))


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_three_times(server: Server, inputs: Path, tmp_path: Path, command: str) -> None:
    kill_and_compare(server, command, inputs, tmp_path, 3)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_twenty_times(server: Server, inputs: Path, tmp_path: Path, command: str) -> None:
    kept = kill_and_compare(server, command, inputs, tmp_path, 20)
    assert kept or command == "calibrate"  # some kills came between two files; a calibration is only one
