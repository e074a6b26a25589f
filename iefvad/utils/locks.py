"""A folder that one process at a time works in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from iefvad.utils.errors import UserError
from iefvad.utils.files import storage_errors

PATIENCE = 2.0
"""Seconds to wait for the processes of a killed command to be gone."""


class HeldError(UserError):
    """Another process holds the folder."""


@contextlib.contextmanager
def locked(path: Path, folder: Path) -> Iterator[None]:
    """Hold a folder by a lock on a file in it. A process that was killed holds nothing.

    Args:
        path: The file of the lock; it is made, and says who holds it.
        folder: The folder, for the message. Its parents must exist.

    Raises:
        HeldError: another process holds it.
        UserError: the file of the lock cannot be written.
    """
    with storage_errors(folder):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _take(descriptor)
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise HeldError(
                f"{holder} works in {folder}: wait until it ends, or choose another --out for this one."
            ) from error
        with storage_errors(folder):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> None:
    """Take the lock. Processes that were killed just now may need a moment to be gone."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
