"""Standard streams that nobody reads, that are closed, or whose disk is full: the work goes on without them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


def open_standard_streams() -> None:
    """Open closed standard streams on nothing, such as those of a process that was started with `>&-`.

    Otherwise the next file that is opened would take the place of such a stream, and what libraries print would be
    written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            _to_nothing(descriptor)
        if getattr(sys, name) is None:  # Python found it closed
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (for the whole process)


def _to_nothing(descriptor: int) -> None:
    """Let a descriptor read from and write to the null device."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing != descriptor:
        os.dup2(nothing, descriptor)
        os.close(nothing)


class ForgivingStream:
    """A text stream that writes to nothing from the moment on at which writing fails.

    Attributes:
        error: Why writing failed first; None where it did not.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts, or drop them."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.error = self.error or error
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            _to_nothing(self._stream.fileno())  # what is buffered goes there too, also when Python ends
            self._stream.flush()

    @property
    def lost(self) -> str | None:
        """Why text is missing that somebody may want, such as a full disk; None where the reader had enough."""
        if self.error is None or self.error.errno in (errno.EPIPE, errno.EBADF):
            return None
        return self.error.strerror or str(self.error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def forgiving_streams() -> Iterator[ForgivingStream]:
    """Replace standard output and standard error in the block by streams that forgive a failed write.

    Yields:
        Standard output.
    """
    open_standard_streams()
    before = sys.stdout, sys.stderr
    output, errors = ForgivingStream(sys.stdout), ForgivingStream(sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", output), cast("TextIO", errors)
    try:
        yield output
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = before
