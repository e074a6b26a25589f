"""Signals that ask a command to end: all of them act like Ctrl-C, so that what is complete is kept."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_REPEATED = 1.0
"""Seconds in which further signals are the same request: `timeout` and terminals send them to a process twice."""


class Interrupts:
    """What a command was asked by signals.

    Args:
        ending: The process ends after the command.

    Attributes:
        number: The first signal; None before any.
        status: The exit status from the moment on at which the command is finished; None before.
    """

    def __init__(self, ending: bool) -> None:
        self.number: int | None = None
        self.status: int | None = None
        self._ending = ending
        self._last = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt. After the command is finished, end the process at once."""
        if self.status is not None:
            if self._ending:
                os._exit(self.status)
            return
        now = time.monotonic()
        if self.number is not None and now - self._last < _REPEATED:
            return
        self._last = now
        self.number = self.number or number
        raise KeyboardInterrupt

    def exit_status(self, status: int) -> int:
        """Return the status of an interrupted command: 128 and the number of the signal. Others stay."""
        return 128 + self.number if status == 130 and self.number is not None else status


@contextlib.contextmanager
def interruptible(*, ending: bool) -> Iterator[Interrupts]:
    """Let SIGTERM and SIGHUP act like Ctrl-C in the block. A signal that is ignored, such as under `nohup`, stays so.

    Outside the main thread, and in processes that `torchrun` watches and ends itself, nothing is changed.

    Args:
        ending: The process ends after the block: the handlers stay, and a late signal ends it with `status`.
    """
    interrupts = Interrupts(ending)
    before: dict[int, Any] = {}
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        with contextlib.suppress(ValueError):  # not the main thread
            for number in [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, interrupts.receive)
    try:
        yield interrupts
    except BaseException:
        ending = False
        raise
    finally:
        if not ending:
            for number, handler in before.items():
                signal.signal(number, handler)
