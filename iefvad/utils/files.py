"""Writing files so that a reader never sees half of one, and a full disk or a kill loses nothing that was complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from iefvad.utils.errors import UserError

PathLike = str | os.PathLike[str]

# A temporary file's name says who writes it: host, process, and the run of that process, since a container gives
# every start the same process id. That is how a later start tells what a kill left from what is being written.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_RUN = uuid.uuid4().hex[:8]
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_ABANDONED = 24 * 3600.0  # seconds after which a file of another host, whose processes we cannot see, counts as left


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on failure it is removed.

    Creates missing parent folders. Raises UserError where the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exchanged(path) as temporary:
            yield temporary
    except OSError as error:
        raise storage_error(error, path.parent) from error


@contextlib.contextmanager
def replacing_durably(path: Path, before: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Yield a new open file that takes the place of `path` once all of it is on the disk, not in a cache only.

    `before` runs just before it does. Errors of the file system come through as they are.
    """
    with _exchanged(path, before) as temporary, open(temporary, "xb") as file:
        yield file
        flush(file)


@contextlib.contextmanager
def _exchanged(path: Path, before: Callable[[], None] | None = None) -> Iterator[Path]:
    name = f".{_HOST}-{os.getpid()}-{_RUN}-{uuid.uuid4().hex[:8]}.tmp"  # never too long, whatever the file's own name
    temporary = path.with_name(name)
    try:
        yield temporary
        if before is not None:
            before()
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_left_over(folder: Path) -> int:
    """Remove temporary files that killed processes left below `folder`; returns how many.

    Those of a living process stay. Of other hosts, whose processes cannot be seen, only those a day old go.
    """
    removed = 0
    for path in folder.rglob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_being_written(path, *match.groups()):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def _is_being_written(path: Path, host: str, process: str, run: str) -> bool:
    try:
        if host != _HOST:
            return time.time() - path.stat().st_mtime < _ABANDONED
        if int(process) == os.getpid():
            return run == _RUN
        os.kill(int(process), 0)
    except (ProcessLookupError, FileNotFoundError, OverflowError):
        return False
    except OSError:
        return True  # someone else's process
    return True


def flush(file: BinaryIO) -> None:
    """Return once the file's content is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def storage_error(error: OSError, folder: Path, doing: str = "") -> Exception:
    """Translate an error of the file system into one that a user can act on.

    Args:
        error: The error.
        folder: The folder that was written to.
        doing: What was done, for the message, such as "storing NAME".

    Returns:
        The UserError for a full disk or for a folder that cannot be written to; other errors unchanged.
    """
    what = f" while {doing}" if doing else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left in {folder}{what}: free some space and start again with the same command. What was complete"
            " is kept."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return UserError(f"{folder} cannot be written to{what} ({error.strerror}): choose another folder with --out.")
    return error


@contextlib.contextmanager
def storage_errors(folder: Path, doing: str = "") -> Iterator[None]:
    """Turn every error of the file system in the block into a UserError that names the folder; see `storage_error`."""
    try:
        yield
    except OSError as error:
        explained = storage_error(error, folder, doing)
        if explained is error:
            what = f" while {doing}" if doing else ""
            explained = UserError(f"{folder} cannot be written to{what} ({error.strerror or error}): check the folder.")
        raise explained from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file at once, or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file (UTF-8) at once, or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON, readable and with stable key order; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_with(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer(temporary path)` make the file, then put it in place."""
    with replacing(path) as temporary:
        writer(temporary)
