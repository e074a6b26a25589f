"""Checksums of tensors in files: they show damage that left the file's structure intact, such as one flipped bit.

They are XXH3 of 64 bits, as text of 16 hexadecimal digits: 10 GB/s and more on one core. They protect from accidents,
not from intent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

KEY = "xxh3"
"""Entry of a safetensors header: a JSON object of checksums by the name of the tensor."""


def checksum(*values: Tensor | np.ndarray | memoryview) -> str:
    """Return the checksum of the bytes of contiguous values, one after the other."""
    digest = xxhash.xxh3_64()
    for value in values:
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor | np.ndarray | memoryview) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    # A view of zero elements has no buffer that the library takes.
    return (value.data if isinstance(value, np.ndarray) else value) if value.nbytes else b""


def to_header(checks: Mapping[str, str | Sequence[str]]) -> str:
    """Return the entry `KEY` of a header."""
    return json.dumps(checks, sort_keys=True, separators=(",", ":"))


def from_header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the checksums of a header; empty where it has none, as in files of earlier versions and of others.

    Raises:
        ValueError: the entry is damaged.
    """
    checks = json.loads((metadata or {}).get(KEY, "{}"))
    if not isinstance(checks, dict):
        raise ValueError("the checksums in the header are damaged")
    return checks
