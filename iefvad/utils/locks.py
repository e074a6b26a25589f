"""A folder that one process at a time works in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from iefvad.utils.errors import UserError
from iefvad.utils.files import storage_errors


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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise HeldError(
                f"{holder} works in {folder}: wait until it ends, or choose another --out for this one."
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
