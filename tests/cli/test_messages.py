"""Mistakes on the command line: one line that says what is wrong, and the nearest name that exists."""

from __future__ import annotations

import sys

import pytest

import iefvad
from iefvad.cli.command import _hide_in_tracebacks, guarded
from iefvad.cli.main import main
from iefvad.utils.errors import UserError
from iefvad.utils.option_errors import explained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "iefvad: error: command 'trian' does not exist. Did you mean train? One of: train,"),
        ("data chek", "iefvad data: error: command 'chek' does not exist. Did you mean check? One of: check,"),
        ("train --preset ucf", "iefvad train: error: --preset 'ucf': expected one of synth, own, ucf-crime,"),
        ("train --preset ucf", "Did you mean ucf-crime?\n"),
        ("train --lr abc", "iefvad train: error: --lr 'abc': expected a number.\n"),
        ("train --nu a", "iefvad train: error: --nu 'a': expected a number, learned.\n"),
        ("train --threads x", "iefvad train: error: --threads 'x': expected a whole number.\n"),
        ("train --log x", "iefvad train: error: --log 'x': expected one of tensorboard, wandb, mlflow.\n"),
        ("train --seed 3", "iefvad train: error: there is no option --seed. Did you mean --seeds?\n"),
        ("train --fused=3", "iefvad train: error: --fused takes no value: write it without =3.\n"),
        ("train extra", "iefvad train: error: 'extra' is not expected here. Options begin with --.\n"),
        ("train --config nowhere.yaml", "iefvad train: error: --config: File does not exist: '"),
        ("detect", "iefvad detect: error: the following arguments are required: run, videos\n"),
        ("extract a.mp4 --out b --crops 7x", "iefvad extract: error: --crops '7x': expected a whole number.\n"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_message_that_is_not_known_stays_and_is_one_line() -> None:
    assert explained("something\n  new", []) == "something new"


def test_a_hidden_control_character_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--\x1b[31mred"])
    assert "\x1b" not in capsys.readouterr().err


def test_a_message_of_several_lines_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise UserError("a\niefvad x: done: \x1b[2J")

    assert guarded("iefvad x", work) == 2
    assert capsys.readouterr().err == "iefvad x: error: a%0Aiefvad x: done: %1B[2J\n"


def test_what_a_command_prints_is_not_obeyed_by_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        print("a\x1b[2J")
        print("b\x1b[2J", file=sys.stderr)
        return 0

    assert guarded("iefvad x", work) == 0
    assert capsys.readouterr() == ("a%1B[2J\n", "b%1B[2J\n")


def test_a_traceback_is_not_obeyed_by_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    _hide_in_tracebacks([])
    sys.excepthook(ValueError, ValueError("first\nsecond \x1b[2J"), None)
    assert capsys.readouterr().err == "ValueError: first\nsecond %1B[2J\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"iefvad {iefvad.__version__}\n"


def test_doctor_names_packages_codecs_disk_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("packages:\n  iefvad ", "\n  av ", "decoders: ", "GiB free", "kalman_scan on cpu"):
        assert part in printed
    assert "failed:" not in printed
