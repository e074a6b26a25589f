"""Archives of arrays (.npz), whose sizes are looked at before they are unpacked."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from pathlib import Path
from typing import IO

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
            names = Counter(entry.filename.removesuffix(".npy") for entry in archive.infolist())
            if twice := [name for name, count in names.items() if count > 1]:
                raise ValueError(f"it contains {twice[0]} twice")
            size = sum(entry.file_size for entry in archive.infolist())
            if size > largest:
                raise ValueError(f"unpacked it has {size / 1e9:.1f} GB, more than {largest / 1e9:.1f} GB")
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    _check_header(file, entry)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError:
        raise
    except Exception as error:  # of zipfile, of its decompressors, and of numpy, which parses a header as Python
        raise ValueError(str(error) or type(error).__name__) from error


def _check_header(file: IO[bytes], entry: zipfile.ZipInfo) -> None:
    """Refuse an array whose shape does not have the bytes of its entry: numpy reserves the shape's bytes first."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    size = dtype.itemsize * math.prod(shape)
    if not dtype.hasobject and (min(shape, default=0) < 0 or size != entry.file_size - file.tell()):
        raise ValueError(f"{entry.filename} claims the shape {shape}, which does not fit its size")
