"""Changes of bytes and of structures, drawn by a `random.Random`."""

from __future__ import annotations

import random
from typing import Any

_NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, 2**40, 2**63, -(2**63), 10**30, 1e308, -1e308, 1e-308, float("nan"),
            float("inf"), float("-inf"))  # fmt: skip
_WORDS = ("", " ", "abc", "null", "true", "nan", "-1", "../../etc/passwd", "a" * 5000, "\x00", "\u202e", "{}", "[]")


def changed_bytes(data: bytes, random: random.Random) -> tuple[str, bytes]:
    """Change a file's bytes in one way.

    Args:
        data: The bytes.
        random: Source of chance.

    Returns:
        What was done, and the changed bytes. They may equal `data` where it is empty.
    """
    size = len(data)
    place = random.randrange(size) if size else 0
    kind = random.choice(("flip", "byte", "cut", "extend", "zeros", "ones", "swap", "repeat", "drop", "empty", "head"))
    if kind == "flip":
        bit = random.randrange(8)
        return f"bit {bit} of byte {place} flipped", data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
    if kind == "byte":
        value = random.randrange(256)
        return f"byte {place} is {value}", data[:place] + bytes([value]) + data[place + 1 :]
    length = min(random.choice((1, 2, 4, 8, 16, 64, 512, 4096)), max(size - place, 0))
    if kind == "cut":
        return f"cut after {place} of {size} bytes", data[:place]
    if kind == "extend":
        return "64 random bytes at the end", data + random.randbytes(64)
    if kind == "zeros":
        return f"{length} zeros at {place}", data[:place] + bytes(length) + data[place + length :]
    if kind == "ones":
        return f"{length} × 255 at {place}", data[:place] + b"\xff" * length + data[place + length :]
    if kind == "swap":
        other = random.randrange(size) if size else 0
        low, high = sorted((place, other))
        return f"halves exchanged at {low} and {high}", data[:low] + data[high:] + data[low:high]
    if kind == "repeat":
        return f"{length} bytes at {place} twice", data[: place + length] + data[place:]
    if kind == "drop":
        return f"{length} bytes at {place} dropped", data[:place] + data[place + length :]
    if kind == "empty":
        return "empty file", b""
    return f"the first {min(size, 64)} bytes are random", random.randbytes(min(size, 64)) + data[64:]


def changed_value(value: Any, random: random.Random) -> tuple[str, Any]:
    """Change one place of a structure of dicts, lists, numbers and words, as JSON and YAML give it.

    Args:
        value: The structure. It is not changed itself.
        random: Source of chance.

    Returns:
        What was done, and the changed structure.
    """
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        kind = random.random()
        if kind < 0.1:
            return f"{key} is missing", {k: v for k, v in value.items() if k != key}
        if kind < 0.15:
            return f"{key} is named {key}x", {(f"{k}x" if k == key else k): v for k, v in value.items()}
        what, changed = changed_value(value[key], random)
        return f"{key}: {what}", {k: (changed if k == key else v) for k, v in value.items()}
    if isinstance(value, list) and value and random.random() < 0.7:
        place = random.randrange(len(value))
        if random.random() < 0.3:
            return f"[{place}] is missing", value[:place] + value[place + 1 :]
        what, changed = changed_value(value[place], random)
        return f"[{place}]: {what}", [*value[:place], changed, *value[place + 1 :]]
    new = random.choice((*_NUMBERS, *_WORDS, None, True, [], {}, [value], {"a": value}))
    return f"{str(value)[:30]!r} → {str(new)[:30]!r}", new
