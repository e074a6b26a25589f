"""Writing files completely or not at all: a full disk or a kill never damages what was complete before."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from iefvad.utils.errors import UserError
from iefvad.utils.text import utf8

PathLike = str | os.PathLike[str]

Written = TypeVar("Written")

# The name of a temporary file says who writes it: host, process, and a random number of this start of the process,
# because a container gives every start the same process id. So a later start knows which files a kill has left behind.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_RUN = uuid.uuid4().hex[:8]
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_ABANDONED = 24 * 3600.0  # seconds after which a file of another host counts as left: its processes cannot be seen


def _temporary_name() -> str:
    return f".{_HOST}-{os.getpid()}-{_RUN}-{uuid.uuid4().hex[:8]}.tmp"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file as a whole. Missing parent folders are created.

    Args:
        path: The file.

    Yields:
        A temporary path in the same folder. On success it takes the place of `path`; on failure it is removed.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exchanged(path) as temporary:
            yield temporary
    except OSError as error:
        raise storage_error(error, path.parent) from error


@contextlib.contextmanager
def replacing_durably(path: Path, before: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Replace a file as a whole, once all of the new one is on the disk and not only in a cache.

    Args:
        path: The file; its folder must exist.
        before: Called just before the new file takes the place of `path`.

    Yields:
        The new file, open for writing bytes.

    Raises:
        OSError: an error of the file system, unchanged.
    """
    with _exchanged(path, before) as temporary, open(temporary, "xb") as file:
        yield file
        flush(file)


@contextlib.contextmanager
def _exchanged(path: Path, before: Callable[[], None] | None = None) -> Iterator[Path]:
    temporary = path.with_name(_temporary_name())  # without `path`'s name, which may be long
    try:
        yield temporary
        if before is not None:
            before()
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_left_over(folder: Path) -> int:
    """Remove the temporary files that killed processes left in a folder and its subfolders.

    Files of a living process stay. The processes of other hosts cannot be seen, so files of other hosts stay for a day.

    Args:
        folder: The folder.

    Returns:
        The number of removed files.
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


class StorageError(UserError):
    """A file cannot be written: the disk is full, or the folder does not allow it."""


def require_writable(folder: Path) -> None:
    """Make a folder and write to it, so that what cannot be written is known before hours of work and not after.

    Raises:
        StorageError: the folder cannot be made or written to, or the disk is full.
    """
    probe = folder / _temporary_name()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def rescued(write: Callable[[Path], Written], folder: Path, what: str) -> Written:
    """Write results, and where the folder fails write them elsewhere, so that nothing computed is lost.

    Args:
        write: Writes all files to the folder that it is given.
        folder: The folder.
        what: What the results are, for the message, such as "the results of a.mp4".

    Returns:
        What `write` returns.

    Raises:
        StorageError: the folder failed. The message names the temporary folder that has the results instead.
    """
    try:
        return write(folder)
    except StorageError as error:
        elsewhere = Path(tempfile.mkdtemp(prefix="iefvad-"))
        try:
            write(elsewhere)
        except StorageError:
            shutil.rmtree(elsewhere, ignore_errors=True)
            raise error from None
        raise StorageError(f"{error} Until then, {what} are in {elsewhere}.") from error


class NotAFileError(OSError):
    """A folder, a pipe, a socket or a device is where a file is expected."""


def open_regular(path: PathLike) -> io.FileIO:
    """Open a regular file for reading, without a buffer.

    A pipe, a socket or a device is refused at once, where opening it plainly could wait for ever.

    Raises:
        NotAFileError: It is not a regular file.
        OSError: The file cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if not stat.S_ISREG(os.stat(path).st_mode):  # asked first, because even opening a device may have an effect
        raise NotAFileError(errno.EINVAL, "a folder, a pipe, a socket or a device, and not a file", os.fspath(path))
    return io.FileIO(os.open(path, flags), closefd=True)


def flush(file: BinaryIO) -> None:
    """Wait until the content of an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def storage_error(error: OSError, folder: Path, doing: str = "") -> Exception:
    """Translate an error of the file system into one that tells the user what to do.

    Args:
        error: The error.
        folder: The folder that was written to.
        doing: What was being done, for the message, such as "storing NAME".

    Returns:
        A StorageError for a full disk, a quota, a limit of file sizes, and for a folder that cannot be written to;
        other errors unchanged.
    """
    what = f" while {doing}" if doing else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(
            f"no space left in {folder}{what}: free some space and start again with the same command. What was complete"
            " is kept."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return StorageError(
            f"{folder} cannot be written to{what} ({error.strerror}): choose another folder with --out."
        )
    return error


@contextlib.contextmanager
def storage_errors(folder: Path, doing: str = "") -> Iterator[None]:
    """Turn every error of the file system in the block into a UserError that names the folder.

    Args:
        folder: The folder that the block writes to.
        doing: What the block does, for the message, such as "storing NAME".

    Raises:
        UserError: an error of the file system occurred in the block.
    """
    try:
        yield
    except OSError as error:
        explained = storage_error(error, folder, doing)
        if explained is error:
            what = f" while {doing}" if doing else ""
            explained = StorageError(
                f"{folder} cannot be written to{what} ({error.strerror or error}): check the folder."
            )
        raise explained from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, completely or not at all. Raises as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, completely or not at all. Raises as `replacing`. Text is written as by `utf8`."""
    write_bytes(path, utf8(text))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, completely or not at all. Keys keep their order. Raises ValueError for NaN or infinity."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a log, one per line. Lines that are cut off or damaged are left out: it is only a log."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def write_with(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` write to a temporary path, then put the file in its place. Raises as `replacing`."""
    with replacing(path) as temporary:
        writer(temporary)
