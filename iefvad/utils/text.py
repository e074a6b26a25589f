"""Small pieces of text that messages, tables and pages share."""

from __future__ import annotations

from collections.abc import Iterable


def few(names: Iterable[str], count: int = 3) -> str:
    """Return the first `count` names and the number of the others: `a, b, c and 4 more`. 0 names all of them."""
    names = list(names)
    if count <= 0 or len(names) <= count:
        return ", ".join(names)
    return ", ".join(names[:count]) + f" and {len(names) - count} more"


def clock(seconds: float, decimals: int = 0) -> str:
    """Return a time as h:mm:ss, with `decimals` digits of the second."""
    units = 10**decimals
    ticks = round(max(seconds, 0.0) * units)
    whole, part = divmod(ticks, units)
    text = f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{text}.{part:0{decimals}d}" if decimals else text
