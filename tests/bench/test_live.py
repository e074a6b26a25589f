"""The benchmark of several cameras: its figures are right, and it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import commands, main
from bench.end_to_end import live

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_", "KMP_"))}


def test_growth_is_that_of_the_last_two_thirds() -> None:
    start = [(float(second), 500.0 + 10 * second) for second in range(20)]
    level = [(float(second), 700.0 + 0.02 * second) for second in range(20, 61)]
    assert live.growth(start + level) == pytest.approx(1.2)
    assert live.growth(level[:2]) is None


def test_targets() -> None:
    latency = {"last frame read": live.quantiles([0.1, 0.2, 1.5]), "last frame due": None}
    found = {"latency_ms": latency, "cameras": 3, "dropped": 16, "growth_mb_per_minute": 0.1, "seconds": 600.0}
    assert latency["last frame read"]["max"] == 1500.0
    assert [target.met for target in live.targets_of(found)] == [False, False, True]
    assert live.targets_of(found | {"seconds": 10.0})[2].met is None, "too short to tell"


def test_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "live" in commands()
    assert main(["live", "--quick", "--cameras", "2", "--out", str(tmp_path)]) == 0
    [path] = tmp_path.glob("*_live_quick.json")
    found = json.loads(path.read_text())["live"]
    assert found["cameras"] == 2 and found["fps"] == 40.0 and found["lost_connections"] == 0
    assert found["segments"] >= 2 and found["frames"] >= 16 * found["segments"]
    read, due = found["latency_ms"]["last frame read"], found["latency_ms"]["last frame due"]
    assert 0 < read["p50"] <= read["p95"] <= read["max"]
    if due is not None and due["count"] == read["count"]:
        assert due["p50"] > read["p50"] - 5, "the frame was due before it was read"
    assert all(size > 50 for _, size in found["memory_mb"]) and found["encode_ms"] > 0 < found["score_ms"]
    assert "MB at most" in capsys.readouterr().out


def test_wrong_options_and_cameras_that_do_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", "--cameras", "0"]) == 2
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(live.UserError, match="did not start"), live.served(tmp_path / "no.mp4", 10.0):
        pass
    assert "must be greater than 0" in capsys.readouterr().err


def test_threads_wait_as_in_the_command() -> None:
    """OpenMP reads its variables when torch is loaded, so they must be set at the first import of torch."""
    code = """
import importlib.abc, os, sys

class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            os._exit(0 if sys.stdout.flush() is None else 1)

sys.meta_path.insert(0, Stop())
import bench.__main__
bench.__main__.main(["live", "--quick"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.strip() == "1500"
