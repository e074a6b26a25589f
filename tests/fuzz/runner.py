"""Running cases: a child process per case, forked from a process that has imported everything."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tests.fuzz import groups
from tests.fuzz.case import FAULTS, Case, Ended, Group, Limits, Outcome

GROUPS = tuple(sorted(module.name for module in pkgutil.iter_modules(groups.__path__)))
"""Names of all groups."""


@dataclass(frozen=True)
class Tried:
    """A case that was run.

    Attributes:
        group: Name of its group.
        number: Its number in the group.
        name: What was done.
        outcome: How it was judged.
        ended: How it ended.
    """

    group: str
    number: int
    name: str
    outcome: Outcome
    ended: Ended

    @property
    def fault(self) -> bool:
        """Whether the outcome is a fault."""
        return self.outcome in FAULTS


class Bench:
    """A prepared group, whose cases can be run one after another."""

    def __init__(self, name: str, seed: int = 0) -> None:
        """Prepare the group.

        Args:
            name: Name of the group.
            seed: Seed of all its cases.
        """
        self.name = name
        self.seed = seed
        self._group = cast(Group, importlib.import_module(f"tests.fuzz.groups.{name}"))
        self._root = Path(tempfile.mkdtemp(prefix=f"iefvad-fuzz-{name}-"))
        self._stock = self._root / "stock"
        self._stock.mkdir()
        warm()
        self._group.prepare(self._stock)

    def __enter__(self) -> Bench:
        """Return the bench itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove all files of the group."""
        shutil.rmtree(self._root, ignore_errors=True)

    def run(self, number: int, keep: Path | None = None) -> Tried:
        """Run case `number`.

        Args:
            number: Number of the case.
            keep: Where the folder of the case is kept, or None to remove it.
        """
        case = self._group.case(number, random.Random(f"{self.seed}/{self.name}/{number}"), self._stock)
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=self._root))
        try:
            case.arrange(folder)
            ended = _run_in_child(case, folder, self._root)
            outcome = case.judge(folder, ended)
            if keep is not None:
                shutil.copytree(folder, keep, symlinks=True)
            return Tried(self.name, number, case.name, outcome, ended)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def warm() -> None:
    """Import what the commands use, and take one thread, so that children can be forked safely."""
    import torch

    torch.set_num_threads(1)
    from iefvad.cli.main import COMMANDS

    for where, _ in COMMANDS.values():
        importlib.import_module(where.partition(":")[0])


def _run_in_child(case: Case, folder: Path, root: Path) -> Ended:
    begun = time.monotonic()
    out, err = root / "stdout", root / "stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()  # so that its own children end with it
            _redirect(out, err)
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
    waited, timed_out = _wait(child, begun + case.limits.seconds)
    _end_group(child)
    return Ended(
        status=os.WEXITSTATUS(waited) if os.WIFEXITED(waited) else None,
        signal=os.WTERMSIG(waited) if os.WIFSIGNALED(waited) else None,
        timed_out=timed_out,
        seconds=time.monotonic() - begun,
        out=out.read_text(errors="replace"),
        err=err.read_text(errors="replace"),
    )


def _redirect(out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
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


def _wait(child: int, until: float) -> tuple[int, bool]:
    pause = 0.0005
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status, False
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1], True
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def rounds(names: tuple[str, ...], seed: int, first: int = 0) -> Iterator[tuple[Bench, int]]:
    """Yield (bench, number) without end: one case of each group in turn.

    Args:
        names: Names of the groups.
        seed: Seed of all cases.
        first: Number of the first case.
    """
    benches = [Bench(name, seed) for name in names]
    try:
        number = first
        while True:
            for bench in benches:
                yield bench, number
            number += 1
    finally:
        for bench in benches:
            bench.__exit__()
