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
        StorageError: the disk is full, the folder cannot be written to, or `path` is something else than a file.
    """
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_a_file(path)
        with _exchanged(path) as temporary:
            yield temporary


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


def remove_left_over(folder: Path, *, deep: bool = True) -> int:
    """Remove the temporary files that killed processes left in a folder and its subfolders.

    Files of a living process stay. The processes of other hosts cannot be seen, so files of other hosts stay for a day.

    Args:
        folder: The folder.
        deep: Look into its subfolders too.

    Returns:
        The number of removed files.
    """
    removed = 0
    for path in folder.rglob(".*.tmp") if deep else folder.glob(".*.tmp"):
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
    """Write to a folder, so that what cannot be written is known before hours of work and not after.

    A folder that is missing is made and removed again, because the work may still turn out to be impossible.
    Temporary files that killed processes left directly in the folder are removed.

    Raises:
        StorageError: the folder cannot be made or written to, or the disk is full.
    """
    probe = folder / _temporary_name()
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with storage_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(bytes(4096))
            remove_left_over(folder, deep=False)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
            with contextlib.suppress(OSError):
                for place in missing:
                    place.rmdir()


def require_writable_file(path: Path) -> None:
    """Make sure that a file can be written, before the work for it.

    Raises:
        StorageError: its folder cannot be written to, the disk is full, or `path` is something else than a file.
    """
    require_writable(path.parent)
    with storage_errors(path.parent):
        _require_a_file(path)


def _require_a_file(path: Path) -> None:
    """Refuse to replace a folder or a device: a file would take the place of /dev/null for every program."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # there is nothing, or a link to nothing
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise StorageError(f"{path} is {what} and cannot be replaced by a file: choose another --out.")


_elsewhere: dict[tuple[Path, str], Path] = {}
"""The folder that took the results of a folder which failed, so that all of them are in one place."""


def rescued(write: Callable[[Path], Written], folder: Path, what: str) -> Written:
    """Write results, and where the folder fails write them elsewhere, so that nothing computed is lost.

    Args:
        write: Writes all files to the folder that it is given.
        folder: The folder.
        what: What the results are, for the message, such as "the results of a.mp4".

    Returns:
        What `write` returns.

    Raises:
        StorageError: the folder failed. The message names the folder that has the results instead: below the folder
            for temporary files, the user's, or the one that the command was started in.
    """
    try:
        with storage_errors(folder):
            return write(folder)
    except StorageError as error:
        for place in _places():
            elsewhere = _written_in(place, write, folder)
            if elsewhere is not None:
                raise StorageError(f"{error} Until then, find {what} in {elsewhere}.") from error
        raise error from None


def _written_in(place: str, write: Callable[[Path], Any], folder: Path) -> Path | None:
    """Write the results of `folder` below `place`. Return the folder that has them; None where this fails too."""
    elsewhere = _elsewhere.get((folder, place))
    new = elsewhere is None or not elsewhere.is_dir()
    try:
        if elsewhere is None or new:
            elsewhere = Path(tempfile.mkdtemp(prefix="iefvad-", dir=place)).absolute()
        write(elsewhere)
    except (OSError, StorageError):
        if new and elsewhere is not None:
            shutil.rmtree(elsewhere, ignore_errors=True)
        return None
    _elsewhere[folder, place] = elsewhere
    return elsewhere


def _places() -> Iterator[str]:
    """Yield folders that may take results."""
    with contextlib.suppress(OSError):
        yield tempfile.gettempdir()
    with contextlib.suppress(RuntimeError):
        yield str(Path.home())
    yield os.curdir


def rescued_file(write: Callable[[Path], Written], path: Path, what: str) -> Written:
    """Write one file, and where its folder fails write it elsewhere. As `rescued`; `write` is given the path."""
    return rescued(lambda folder: write(folder / path.name), path.parent, what)


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


def read_regular(path: PathLike, largest: int = 1 << 30) -> bytes:
    """Return the content of a regular file.

    Raises:
        NotAFileError: It is not a regular file.
        OSError: The file cannot be read.
        ValueError: It has more than `largest` bytes.
    """
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than {largest >> 20} MiB")
    return content


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
    if error.errno in _FULL:
        return StorageError(
            f"no space left in {folder}{what}{_FULL[error.errno]} and start again with the same command. What was"
            " complete is kept."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        reason = error.strerror
        if os.path.islink(folder) and not os.path.exists(folder):
            reason = f"it is a link to {os.readlink(folder)}, which does not exist"
        return StorageError(f"{folder} cannot be written to{what} ({reason}): choose another folder with --out.")
    return error


_FULL = {
    errno.ENOSPC: ": free some space",
    errno.EDQUOT: ", because your quota of the disk is used up: free some space",
    errno.EFBIG: " for a file of this size, which the limit `ulimit -f` or the disk does not allow: raise the limit",
}


def too_many_files(error: OSError) -> bool:
    """Return whether an error means that this process, or the system, has no descriptor left."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def file_error(error: OSError) -> Exception:
    """Translate an error of the file system that nobody has explained before, for the one line that a command prints.

    Args:
        error: The error.

    Returns:
        A UserError that names the file, where it is known, and a remedy.
    """
    named = isinstance(error.filename, str | bytes)
    path = Path(os.fsdecode(error.filename)) if named else Path()
    if too_many_files(error):
        return UserError(
            "too many files are open at once: raise the limit, such as `ulimit -n 4096`, and start again with the same"
            " command."
        )
    if isinstance(explained := storage_error(error, path.parent if named else path), UserError):
        return explained
    text = error.strerror or str(error) or type(error).__name__
    if named:
        return UserError(f"{str(path)[-300:]} cannot be used ({text}): check this path.")
    return UserError(f"{text}: check the disk and the network.")


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
        raise written_error(error, folder, doing) from error


def written_error(error: OSError, folder: Path, doing: str = "") -> Exception:
    """Translate any error of writing to a folder. Args as `storage_error`, which knows the frequent ones."""
    if too_many_files(error):
        return file_error(error)
    explained = storage_error(error, folder, doing)
    if explained is not error:
        return explained
    what = f" while {doing}" if doing else ""
    return StorageError(f"{folder} cannot be written to{what} ({error.strerror or error}): check the folder.")


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


def write_with(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` write to a temporary path, then put the file in its place. Raises as `replacing`."""
    with replacing(path) as temporary:
        writer(temporary)
