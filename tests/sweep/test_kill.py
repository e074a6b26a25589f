"""`iefvad sweep` killed at random moments, all its processes at once, and started again: the same bytes in the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.server import Server
from tests.helpers.stores import training_flags, write_store


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("sweep_server.py", {"OMP_NUM_THREADS": "1"})
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, bytes], float]:
    """A command line without folder, the files of a sweep that nobody killed, and its duration in seconds."""
    folder = tmp_path_factory.mktemp("whole")
    store = write_store(folder / "store", train=16)
    line = training_flags(store, folder / "out", "--epochs", "2", "--vary", "nu=2,8", "--seeds", "0-2", "--jobs", "2")
    line.insert(0, "--refit=true")
    begin = time.perf_counter()
    server.start(line)
    assert server.wait() == 0
    return line, contents(folder / "out"), time.perf_counter() - begin


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that are no results: the log, and the lock with the number of the process."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("log.jsonl", "lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kill_and_compare(server: Server, whole: tuple[list[str], dict[str, bytes], float], out: Path, kills: int) -> int:
    """Kill sweeps at random moments of the time they need, in new folders when one is finished; return the number of
    kills after which documents were there."""
    line, expected, needed = whole
    seeded = random.Random(kills)
    killed = rounds = kept = 0
    while killed < kills:
        rounds += 1
        folder, status = out / f"{rounds}", -signal.SIGKILL
        while status == -signal.SIGKILL:
            documents = {path: path.stat().st_mtime_ns for path in (folder / "trainings").glob("*.json")}
            child = server.start([*line, "--out", str(folder)])
            if killed < kills:
                time.sleep(seeded.uniform(0, 0.9 * needed))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, signal.SIGKILL)
            status = server.wait()
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
            kept += status == -signal.SIGKILL and bool(documents)
            # What was finished was not made again.
            assert documents.items() <= {path: path.stat().st_mtime_ns for path in documents}.items()
        assert contents(folder) == expected
    return kept


def test_ctrl_c_ends_all_processes_and_keeps_what_is_complete(server, whole, tmp_path):
    line, expected, needed = whole
    for attempt in range(20):
        out = tmp_path / f"out{attempt}"
        child = server.start([*line, "--out", str(out)])
        until = time.monotonic() + 20 + 10 * needed
        while not list((out / "trainings").glob("*.json")) and time.monotonic() < until:
            time.sleep(0.001)
        os.killpg(child, signal.SIGSTOP)  # so that it is not finished before the signal comes
        unfinished = len(list((out / "trainings").glob("*.json"))) < 5  # of 6
        os.killpg(child, signal.SIGINT)
        os.killpg(child, signal.SIGCONT)
        status = server.wait()
        if unfinished:
            break
    assert unfinished and status == 130
    assert list((out / "trainings").glob("*.json")) and not (out / "results.csv").exists()
    server.start([*line, "--out", str(out)])  # at once: no process of the first one holds the folder
    assert server.wait() == 0
    assert contents(out) == expected


def test_killed_three_times(server, whole, tmp_path):
    kill_and_compare(server, whole, tmp_path, 3)


@pytest.mark.long
@pytest.mark.slow
def test_killed_twenty_times(server, whole, tmp_path):
    assert kill_and_compare(server, whole, tmp_path, 20)  # some kills came between two trainings
