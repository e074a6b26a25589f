"""Pieces of text that messages, tables and pages share."""

from __future__ import annotations

import pytest

from iefvad.utils.text import clock, duration, few


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
