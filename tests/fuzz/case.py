"""One case of the harness: what it does, under which limits, and how its end is judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Outcome = Literal["fine", "refused", "traceback", "hang", "silent", "loss", "crash"]

OUTCOMES: dict[Outcome, str] = {
    "fine": "the command did what it says",
    "refused": "one clear error, and nothing changed",
    "traceback": "an error of the program instead of a message",
    "hang": "no end within the time limit",
    "silent": "another result than the input says, without a word",
    "loss": "something complete or computed is gone",
    "crash": "the process was ended by a signal",
}
"""Each outcome and its meaning. All but the first two are faults."""

FAULTS: tuple[Outcome, ...] = ("traceback", "hang", "silent", "loss", "crash")


@dataclass(frozen=True)
class Limits:
    """Limits of a case.

    Attributes:
        seconds: Wall-clock time.
        memory: Bytes of address space beyond what the warm process has, or None.
        file_bytes: Largest file that can be written, or None.
        descriptors: Number of open files, or None.
    """

    seconds: float = 60.0
    memory: int | None = 6 << 30
    file_bytes: int | None = None
    descriptors: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Attributes:
        status: Exit status, or None where a signal ended the process.
        signal: The signal that ended the process, or None.
        timed_out: The time limit was reached.
        seconds: Wall-clock time.
        out: What was written to stdout.
        err: What was written to stderr.
        peak: Largest resident memory in bytes, including that of the warm process.
    """

    status: int | None
    signal: int | None
    timed_out: bool
    seconds: float
    out: str
    err: str
    peak: int = 0


def judged(folder: Path, ended: Ended) -> Outcome:
    """Judge a case by its exit status and its text alone.

    Args:
        folder: The folder of the case. Judges of groups look at what is left there.
        ended: How the case ended.

    Returns:
        The outcome; never "silent" for a status of 0, since the result is not looked at.
    """
    if ended.timed_out:
        return "hang"
    if ended.signal is not None:
        return "crash"
    if "Traceback (most recent call last)" in ended.err + ended.out:
        return "traceback"
    if ended.status == 0:
        return "fine"
    return "refused" if ended.err.strip() else "silent"


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: What is done, in one line that a person understands.
        arrange: Writes the inputs into the empty folder of the case.
        act: Runs in a child process with this folder as working directory; the exit status is what it returns.
        judge: Looks at the folder and at how the child ended.
        limits: Limits of the child process. They hold for `act` alone.
    """

    name: str
    arrange: Callable[[Path], None]
    act: Callable[[], int | None]
    judge: Callable[[Path, Ended], Outcome] = judged
    limits: Limits = Limits()


class Group(Protocol):
    """A module of `tests.fuzz.groups`."""

    def prepare(self, stock: Path) -> None:
        """Make the valid inputs that the cases change. Called once.

        Args:
            stock: An empty folder.
        """

    def case(self, number: int, random: random.Random, stock: Path) -> Case:
        """Return one case. The same number and the same random state give the same case.

        Args:
            number: Number of the case. Kinds are walked through by it, so that the first cases visit all kinds.
            random: Source of chance.
            stock: The folder that `prepare` filled. Cases read it and never write to it.
        """

    def unchanged(self, stock: Path) -> list[Case]:
        """Return cases that change nothing: they must be fine, or the other cases of the group try nothing.

        Args:
            stock: The folder that `prepare` filled.
        """
