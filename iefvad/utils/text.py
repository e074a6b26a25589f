"""Small pieces of text that messages, tables and pages share."""

from __future__ import annotations

from collections.abc import Iterable


def few(names: Iterable[str], count: int = 3) -> str:
    """Return the first `count` names and the number of the others: `a, b, c and 4 more`. A count of 0 means all."""
    names = list(names)
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
