"""A few cases of every group, and the harness itself. `python -m tests.fuzz --minutes N` runs more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.__main__ import BEGIN, END, main
from tests.fuzz.case import Case, Ended, Limits, Outcome, judged
from tests.fuzz.runner import GROUPS, Bench, run_in_child

CASES = 12

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")


@pytest.mark.parametrize("group", GROUPS)
def test_no_case_of_a_group_is_a_fault(group: str) -> None:
    with Bench(group) as bench:
        unchanged = bench.unchanged()
        tried = [bench.run(number) for number in range(CASES)]
    # A group whose valid input is refused tries nothing.
    assert unchanged and all(one.ended.status == 0 for one in unchanged)
    assert [f"{one.outcome}: {one.name}\n{one.ended.err}" for one in unchanged if one.outcome != "fine"] == []
    assert [f"{one.outcome}: {group}:{one.number} {one.name}\n{one.ended.err}" for one in tried if one.fault] == []


def _raises() -> int:
    raise ValueError("here")


def _says(text: str, status: int) -> Callable[[], int]:
    def act() -> int:
        print(text, file=sys.stderr)
        return status

    return act


def _leaves() -> int:
    raise SystemExit("a message of a library")


def _waits() -> int:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)
    return 0


def _dies() -> int:
    os.kill(os.getpid(), signal.SIGKILL)  # faulthandler would report others
    return 0


def _takes_memory() -> int:
    bytearray(2 << 30)
    return 0


def _writes_much() -> int:
    print("x" * (5 << 20) + "the end")
    Path("file").write_bytes(bytes(2000))
    return 0


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        (lambda: 0, "fine"),
        (_says("error: no such file", 2), "refused"),
        (_says("", 2), "silent"),
        (_leaves, "silent"),
        (_raises, "traceback"),
        (_waits, "hang"),
        (_dies, "crash"),
        (_takes_memory, "traceback"),
        (_writes_much, "traceback"),
    ],
)
def test_every_outcome_is_told(act: Callable[[], int], outcome: Outcome, tmp_path: Path) -> None:
    limits = Limits(seconds=1.0, memory=1 << 30, file_bytes=1000)
    begun = time.monotonic()
    ended = run_in_child(Case("", lambda folder: None, act, limits=limits), tmp_path)
    assert judged(tmp_path, ended) == outcome, ended
    assert time.monotonic() - begun < 20
    assert ended.peak > 1 << 20


def test_streams_are_read_to_their_end_and_only_their_last_part_is_kept(tmp_path: Path) -> None:
    ended = run_in_child(Case("", lambda folder: None, _writes_much), tmp_path)
    assert ended.status == 0
    assert ended.out.endswith("xthe end\n")
    assert 1 << 20 <= len(ended.out) <= 2 << 20
    assert (tmp_path / "file").stat().st_size == 2000


def test_the_table_takes_its_place_in_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, log = tmp_path / "page.md", tmp_path / "log"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["--group", "words", "--cases", "3", "--json", str(log)]
    assert main([*arguments, "--markdown", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert (lines[:2], lines[-2:]) == (["before", BEGIN], [END, "after"])
    assert "old" not in lines
    assert any(line.startswith("| words | 3 |") for line in lines)
    assert len(log.read_text().splitlines()) == 3
    assert "| words | 3 |" in capsys.readouterr().out
    assert main(["--case", "words:2"]) == 0
    assert "refused (" in capsys.readouterr().out
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(SystemExit, match="must have the line"):
        main([*arguments, "--markdown", str(tmp_path / "other.md")])


def test_an_error_of_a_group_is_a_fault_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fuzz.groups import words

    def judge(folder: Path, ended: Ended) -> Outcome:
        raise KeyError("in the judge")

    monkeypatch.setattr(words, "case", lambda *_: Case("broken", lambda folder: None, lambda: 0, judge))
    with Bench("words") as bench:
        one = bench.run(0)
    assert one.outcome == "traceback"
    assert "in the judge" in one.ended.err
