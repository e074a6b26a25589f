"""Progress: a bar in a terminal, whole lines elsewhere, and few of them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from iefvad.cli.main import main
from iefvad.utils import progress
from iefvad.utils.progress import Progress
from tests.helpers.detecting import small_model, write_video
from tests.helpers.stores import training_flags, write_store


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_there_is_a_line_per_tenth_and_none_in_the_first_seconds(clock, capsys):
    with Progress(200, "work", "step") as bar:
        bar.tell(loss=0.5)
        for _ in range(200):
            clock[0] += 1.0
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "work: 20 of 200 steps, loss 0.500, 1 steps/s, about 3 min 0 s left"
    assert len(lines) == 10 and lines[-1] == "work: 200 of 200 steps, loss 0.500, 1 steps/s"


def test_slow_work_has_a_line_per_minute_and_quick_work_has_none(clock, capsys):
    with Progress(1000, "slow", "step") as bar:
        for _ in range(30):
            clock[0] += 10.0
            bar.update()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["6", "12", "18", "24", "30"]
    with Progress(100, "quick", "step") as bar:
        for _ in range(100):
            clock[0] += 0.05
            bar.update()
    assert capsys.readouterr().err == ""


def test_an_unknown_total_and_work_that_is_continued(clock, capsys):
    with Progress(None, "stream", "frame") as bar:
        clock[0] += 61
        bar.update(610)
    with Progress(100, "again", "step", initial=50) as bar:
        clock[0] += 10
        bar.update(10)
    with Progress(100, "hidden", "step", shown=False) as bar:
        clock[0] += 100
        bar.update(100)
        bar.line()
    assert capsys.readouterr().err.splitlines() == [
        "stream: 610 frames, 10 frames/s",
        "again: 60 of 100 steps, 1 steps/s, about 40 s left",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("progress")
    write_store(root / "store", train=8, test=4)
    write_video(root / "a.mp4", frames=48)
    small_model().save_pretrained(root / "model")
    return root


def test_in_a_pipe_training_writes_one_line_per_epoch(folder, tmp_path, capfd):
    flags = training_flags(folder / "store", tmp_path / "run", "--epochs", "3", "--compare", "false")
    assert main(["train", *flags, "--modality", "fusion", "--refit", "false"]) == 0
    told = capfd.readouterr().err
    assert "\r" not in told and "\x1b" not in told
    lines = told.splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert re.match(rf"train fusion \(seed 0\), epoch {number} of 3: \d+ of \d+ steps, loss \d\.\d+", line), line
    assert lines[-1].endswith("steps/s") and "left" in lines[0]
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main(["extract", str(folder / "a.mp4"), "--out", str(tmp_path / "store")]) == 0
    assert main(["detect", str(folder / "model"), str(folder / "a.mp4"), "--out", str(tmp_path / "out")]) == 0
    told = capfd.readouterr().err
    assert "\r" not in told and len(told.splitlines()) <= 1  # that of the extraction's end


_PROGRAM = """
import sys
import iefvad.utils.progress as progress
from iefvad.cli.main import main
progress._DELAY = 0
for line in sys.argv[1:]:
    assert main(line.split()) == 0
"""


def test_in_a_terminal_there_are_bars_with_rate_and_remaining_time(folder, tmp_path):
    flags = training_flags(folder / "store", tmp_path / "run", "--epochs", "3", "--compare", "false")
    lines = [
        " ".join(["train", *flags, "--modality", "fusion", "--refit", "false"]),
        f"evaluate {tmp_path / 'run'} --draws 1 --ratios 0.5",
        f"detect {folder / 'model'} {folder / 'a.mp4'} --out {tmp_path / 'out'}",
    ]
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [sys.executable, "-c", _PROGRAM, *lines]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        try:
            while data := os.read(main_end, 1 << 16):
                shown += data
        except OSError:  # how Linux tells that the other end is closed
            pass
        assert process.wait(60) == 0, shown.decode()
    os.close(main_end)
    bars = shown.decode().split("\r")
    last = [bar for bar in bars if bar.startswith("train fusion (seed 0), epoch 3 of 3")]
    assert last and re.search(r"100%.*\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, .*steps/s.*loss 0\.\d+", last[-1])
    assert any(re.match(r"test fusion \(seed 0\): +\d+%.*/4 \[", bar) for bar in bars)
    assert any(re.match(r"robustness: +\d+%", bar) for bar in bars)
    assert any(re.match(r"a\.mp4: 100%.*48/48 \[.*frames/s", bar) for bar in bars)
