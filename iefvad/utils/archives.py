"""Archives of arrays (.npz), whose sizes are looked at before they are unpacked."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

LARGEST = 4 << 30
"""Maximum number of bytes of an unpacked archive."""


def read_npz(path: Path, largest: int = LARGEST) -> dict[str, np.ndarray]:
    """Read all arrays of an archive. Pickled objects are refused.

    Args:
        path: The archive.
        largest: Maximum number of bytes of all arrays.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, contains pickled objects, or is larger than `largest` when it is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > largest:
                raise ValueError(f"unpacked it has {size / 1e9:.1f} GB, more than {largest / 1e9:.1f} GB")
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    _check_header(file, entry)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (
        EOFError,
        MemoryError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        SyntaxError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _check_header(file: object, entry: zipfile.ZipInfo) -> None:
    """Refuse an array that claims more bytes than its entry has: numpy would reserve them first."""
    version = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)  # type: ignore[arg-type]
    number = 1
    for length in shape:
        number *= length
    if not dtype.hasobject and number * dtype.itemsize > entry.file_size:
        raise ValueError(f"{entry.filename} claims the shape {shape}, for which it is too small")
