"""CSV files: no cell becomes a formula, and names come back."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

import iefvad
from iefvad.utils.csv_text import CsvRows, csv_line, csv_text, harmless, original

FORMULAS = (
    "=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "  =1", "'=1", "''=1", '"=1', "=1", "+a", "-a",
    "@a", "\u200b=1", "\ufeff=1", "\x00=1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x","y")', "-2 apples", "--1", "=",
    "\u202e=1", "\xa0=1", "-1e", "+1.2.3", "\tword",
)  # fmt: skip
HARMLESS = ("", "-0.5", "+3", "-1e-5", "-.5", "-inf", "+nan", "a=b", "'quoted'", "'", "it's", "1-2", "–", "a\nb", "a\r",
            'with "quotes", and more', "C:\\x", "動画", "'-0.5", " -0.5x"[1:-1], "Stra\udcdfe")  # fmt: skip


@pytest.mark.parametrize("cell", FORMULAS, ids=ascii)
def test_formulas_are_neutralised_and_come_back(cell):
    line = csv_line([cell, 1])
    (read,) = csv.reader(io.StringIO(line, newline=""))
    assert read == [f"'{cell}", "1"]
    assert list(CsvRows(io.StringIO(line, newline=""))) == [[cell, "1"]]


@pytest.mark.parametrize("cell", HARMLESS, ids=ascii)
def test_other_cells_come_back(cell):
    line = csv_line([cell, -0.5, None])
    (read,) = csv.reader(io.StringIO(line, newline=""))
    assert read[1:] == ["-0.5", ""] and (read[0] == cell or cell == "'-0.5")
    assert list(CsvRows(io.StringIO(line, newline=""))) == [[cell, "-0.5", ""]]


def test_rows_end_with_a_line_feed():
    text = csv_text([("name", "label"), ("a\r\nb", "=1"), ("c", -1)])
    assert text == 'name,label\n"a\r\nb",\'=1\nc,-1\n'
    rows = CsvRows(io.StringIO(text, newline=""))
    assert list(rows) == [["name", "label"], ["a\r\nb", "=1"], ["c", "-1"]] and rows.line == 4


def test_csv_is_written_and_read_in_one_place():
    root = Path(iefvad.__file__).parent
    others = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if re.search(
            r"csv\.(writer|DictWriter|reader|DictReader)|to_csv|join\([^)]*\) *\+ *\"\\n\"\) *# *csv", path.read_text()
        )
    }
    assert others == {"utils/csv_text.py"}


@pytest.mark.parametrize("sign", "\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b\u2212")
def test_signs_of_other_widths_are_neutralised(sign):
    assert harmless(f"{sign}1+1") == f"'{sign}1+1" and original(f"'{sign}1+1") == f"{sign}1+1"
