"""Safetensors files: the one place that reads, writes and describes them. Pickled files are refused."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iefvad.utils import checksums
from iefvad.utils.errors import UserError
from iefvad.utils.files import replacing
from iefvad.utils.text import few

PICKLED = frozenset((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"))
"""Suffixes of files that PyTorch pickles. Only `iefvad convert` reads them."""


def opened(path: Path, framework: Literal["pt", "np"] = "np") -> Any:
    """Return `safetensors.safe_open` of a file.

    Raises:
        OSError: the file cannot be opened, with the true reason: the library says "no such file" of every one.
    """
    try:
        return safe_open(str(path), framework=framework)
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDONLY))
        raise


@contextmanager
def open_tensors(path: Path, framework: Literal["pt", "np"] = "pt") -> Iterator[Any]:
    """Open a safetensors file to read its tensors one by one.

    Args:
        path: The file.
        framework: Whether tensors are read as `torch.Tensor` ("pt") or as `numpy.ndarray` ("np").

    Yields:
        The handle of `safetensors.safe_open`.

    Raises:
        UserError: the file is missing, pickled, damaged or not a safetensors file.
    """
    refuse_pickled(path)
    try:
        with opened(path, framework) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): download or make it again.") from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, and the metadata of its header, and compare them with their checksums.

    Files without checksums, such as those of other programs, are read as they are.

    Raises:
        UserError: as `open_tensors`, or a tensor or the metadata do not have their checksum.
    """
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    if checksums.KEY in metadata:
        recorded = metadata.pop(checksums.KEY)
        found = _checksums(tensors, metadata)
        if checksums.to_header(found) != recorded:
            raise UserError(f"{path} is damaged: {_damaged(found, recorded)}. Restore it, or make it again.")
    return tensors, metadata


def _checksums(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the checksum of each tensor, its type and shape included, and of the metadata."""
    checks = {
        name: checksums.checksum(memoryview(f"{value.dtype} {list(value.shape)}".encode()), value)
        for name, value in tensors.items()
    }
    return checks | {"": checksums.checksum(memoryview(json.dumps(metadata, sort_keys=True).encode()))}


def _damaged(found: Mapping[str, str], recorded: str) -> str:
    """Say which tensors do not have their checksums."""
    try:
        known = checksums.from_header({checksums.KEY: recorded})
    except ValueError:
        return "its checksums cannot be read"
    differing = sorted(name for name in {*found, *known} if found.get(name) != known.get(name))
    return f"{few([name or 'the metadata' for name in differing])} changed since it was written"


_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def writable(value: Tensor) -> bool:
    """Return whether `write_tensors` can write a tensor of this type of numbers."""
    return value.dtype in _DTYPES


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with checksums, completely or not at all. Equal tensors and metadata give equal bytes.

    The library itself writes metadata in an order that changes between processes, and builds the file in memory first.

    Args:
        path: The file; missing parent folders are created.
        tensors: Tensors by name, on any device. Of a view, only the visible part is written.
        metadata: Text entries of the header.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    # Wide types first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    plain = {name: tensors[name].detach().cpu().contiguous() for name in order}
    entries = [(name, _DTYPES[value.dtype], list(value.shape), value.nbytes) for name, value in plain.items()]
    kept = {name: text for name, text in (metadata or {}).items() if name != checksums.KEY}
    checks = checksums.to_header(_checksums(plain, kept))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header(entries, kept | {checksums.KEY: checks}))
        for value in plain.values():
            if value.numel():
                file.write(value.flatten().view(torch.uint8).numpy().data)


def header(
    tensors: Sequence[tuple[str, str, Sequence[int], int]],
    metadata: Mapping[str, str] | None = None,
    *,
    align: int = 8,
    before: int = 0,
) -> bytes:
    """Return the head of a safetensors file: an 8-byte length and a JSON header, padded with spaces.

    It serves files that are too large for memory: write the head, then the data of each tensor, in order.

    Args:
        tensors: Name, dtype as the format calls it ("F16"), shape and number of bytes of each tensor, in file order.
        metadata: Text entries of the header.
        align: The head and the first `before` bytes of data end at a multiple of this number of bytes.
        before: See `align`.
    """
    content: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape, size in tensors:
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text) + before) % align)
    return len(text).to_bytes(8, "little") + text


def map_half(path: str | os.PathLike[str], key: str) -> Tensor:
    """Map a float16 tensor of a safetensors file into memory, read-only and without reading it.

    Args:
        path: The file; it must be complete.
        key: Name of the tensor.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[key]
    array = np.memmap(path, "<f2", "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
    with warnings.catch_warnings():
        # Nothing writes to it. A writable map would count as used memory, and a large store would exceed it.
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


def refuse_pickled(path: Path) -> None:
    """Refuse a pickled file, recognised by its suffix or by its first bytes.

    Raises:
        UserError: the file is pickled.
    """
    if path.suffix.lower() in PICKLED or begins_as_pickle(path):
        converted = path.with_suffix(".safetensors")
        if converted == path:
            converted = path.with_name(f"{path.stem}_converted.safetensors")
        raise UserError(
            f"{path} is a pickled file, which can run code when it is read: convert it once with"
            f" `iefvad convert {path} {converted}` and give the result."
        )


def begins_as_pickle(path: Path) -> bool:
    """Tell whether a file begins like a zip archive (which `torch.save` writes) or like a pickle of protocol 2 to 5."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe how the names and shapes of two sets of tensors differ.

    Args:
        expected: The tensors that there should be.
        found: The tensors that there are.

    Returns:
        A text such as `missing: a, b; unexpected: c`, or "" where all agree.
    """
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    reshaped = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in sorted(expected.items())
        if name in found and found[name].shape != value.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{what}: {few(names)}" for what, names in kinds if names)


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hexadecimal) of names, shapes and float32 values, in order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().data if value.numel() else b"")
    return digest.hexdigest()


def to_half(values: Tensor, where: str) -> Tensor:
    """Round features to float16.

    Args:
        values: Features of any shape.
        where: Name of the features for the message.

    Returns:
        The features as float16; NaN and infinity stay.

    Raises:
        UserError: a finite value is beyond float16's range.
    """
    half = values.half()
    finite = torch.isfinite(half)
    if not finite.all():
        largest = values[torch.isfinite(values) & ~finite].abs()
        if largest.numel():
            raise UserError(f"{where} reach {largest.max().item():.3g}, beyond float16's range (65504): scale them")
    return half
