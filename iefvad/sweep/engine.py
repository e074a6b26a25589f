"""What the engines of a sweep have in common: a task, and how it ended."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from iefvad.sweep.data import Prepared
from iefvad.sweep.trainings import Training
from iefvad.utils.errors import UserError
from iefvad.utils.files import file_error
from iefvad.utils.memory import is_shortage, shortage


@dataclass(frozen=True)
class Task:
    """A training and its data."""

    training: Training
    prepared: Prepared


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        training: The training.
        text: Text of its document; None where it failed.
        problem: Why it failed, as one sentence.
        details: Traceback of an unexpected error, for the log.
        seconds: Duration.
    """

    training: Training
    text: str | None = None
    problem: str = ""
    details: str = ""
    seconds: float = 0.0


def work(task: Task, out: Path, device: str) -> Outcome:
    """Do a task. No error leaves this function: the other trainings go on."""
    from iefvad.sweep.work import make_document  # here, because the calling process does not need all of it

    begin = time.perf_counter()
    text, problem, details = None, "", ""
    try:
        text = make_document(task.training, task.prepared, out, device)
    except UserError as error:
        problem = str(error)
    except Exception as error:
        problem, details = f"{type(error).__name__}: {error}", traceback.format_exc()
        if isinstance(error, OSError):
            problem = str(file_error(error))
        elif is_shortage(error):
            problem = f"{shortage(error)}: use fewer --jobs or a smaller --batch"
    return Outcome(task.training, text, problem, details, round(time.perf_counter() - begin, 2))
