"""SIGTERM, SIGHUP and Ctrl-C end a command with one line, and are never lost."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from iefvad.cli.command import guarded
from iefvad.utils.interrupts import Interrupts, deferred, interruptible
from iefvad.utils.streams import forgiving_streams

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def waits() -> int:
    time.sleep(5)
    return 0


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_has_its_status(number, capsys):
    cleaned = []

    def work() -> int:
        try:
            send(number)
            return waits()
        finally:
            send(number)  # a second one, as `timeout` sends it, does not end the cleaning
            cleaned.append(True)

    before = signal.getsignal(number)
    assert guarded("iefvad x", work) == SIGNALS[number]
    assert cleaned and signal.getsignal(number) is before
    assert capsys.readouterr().err.strip() == "iefvad x: interrupted; everything complete is kept."


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert guarded("iefvad x", lambda: send(signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_that_handles_the_signal_keeps_its_status():
    def work() -> int:
        try:
            send(signal.SIGTERM)
            return waits()
        except KeyboardInterrupt:
            return 0  # such as live input, which then writes its files

    assert guarded("iefvad x", work) == 0


class _Finaliser:
    """Python drops exceptions of `__del__`."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def __del__(self) -> None:
        self._work()
        time.sleep(0.01)


def test_a_signal_that_python_drops_comes_again(capsys):
    def work() -> int:
        thing = _Finaliser(lambda: send(signal.SIGTERM))
        del thing
        return waits()

    begin = time.monotonic()
    assert guarded("iefvad x", work) == 143
    assert time.monotonic() - begin < 4 and "Traceback" not in capsys.readouterr().err


def test_after_the_command_a_late_signal_changes_nothing():
    with interruptible(ending=False) as interrupts:
        interrupts.status = 0
        send(signal.SIGTERM)


def test_a_signal_while_the_end_is_told_is_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr("iefvad.utils.interrupts._REPEATED", 0.0)  # as on a busy machine, where more time passes

    class Told(io.StringIO):
        def write(self, text: str) -> int:
            send(signal.SIGHUP)
            return super().write(text)

    def work() -> int:
        monkeypatch.setattr(sys, "stderr", told)
        send(signal.SIGHUP)
        return waits()

    told = Told()
    before = signal.getsignal(signal.SIGHUP)
    assert guarded("iefvad x", work) == 129
    assert signal.getsignal(signal.SIGHUP) is before


def test_a_signal_before_the_work_begins_is_not_lost(monkeypatch, capsys):
    def streams() -> contextlib.AbstractContextManager[object]:
        send(signal.SIGTERM)
        return forgiving_streams()

    monkeypatch.setattr("iefvad.cli.command.forgiving_streams", streams)
    assert guarded("iefvad x", lambda: pytest.fail("it began")) == 143
    assert "interrupted" in capsys.readouterr().err


def test_a_signal_after_the_work_changes_nothing(monkeypatch):
    class Late(Interrupts):
        def exit_status(self, status: int) -> int:
            send(signal.SIGTERM)
            return super().exit_status(status)

    monkeypatch.setattr("iefvad.utils.interrupts.Interrupts", Late)
    assert guarded("iefvad x", lambda: 0) == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_process_starts_comes_afterwards(number):
    done = []

    def work() -> int:
        with deferred():
            send(number)
            time.sleep(0.05)
            done.append(True)
        return waits()

    assert guarded("iefvad x", work) == SIGNALS[number]
    assert done
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_that_starts_leaves_ctrl_c_to_its_parent():
    with deferred():
        child = subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
                                 stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout is not None and child.stdout.readline()
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.2)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()


def test_after_the_last_command_a_late_signal_ends_the_process_with_its_status(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with interruptible(ending=True) as interrupts:
            interrupts.status = 3
        send(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended == [3]


@pytest.mark.parametrize("module", ["iefvad.video.opening", "logging"])
def test_a_signal_waits_where_a_library_would_drop_it(module, monkeypatch):
    again = []
    monkeypatch.setattr(Interrupts, "_again", lambda self, number: again.append(number))
    interrupts = Interrupts(ending=False)
    interrupts.begin()
    interrupts.receive(signal.SIGTERM, SimpleNamespace(f_globals={"__name__": module}))
    assert again == [signal.SIGTERM] and interrupts.number is None
    with pytest.raises(KeyboardInterrupt):
        interrupts.receive(signal.SIGTERM, SimpleNamespace(f_globals={"__name__": "iefvad.video.decoding"}))
