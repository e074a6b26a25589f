"""Pieces of text that messages, tables and pages share."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest
from tqdm import tqdm

from iefvad.utils.terminal import visible_output
from iefvad.utils.text import clock, duration, few, readable, utf8, visible


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [
        (0, 0, "0:00:00"),
        (59.96, 1, "0:01:00.0"),
        (3661.25, 2, "1:01:01.25"),
        (90000, 0, "25:00:00"),
        (-1, 0, "0:00:00"),
    ],
)
def test_clock(seconds, decimals, text):
    assert clock(seconds, decimals) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (625, "10 min 25 s"), (12780, "3 h 33 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_few_names():
    assert few([]) == "" and few("abc") == "a, b, c"
    assert few("abcde") == "a, b, c and 2 more" and few("abcde", 0) == "a, b, c, d, e"


HOSTILE = {
    "\x1b[2J\x1b]0;title\x07": "%1B[2J%1B]0;title%07",
    "a\nb\r\tc": "a%0Ab%0D%09c",
    "photo\u202egpj.exe": "photo%E2%80%AEgpj.exe",
    "zero\u200bwidth\ufeff": "zero%E2%80%8Bwidth%EF%BB%BF",
    "\x9b31m\x7f\x00": "%C2%9B31m%7F%00",
    "Stra\udcdfe": "Stra%DFe",
    "\ud83d half": "%ED%A0%BD half",
    "Übung – ± 動画 🎬": "Übung – ± 動画 🎬",
}


@pytest.mark.parametrize(("name", "shown"), HOSTILE.items(), ids=range(len(HOSTILE)))
def test_names_are_shown_with_visible_letters(name, shown):
    assert readable(name) == shown and readable(shown) == shown
    assert visible(f"{name}\n") == readable(name).replace("%0A", "\n") + "\n"


def test_the_bytes_of_a_file_name_come_back():
    assert utf8("Stra\udcdfe") == b"Stra\xdfe"
    assert utf8("\ud83d") == b"%ED%A0%BD"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_the_streams_of_a_command_write_visible_text_only(name):
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    before = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with visible_output(), visible_output():
            print(name)
            print(f"error: {name}", file=sys.stderr)
            sys.stdout.writelines([name, "\n"])
        assert (sys.stdout, sys.stderr) == (out, err)
    assert (sys.stdout, sys.stderr) == before
    text = visible(name)
    assert [written(stream) for stream in (out, err)] == [f"{text}\n{text}\n", f"error: {text}\n"]


def test_bars_still_move_the_cursor_and_terminals_get_the_letters_that_they_know():
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "latin-1", newline=""),
        io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""),
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), visible_output():
        print("Übung – 動")
        for bar in (tqdm(total=2, desc="a", position=0), tqdm(total=2, desc="b", position=1)):
            bar.update()
            bar.close()
        print("\rtext \x1b[A", end="")
    assert written(out, "latin-1") == "Übung \\u2013 \\u52d5\n%0Dtext %1B[A"
    assert "\r" in written(err) and "\x1b[A" in written(err) and "%" not in written(err).replace("%|", "")


def written(stream, encoding="utf-8"):
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)
