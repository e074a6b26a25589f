"""Small pieces of text that messages, tables and pages share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import quote


def few(names: Iterable[str], count: int = 3) -> str:
    """Return the first `count` names and the number of the others: `a, b, c and 4 more`. A count of 0 means all."""
    names = [readable(name) for name in names]
    if count <= 0 or len(names) <= count:
        return ", ".join(names)
    return ", ".join(names[:count]) + f" and {len(names) - count} more"


def duration(seconds: float) -> str:
    """Return a duration with units: `42 s`, `10 min 25 s` or `3 h 33 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"


def clock(seconds: float, decimals: int = 0) -> str:
    """Return a time as h:mm:ss, with `decimals` digits after the second. Negative times count as 0."""
    units = 10**decimals
    ticks = round(max(seconds, 0.0) * units)
    whole, part = divmod(ticks, units)
    text = f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{text}.{part:0{decimals}d}" if decimals else text


def readable(text: object) -> str:
    """Return a name, a path or a message as one line of visible UTF-8.

    Every character that a terminal would obey or not show is written as its bytes: `%0A` for a line break, `%1B` for
    the start of an escape sequence, `%E2%80%AE` for a change of direction, `%DF` for a byte that is not UTF-8.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else quote(_bytes(letter), safe="") for letter in text)


def visible(text: str) -> str:
    """Return a text of several lines, each as `readable` returns it."""
    return text if text.isprintable() else "\n".join(map(readable, text.split("\n")))


def utf8(text: str) -> bytes:
    """Return text for a file. Bytes of a file name that are not UTF-8 come back as they were."""
    # Other half surrogates, such as those of JSON, have no bytes.
    return re.sub("[\ud800-\udc7f\udd00-\udfff]", lambda m: readable(m[0]), text).encode("utf-8", "surrogateescape")


def _bytes(letter: str) -> bytes:
    # A byte of a file name that is not UTF-8 is that byte. Other half surrogates, such as those of JSON, have no bytes.
    return letter.encode("utf-8", "surrogateescape" if "\udc80" <= letter <= "\udcff" else "surrogatepass")


def file_name(text: str, reserve: int = 16) -> str:
    """Return a name as `readable` does, short enough to be the name of a file.

    Args:
        text: The name, without folders.
        reserve: Bytes to keep for a suffix. File systems take 255 bytes in all.

    Returns:
        The name; where it is too long, its beginning and a hash of all of it.
    """
    name = readable(text)
    data = name.encode()
    if len(data) <= 255 - reserve:
        return name
    mark = f"~{hashlib.sha256(data).hexdigest()[:8]}"
    return data[: 255 - reserve - len(mark)].decode(errors="ignore") + mark
