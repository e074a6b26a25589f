"""Standard streams that are closed, full or not read do not end a command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iefvad.cli.command import guarded
from iefvad.utils.streams import ForgivingStream


def test_what_nobody_takes_is_dropped():
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        stream = ForgivingStream(pipe)
        stream.write("first")
        stream.flush()
        assert isinstance(stream.error, BrokenPipeError) and stream.lost is None
        stream.write("second")
        stream.flush()  # goes to nothing by now


@pytest.mark.parametrize(("number", "status"), [(0, 1), (3, 3)])
def test_a_full_output_is_said_at_the_end(monkeypatch, number, status):
    errors = io.StringIO()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", errors)

        def work() -> int:
            print("text", flush=True)
            print("more")
            return number

        assert guarded("iefvad x", work) == status
        assert sys.stdout is full
    assert "standard output cannot be written (No space left on device)" in errors.getvalue()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, closed):
    code = (
        "import sys; from iefvad.utils.streams import open_standard_streams; open_standard_streams()\n"
        "file = open(sys.argv[1], 'w'); assert file.fileno() > 2\n"
        "print('printed'); print('printed', file=sys.stderr); sys.stdout.flush(); assert sys.stdin is not None\n"
        "file.write('result')"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    result = tmp_path / "result"
    root = Path(__file__).parents[2]
    line = f"exec {sys.executable} {script} {result} {closed}"
    done = subprocess.run(["sh", "-c", line], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True)
    assert done.returncode == 0 and result.read_text() == "result"


def test_a_reader_that_has_enough_ends_nothing(monkeypatch, tmp_path):
    reading, writing = os.pipe()
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)

        def work() -> int:
            os.close(reading)
            for _ in range(10_000):
                print("a line of text")
            (tmp_path / "result").touch()
            return 0

        assert guarded("iefvad x", work) == 0
    assert (tmp_path / "result").exists()


def test_no_file_takes_the_place_of_a_closed_stream_before_a_command_starts():
    code = "import iefvad.cli; assert open('/dev/null').fileno() > 2"
    root = Path(__file__).parents[2]
    line = f'exec {sys.executable} -c "{code}" >&- 2>&-'
    assert subprocess.run(["sh", "-c", line], env={**os.environ, "PYTHONPATH": str(root)}).returncode == 0
