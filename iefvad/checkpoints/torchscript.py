"""Tensors of a TorchScript archive, such as OpenAI's CLIP files, without running or compiling anything in it.

An archive is a zip file. `data.pkl` describes the modules as objects with attributes, and `data/N` has the bytes of the
tensors. The reader here replaces every class by one that only keeps attributes, and refuses every other name.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}


class _Object:
    """Stands for an object of any class of the archive. The unpickler fills its attributes."""


class _Reader(pickle.Unpickler):
    """Unpickles modules of TorchScript. It knows these names only, so nothing of the archive can run."""

    def __init__(self, data: bytes, storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._storage = storage
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Object
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _first
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a module")

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, _, count = pid
        if key not in self._storages:
            data = bytearray(self._storage(str(key)))
            dtype = _DTYPES[kind]
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(self._storages[key]) < count:
            raise pickle.UnpicklingError("a tensor is cut off")
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)  # it refuses sizes outside the storage


def _first(value: Any, _: str) -> Any:
    return value


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a zip archive with TorchScript code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive, with the names that its state dict would have.

    Raises:
        pickle.UnpicklingError: The archive holds something other than modules and tensors.
        zipfile.BadZipFile, KeyError, ValueError, RuntimeError: The archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
        names = set(archive.namelist())
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
            raise pickle.UnpicklingError("the numbers are big-endian")
        found = _Reader(archive.read(f"{root}/data.pkl"), lambda key: archive.read(f"{root}/data/{key}")).load()
        return dict(_tensors(found, ""))


def _tensors(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, item in vars(value).items() if isinstance(value, _Object) else ():
        if isinstance(item, Tensor):
            yield prefix + name, item
        else:
            yield from _tensors(item, f"{prefix}{name}.")
