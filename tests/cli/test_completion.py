"""Shell completion in a real bash, `iefvad help NAME`, and what the overview offers."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from iefvad.cli import completion
from iefvad.cli.main import COMMANDS, main

_COMPLETE = """
source "$1"; shift
function=$(complete -p iefvad | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$function iefvad "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab")
    path = tmp_path_factory.mktemp("completion") / "iefvad.bash"
    path.write_text(completion.script("bash", COMMANDS))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], {"train"}),
        (["re"], {"report", "reproduce"}),
        (["train", "--pre"], {"--preset", "--precision"}),
        (["train", "--preset", "o"], {"own"}),
        (["train", "--protocol", "rele"], {"released"}),
        (["train", "--no-fu"], {"--no-fused"}),
        (["train", "--epochs", "3", "--cuda"], {"--cuda-graph"}),
        (["sweep", "--vary", "nu=2,4", "--grid", "--method", "pa"], {"paper"}),
        (["data", "ch"], {"check"}),
        (["data", "check", "--str"], {"--strict"}),
        (["reproduce", "table"], {"table1", "table3", "table4", "table5"}),
        (["train", "--features", "st"], {"store", "stock.csv"}),
        (["detect", "st"], {"store", "stock.csv"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),  # the same in all processes
)
def test_bash_completes(words, expected, script, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "stock.csv").touch()
    command = ["bash", "--norc", "-c", _COMPLETE, "bash", str(script), "iefvad", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_printed_for_each_shell(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as done:
        main(["--print-completion", shell])
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "iefvad" in printed and all(name in printed for name in COMMANDS)


def test_without_shtab_the_remedy_is_said(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "pip install 'iefvad[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "command"), [(["train"], "train"), (["data", "check"], "data check"), ([], "COMMAND")]
)
def test_help_as_a_word(words, command, capsys):
    with pytest.raises(SystemExit) as done:
        main(["help", *words])
    assert done.value.code == 0 and capsys.readouterr().out.startswith(f"usage: iefvad {command} [")


def test_misspelt_commands(capsys):
    for words, near in ((["trian"], "train"), (["help", "detcet"], "detect"), (["data", "chekc"], "check")):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 2 and f"Did you mean {near}?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["--print_config"])
    assert done.value.code == 2
