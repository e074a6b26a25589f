"""Signals that ask a command to end: all of them act like Ctrl-C, so that what is complete is kept."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_REPEATED = 1.0
"""Seconds in which further signals are the same request: `timeout` and terminals send them to a process twice."""
_AGAIN = 0.02
"""Seconds after which a signal comes again that arrived where exceptions are dropped."""
_DROPPING = ("iefvad.video.opening", "logging")
"""Modules that are called where an exception would be dropped, or taken for something else: by FFmpeg, after a fork."""


class Interrupts:
    """What a command was asked by signals.

    Args:
        ending: The process ends after the command.

    Attributes:
        number: The first signal; None before any.
        raising: Whether a signal raises KeyboardInterrupt. It is only so while the command works.
        status: The exit status from the moment on at which the command is finished; None before.
    """

    def __init__(self, ending: bool) -> None:
        self.number: int | None = None
        self.raising = False
        self.status: int | None = None
        self._ending = ending
        self._last = -_REPEATED

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt. After the command is finished, end the process at once.

        A signal before the command is noted for `begin`. One while the command tells its end changes nothing.
        """
        if self.status is not None:
            if self._ending:
                os._exit(self.status)
            return
        if not self.raising:
            self.number = self.number or number
            return
        now = time.monotonic()
        if now - self._last < _REPEATED:
            return
        if frame is not None and frame.f_globals.get("__name__") in _DROPPING:
            self._again(number)
            return
        self._last = now
        self.number = self.number or number
        raise KeyboardInterrupt

    def begin(self) -> None:
        """Let signals raise KeyboardInterrupt from now on, and raise it if one has come already."""
        self.raising = True
        if self.number is not None:
            raise KeyboardInterrupt

    def dropped(self) -> None:
        """Note that Python dropped the KeyboardInterrupt, such as in a finaliser: the signal comes again."""
        self._last = -_REPEATED
        self._again(self.number or signal.SIGINT)

    def _again(self, number: int) -> None:
        timer = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

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
    hooks = sys.unraisablehook, sys.excepthook
    if before:
        sys.unraisablehook = _watching(hooks[0], lambda error: error.exc_type, interrupts)
        sys.excepthook = _watching(hooks[1], lambda kind, *rest: kind, interrupts)
    try:
        yield interrupts
    except BaseException:
        ending = False
        raise
    finally:
        sys.unraisablehook, sys.excepthook = hooks
        if not ending:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let signals that ask to end wait for the end of the block. Processes that start in it do not get Ctrl-C.

    For a process to be started: it must not get the Ctrl-C of its parent, and its parent must not miss it meanwhile.
    Outside the main thread, nothing is changed.
    """
    come: list[int] = []
    before: dict[int, Any] = {}
    mask = hasattr(signal, "pthread_sigmask")  # not on Windows
    if threading.current_thread() is threading.main_thread():
        for number in [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]:
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda which, frame: come.append(which))
    if mask:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # new processes inherit this
    try:
        yield
    finally:
        if mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in come[:1]:
            signal.raise_signal(number)


def _watching(hook: Callable[..., Any], kind: Callable[..., Any], interrupts: Interrupts) -> Callable[..., Any]:
    """Return a hook for errors that Python prints and drops, which lets a dropped KeyboardInterrupt come again."""

    def watch(*error: Any) -> None:
        if kind(*error) is KeyboardInterrupt:
            interrupts.dropped()
        else:
            hook(*error)

    return watch
