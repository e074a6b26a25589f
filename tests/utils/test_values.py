"""Types and ranges of settings, on the command line, in YAML and in files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from iefvad.cli.main import main
from iefvad.utils.log_file import read_log
from iefvad.utils.plain_json import parse_json, read_object
from iefvad.utils.values import COUNT, POSITIVE, Range, limited, problem, problems, within


@pytest.mark.parametrize(
    ("value", "hint", "limits", "found"),
    [
        (1, int, COUNT, None),
        (0, int, COUNT, "must be at least 1, not 0"),
        (2**40, int, None, "must be at most 2147483647, not 1099511627776"),
        (10**400, int, COUNT, "must be at most 2147483647, not an integer of 1329 bits"),
        (True, int, None, "must be a whole number, not True"),
        (1.0, int, None, "must be a whole number, not 1.0"),
        ("abc", int, None, "must be a whole number, not 'abc'"),
        (3, float, None, None),
        (math.nan, float, None, "must be a finite number, not nan"),
        (-math.inf, float, Range(0), "must be a finite number, not -inf"),
        (10**400, float, None, "must be at most 1e+300, not an integer of 1329 bits"),
        (1, float, Range(0, below=1), "must be below 1, not 1"),
        (0, float, Range(above=0), "must be greater than 0, not 0"),
        (None, int | None, COUNT, None),
        ("learned", float | Literal["learned"], Range(0), None),
        ("lerned", float | Literal["learned"], Range(0), "must be a number or learned, not 'lerned'"),
        ([1, 0], list[int], COUNT, "must be at least 1, not 0"),
        ([1, "0"], list[int], COUNT, "must be a list, each of whose entries is a whole number, not [1, '0']"),
        ("a\0b", str, None, "must not contain the letter NUL"),
        ([0] * 10_001, list[int], None, "must have at most 10,000 entries, not 10,001"),
        ({}, dict[str, Any] | None, None, None),
        ([], dict[str, Any], None, "must be an object, not []"),
    ],
)
def test_types_and_ranges(value, hint, limits, found):
    assert problem(value, hint, limits) == found


def test_ranges_are_those_of_the_fields_also_where_a_class_defines_them_again():
    @dataclass
    class Given:
        rate: float | None = within(None, Range(above=0))
        epochs: int = field(default=1, metadata=limited(COUNT))

    @dataclass
    class Chosen(Given):
        rate: float = field(kw_only=True)

    assert list(problems({"rate": None, "epochs": 0, "more": 1}, Given)) == [("epochs", "must be at least 1, not 0")]
    assert dict(problems({"rate": None}, Chosen)) == {"rate": "must be a number, not None"}
    assert dict(problems({"rate": 0.0}, Chosen)) == {"rate": "must be greater than 0, not 0.0"}


ODD = {
    "train": ["--lr nan", "--batch 0", "--epochs 1000000000", "--eps inf", "--layers 1000000", "--dropout 1", 
              "--nu nan", "--heads 0", "--min-steps -1", "--synth-seed -1", "--members 2000", "--attenuation nan",
              "--max-segments 10000000", "--process-noise inf", "--milestones -1", "--refine-steps 1000000000",
              "--threads 1000000000"],
    "evaluate x": ["--draws 1000000000", "--ratios nan", "--heads -1", "--nu inf"],
    "detect x y": ["--fps inf", "--threshold nan", "--timeout 1e300", "--thumbnails -1", "--hop 0", "--low nan"],
    "calibrate x y": ["--false-alarms-per-hour inf", "--low-share 0", "--context -1"],
    "extract x --out y": ["--workers 1000000000", "--keyframes 2", "--threshold nan", "--fps 0", "--batch 100000000"],
    "sweep": ["--jobs 1000000000", "--jobs-per-gpu 0", "--lr nan", "--seeds 0..999999999"],
    "reproduce table1": ["--jobs 1000000000", "--seeds 99999999999999999999", "--lr inf"],
    "features import x": ["--fps nan", "--max-segments 0"],
    "data check x": ["--names -1"],
    "data verify x": ["--names -1"],
}  # fmt: skip


@pytest.mark.parametrize("form", ["words", "yaml"])
@pytest.mark.parametrize("command", ODD)
def test_every_option_that_cannot_be_is_one_line_with_its_name(command, form, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in ODD[command]:
        flag, value = words.split()
        more = [flag, value]
        if form == "yaml" and flag not in ("--seeds", "--threads"):
            listed = flag in ("--milestones", "--ratios")
            value = {"nan": ".nan", "inf": ".inf", "1e300": "1.0e+300"}.get(value, value)
            Path("a.yaml").write_text(f"{flag[2:].replace('-', '_')}: {[value] if listed else value}".replace("'", ""))
            more = ["--config", "a.yaml"]
        try:
            status = main([*command.split(), *more])
        except SystemExit as ended:
            status = ended.code
        error = capsys.readouterr().err
        assert status == 2, words
        assert flag.strip("-").replace("-", "_") in error.replace("-", "_"), (words, error)
        assert "Traceback" not in error and len(error) < 400, (words, error)


def test_json_is_read_strictly(tmp_path):
    for text, what in (
        ("[NaN]", "NaN"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[" * 100_000, "nested"),
        ("1" * 5000, "digits"),
    ):
        with pytest.raises(ValueError, match=what):
            parse_json(text)
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(Exception, match=r"a\.json is not a JSON object: make it again"):
        read_object(path, "make it again")


def test_odd_rows_of_a_log_are_left_out(tmp_path):
    good = '{"model": "fusion", "seed": 0, "epoch": 1, "loss": 0.5, "extra": 2.0}'
    odd = ['{"model": "fusion", "seed": 0}', '{"model": 5, "seed": 0, "epoch": 1}', good.replace("0.5", "NaN"), "{",
           "5", good.replace("0.5", '"x"'), good.replace("2.0", "[1]"), good.replace("2.0", "1e999")]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("\n".join([*odd, good]))
    assert [row["loss"] for row in read_log(tmp_path / "log.jsonl")] == [0.5]


def test_a_positive_number_that_single_precision_takes_for_zero_is_refused():
    assert POSITIVE.problem(1e-320) == "must be at least 1e-30, not 1e-320"
    assert POSITIVE.problem(1e-30) is None
