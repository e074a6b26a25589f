"""A number of hundreds of digits: the error names its option."""

from __future__ import annotations

import pytest

from iefvad.cli.main import main


@pytest.mark.parametrize("words", [["--scalar-lr", "1" + "0" * 400], ["--scalar-lr=1" + "0" * 400]])
def test_the_error_names_the_option(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--compare", "false", *words]) == 2
    assert "--scalar-lr has a number that is too large" in capsys.readouterr().err
