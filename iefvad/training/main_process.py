"""What the processes of torchrun need before they are joined, without torch: one prints, and one error ends all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from iefvad.utils.errors import UserError


class Aborted(Exception):
    """Another process failed and reports its error. This process ends too, without a message."""


@contextlib.contextmanager
def main_process_output() -> Iterator[None]:
    """Silence all processes of a machine but its first, for work that all do alike before they are joined.

    Raises:
        Aborted: in a silenced process, where the first one raises UserError or OSError.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    except (UserError, OSError):
        raise Aborted from None
