"""What the commands print: text from files and networks is shown, and never obeyed by the terminal.

A name may contain escape sequences that clear the screen, change the title of the window or hide text. The standard
streams of a command therefore write all characters that are not visible as `iefvad.utils.text.readable` does.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

from iefvad.utils.text import visible

_UP = "\x1b[A"  # how tqdm moves the cursor to the line of another bar


class _Visible:
    """A text stream that writes what is not visible as escapes.

    Args:
        stream: The stream that shows the text.
        bars: Let the movements of the cursor pass with which tqdm draws its bars: a carriage return as the first
            character of a text, and texts that are nothing but movements.
    """

    def __init__(self, stream: TextIO, *, bars: bool = False) -> None:
        self.stream, self._bars = stream, bars

    def write(self, text: str) -> int:
        """Write a text, and return its length."""
        start, rest = "", text
        if self._bars and text[:1] in ("\r", "\n", "\x1b"):
            moves = not text.replace(_UP, "").strip("\r\n")
            start, rest = (text, "") if moves else ("\r", text[1:]) if text[0] == "\r" else ("", text)
        shown = visible(rest)
        if not shown.isascii():  # the terminal may know fewer letters
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            shown = shown.encode(encoding, "backslashreplace").decode(encoding)
        self.stream.write(start + shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def visible_output() -> Iterator[None]:
    """Let the standard streams write visible text only, until the end of the block."""
    before = sys.stdout, sys.stderr
    # A process without a terminal may have no streams.
    streams = [
        stream if stream is None or isinstance(stream, _Visible) else _Visible(stream, bars=stream is before[1])
        for stream in before
    ]
    sys.stdout, sys.stderr = cast(TextIO, streams[0]), cast(TextIO, streams[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
