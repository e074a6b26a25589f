"""The engine for one machine: processes that take one training after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from iefvad.sweep.engine import Outcome, Task, work
from iefvad.utils.interrupts import deferred
from iefvad.utils.threads import use_threads

START: Literal["spawn", "fork"] = "spawn"
"""How processes start. Forked ones would inherit the threads of torch in a broken state."""


def run_local(tasks: Sequence[Task], out: Path, devices: Sequence[str], threads: int) -> Iterator[Outcome]:
    """Do tasks in processes of this machine, and yield how each ended, in any order.

    A process that dies costs the training it was at. Closing the iterator ends all processes.

    Args:
        tasks: The tasks, which are begun in this order.
        out: Folder of the sweep.
        devices: One device per process.
        threads: CPU threads per process.
    """
    waiting = deque(tasks)
    workers: list[_Worker] = []
    try:
        for device in devices[: len(tasks)]:
            with _for_children(threads):  # to the end, so that an interrupt finds the process in the list
                workers.append(_Worker(out, device, threads))
            workers[-1].give(waiting.popleft())
        while busy := {worker.connection: worker for worker in workers if worker.task is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]
                outcome = worker.take()
                if outcome is None:
                    outcome = worker.death()
                    if waiting:
                        with _for_children(threads):
                            workers[workers.index(worker)] = worker = _Worker(out, worker.device, threads)
                if waiting:
                    worker.give(waiting.popleft())
                yield outcome
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process, seen from the one that started it."""

    def __init__(self, out: Path, device: str, threads: int) -> None:
        context: Any = multiprocessing.get_context(START)  # its type depends on START
        self.connection, theirs = context.Pipe()
        self.device = device
        self.task: Task | None = None
        self.process = context.Process(target=_serve, args=(theirs, out, device, threads), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        """Begin a task. A process that has died meanwhile is noticed by `take`."""
        self.task = task
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def take(self) -> Outcome | None:
        """Return how the task ended; None where the process died."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            return None
        self.task = None
        return outcome

    def death(self) -> Outcome:
        """Return the outcome of the task that a dead process was at."""
        self.process.join(10)
        code = self.process.exitcode
        how = f"ended with status {code}" if code is None or code >= 0 else f"was killed by signal {-code}"
        hint = " (often a lack of memory: use fewer --jobs)" if code == -signal.SIGKILL else ""
        assert self.task is not None
        outcome = Outcome(self.task.training, problem=f"its process {how}{hint}; start the same command again to retry")
        self.task = None
        return outcome

    def end(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def _for_children(threads: int) -> Iterator[None]:
    """Start children that have this number of threads from the start, and that leave Ctrl-C to their parent."""
    if START == "spawn" and sys.platform != "win32":
        resource_tracker.ensure_running()  # the first process would start it, which lets Ctrl-C through again
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with deferred():
            yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _serve(connection: Connection, out: Path, device: str, threads: int) -> None:
    """Do tasks until the connection ends: the main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):  # a forked process has those of the command
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    use_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore, which is left over when this process is killed
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(work(connection.recv(), out, device))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, in the middle of a training too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
