"""Errors that mean too little memory, whoever raises them."""

from __future__ import annotations

import errno
import re

_SIGNS = (
    "allocate memory", "not enough memory", "out of memory", "insufficient memory", "bad_alloc", "bad alloc",
    "failed to map segment", "can't start new thread", "unable to allocate", "failed to allocate",
)  # fmt: skip
"""Parts of the messages of torch, numpy, OpenCV, FFmpeg, safetensors, the C++ library and the loader of libraries."""

_AMOUNT = re.compile(r"(?:allocate|Allocate|alloc) (?:an array of )?([\d.]+) ?(bytes|[KMGT]i?B)\b")
_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}


def is_shortage(error: BaseException) -> bool:
    """Return whether an error means that memory, or the number of threads, is at its limit."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _SIGNS)


def shortage(error: BaseException) -> str:
    """Say what is short: "not enough memory (4.0 GB more were needed)". For errors of `is_shortage`."""
    text = str(error)
    if "start new thread" in text:
        return "no further thread can be started: the limit of processes (`ulimit -u`) or of memory is reached"
    found = _AMOUNT.search(text)
    if found is None:
        return "not enough memory"
    number, unit = float(found[1]), found[2].lower()
    size = number * (1 if unit == "bytes" else 2 ** _UNITS[unit[0]])
    return f"not enough memory ({_readable(size)} more were needed)"


def _readable(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
