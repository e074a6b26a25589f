"""Files are replaced as a whole, and the temporary files of killed processes are removed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iefvad.utils import files
from iefvad.utils.errors import UserError
from iefvad.utils.files import remove_left_over, replacing, replacing_durably, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(text: str) -> None:
        if durable:
            with replacing_durably(path, before=lambda: seen.append(path.read_text())) as file:
                file.write(text.encode())
                if text == "bad":
                    raise LookupError
        else:
            with replacing(path) as temporary:
                temporary.write_text(text)
                if text == "bad":
                    raise LookupError

    seen: list[str] = []
    with pytest.raises(LookupError):
        write("bad")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"] and not seen
    write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file"] and seen == ["old"] * durable


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        write_text(tmp_path / "file" / "below", "text")


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys; from pathlib import Path; from iefvad.utils.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.touch(); print(temporary, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(tmp_path / "sub" / "file")]
    writer = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert writer.stdin and writer.stdout
    theirs = Path(writer.stdout.readline().strip())
    with replacing(tmp_path / "mine") as mine:
        mine.touch()
        parts = re.fullmatch(r"\.([0-9a-f]+)-(\d+)-([0-9a-f]+)-([0-9a-f]+)\.tmp", mine.name)
        assert parts and int(parts[2]) == os.getpid()
        same_number = mine.with_name(f".{parts[1]}-{parts[2]}-00000000-{parts[4]}.tmp")  # of a container before this
        another_host = mine.with_name(f".00000000-{parts[2]}-{parts[3]}-{parts[4]}.tmp")
        strange = [tmp_path / name for name in (".x.tmp", "a.tmp", ".0-1-0-0.tmp")]
        for path in (same_number, another_host, *strange):
            path.touch()
        assert remove_left_over(tmp_path) == 1 and not same_number.exists()
        assert all(path.exists() for path in (mine, theirs, another_host, *strange))
        os.utime(another_host, (time.time() - 2 * files._ABANDONED,) * 2)
        writer.kill()
        writer.wait()
        assert remove_left_over(tmp_path) == 2 and not theirs.exists() and not another_host.exists()
    assert (tmp_path / "mine").exists()
