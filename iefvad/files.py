"""Writing files so that a reader never sees half of one, and a full disk loses nothing that was complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from iefvad.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on failure it is removed.

    Creates missing parent folders. Raises UserError where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(error, path.parent) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def storage_error(error: OSError, folder: Path) -> Exception:
    """The UserError for a disk that is full or a folder that cannot be written; other errors come back unchanged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk that holds {folder} is full: free some space and start again with the same command."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return UserError(f"{folder} cannot be written to ({error.strerror}): choose another folder with --out.")
    return error


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
