"""Runs cases: each in a child process of its own, forked from a process that has imported everything."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import random
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from tests.fuzz import groups
from tests.fuzz.case import FAULTS, Case, Ended, Group, Limits, Outcome
from tests.helpers.warm import import_everything

GROUPS = tuple(sorted(module.name for module in pkgutil.iter_modules(groups.__path__)))
"""Names of all groups."""

_KEPT = 1 << 20  # bytes of each stream that a judge sees: the last ones
_SHOWN = 4000  # characters of each stream that are kept once the case is judged


@dataclass(frozen=True)
class Tried:
    """A case that was run.

    Attributes:
        group: Name of its group.
        number: Its number in the group.
        name: What was done.
        outcome: How it was judged.
        ended: How it ended, with the last part of its output.
        seconds: Wall-clock time of the whole case: making its inputs, the command, and the judge.
    """

    group: str
    number: int
    name: str
    outcome: Outcome
    ended: Ended
    seconds: float

    @property
    def fault(self) -> bool:
        """Whether the outcome is a fault."""
        return self.outcome in FAULTS


class Bench:
    """A prepared group, whose cases can be run one after another.

    Args:
        name: Name of the group.
        seed: Seed of all its cases.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.seed = seed
        self.spent = 0.0
        """Seconds that its cases took."""
        self._group = cast(Group, importlib.import_module(f"tests.fuzz.groups.{name}"))
        self._root = Path(tempfile.mkdtemp(prefix=f"iefvad-fuzz-{name}-"))
        self._stock = self._root / "stock"
        self._stock.mkdir()
        try:
            warm()
            self._group.prepare(self._stock)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bench:
        """Return the bench itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove all files of the group."""
        self.close()

    def close(self) -> None:
        """Remove all files of the group, also from folders that a case made read-only."""
        _remove(self._root)

    def unchanged(self) -> list[Tried]:
        """Run the cases that change nothing. Each must be fine."""
        cases = self._group.unchanged(self._stock)
        return [self._run(-place, lambda case=case: case) for place, case in enumerate(cases, 1)]

    def run(self, number: int, keep: Path | None = None) -> Tried:
        """Run case `number`. An error of the group's own code counts as a fault of the case.

        Args:
            number: Number of the case.
            keep: Where the folder of the case is kept, or None to remove it.
        """
        chance = random.Random(f"{self.seed}/{self.name}/{number}")
        return self._run(number, lambda: self._group.case(number, chance, self._stock), keep)

    def _run(self, number: int, made: Callable[[], Case], keep: Path | None = None) -> Tried:
        begun = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=self._root))
        name, ended = "(not made)", Ended(None, None, False, 0.0, "", "")
        outcome: Outcome = "traceback"
        try:
            case = made()
            name = case.name
            case.arrange(folder)
            ended = run_in_child(case, folder)
            outcome = case.judge(folder, ended)
        except Exception:
            ended = replace(ended, err=f"{ended.err}\nin the harness itself:\n{traceback.format_exc()}")
        finally:
            if keep is not None:
                shutil.copytree(folder, keep, symlinks=True)
            _remove(folder)
        seconds = time.monotonic() - begun
        self.spent += seconds
        ended = replace(ended, out=ended.out[-_SHOWN:], err=ended.err[-_SHOWN:])
        return Tried(self.name, number, name, outcome, ended, seconds)


def warm() -> None:
    """Import what the commands use, and take one thread, so that children can be forked safely."""
    import torch

    torch.set_num_threads(1)
    import_everything()


def run_in_child(case: Case, folder: Path) -> Ended:
    """Run the command of a case in a forked child, with `folder` as its working directory."""
    begun = time.monotonic()
    streams = os.pipe(), os.pipe()  # not files: a limit of file sizes must not cut the messages
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(case, folder, [end for _, end in streams])
    for _, end in streams:
        os.close(end)
    try:
        texts, timed_out = _listen(child, [end for end, _ in streams], begun + case.limits.seconds)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # its own children end with it
            os.killpg(child, signal.SIGKILL)
        waited, usage = os.wait4(child, 0)[1:]
        for end, _ in streams:
            os.close(end)
    return Ended(
        status=os.WEXITSTATUS(waited) if os.WIFEXITED(waited) else None,
        signal=os.WTERMSIG(waited) if os.WIFSIGNALED(waited) else None,
        timed_out=timed_out,
        seconds=time.monotonic() - begun,
        out=texts[0],
        err=texts[1],
        peak=1024 * usage.ru_maxrss,
    )


def _be_child(case: Case, folder: Path, ends: Sequence[int]) -> None:
    """Run the command and end the process."""
    status = 70
    try:
        os.setsid()  # so that its own children can be ended with it
        _redirect(ends)
        os.chdir(folder)
        _limit(case.limits)
        status = case.act() or 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status & 0xFF)


def _redirect(ends: Sequence[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in zip((nothing, *ends), range(3), strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # pytest replaces the streams by its own; a command must see the descriptors
    sys.stdout = open(1, "w", closefd=False, errors="surrogateescape")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115


def _limit(limits: Limits) -> None:
    if limits.memory is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + limits.memory)
    if limits.file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    if limits.descriptors is not None:
        _lower(resource.RLIMIT_NOFILE, limits.descriptors)


def _lower(which: int, limit: int) -> None:
    hard = resource.getrlimit(which)[1]
    resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _listen(child: int, ends: Sequence[int], until: float) -> tuple[list[str], bool]:
    """Read both streams until the child ends or its time is over; returns the texts, and whether it was too late."""
    texts = {end: bytearray() for end in ends}
    ended = os.pidfd_open(child)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for end in ends:
                os.set_blocking(end, False)
                selector.register(end, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(max(until - time.monotonic(), 0))}
                for end in ready - {ended}:
                    if not _read(end, texts[end]):
                        selector.unregister(end)
                late = time.monotonic() >= until
                if ended in ready or late:
                    break
            for end in ends:  # what was written last
                _read(end, texts[end])
    finally:
        os.close(ended)
    return [bytes(texts[end]).decode(errors="replace") for end in ends], late and ended not in ready


def _read(end: int, text: bytearray) -> bool:
    """Read all that a pipe has. Returns False at its end."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(end, 1 << 16):
            text += data
            if len(text) > 2 * _KEPT:
                del text[:-_KEPT]
        return False
    return True


def _remove(folder: Path) -> None:
    for path, folders, _ in os.walk(folder):
        for name in folders:  # before the walk enters them
            if not os.path.islink(place := os.path.join(path, name)):
                with contextlib.suppress(OSError):
                    os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def shared(
    names: Sequence[str], seed: int, *, first: int = 0, cases: int | None = None
) -> Generator[tuple[Bench, int], None, None]:
    """Yield (bench, number of a case), so that all groups get the same time: next is the group that had least.

    Args:
        names: Names of the groups.
        seed: Seed of all cases.
        first: Number of the first case of each group.
        cases: Maximum number of cases per group; without it there is no end.
    """
    with contextlib.ExitStack() as stack:
        following = {stack.enter_context(Bench(name, seed)): first for name in names}
        while following:
            bench = min(following, key=lambda bench: bench.spent)
            yield bench, following[bench]
            following[bench] += 1
            if cases is not None and following[bench] >= first + cases:
                del following[bench]
