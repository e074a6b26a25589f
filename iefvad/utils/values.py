"""Types and ranges of settings and of values from files: one check for options, YAML, JSON and headers."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

SMALLEST = 1e-30
"""Lowest value of a setting that must be positive. Much smaller numbers are 0 in single precision."""
LONGEST = 10_000
"""Maximum length of a text or list among the settings. Nothing that a person writes is longer."""


@dataclass(frozen=True)
class Range:
    """Which numbers a setting takes. They are always finite.

    Attributes:
        least: Lowest value.
        most: Highest value.
        above: All values are greater than this.
        below: All values are smaller than this.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def problem(self, value: float) -> str | None:
        """Return what is wrong with a number, such as "must be at least 1, not 0"; None if nothing is."""
        must: str | None = None
        if isinstance(value, numbers.Integral):
            value = int(value)  # it may be too large for a float
        elif not math.isfinite(value):
            must = "be a finite number"
        if must is None:
            if self.least is not None and value < self.least:
                must = f"be at least {self.least}"
            elif self.above == 0 and 0 < value < SMALLEST:
                must = f"be at least {SMALLEST:g}"
            elif self.above is not None and value <= self.above:
                must = f"be greater than {self.above}"
            elif self.most is not None and value > self.most:
                must = f"be at most {self.most}"
            elif self.below is not None and value >= self.below:
                must = f"be below {self.below}"
        return f"must {must}, not {_shown(value)}" if must else None


COUNT = Range(1, 2**31 - 1)
NATURAL = Range(0, 2**31 - 1)
SEED = Range(0, 2**63 - 1)
POSITIVE = Range(above=0, most=1e9)
NOT_NEGATIVE = Range(0, 1e9)
FRACTION = Range(0, 1)
RATE = Range(above=0, most=100_000)
"""Frames per second."""
_ANY_INT = Range(-(2**31), 2**31 - 1)
_ANY_FLOAT = Range(-1e300, 1e300)


def problem(value: Any, hint: Any, within: Range | None = None) -> str | None:
    """Return what is wrong with a value, such as "must be a whole number, not 'abc'"; None if nothing is.

    Args:
        value: The value.
        hint: Its type: bool, int, float, str, dict, a Literal, a list of one of these, or a union of them.
        within: Range of its numbers, and of those in its list.
    """
    if not _fits(value, hint):
        return f"must be {_described(hint)}, not {_shown(value)}"
    if isinstance(value, (str, list)) and len(value) > LONGEST:
        return f"must have at most {LONGEST:,} {'letters' if isinstance(value, str) else 'entries'}, not {len(value):,}"
    if isinstance(value, str) and "\0" in value:
        return "must not contain the letter NUL"
    for number in value if isinstance(value, list) else (value,):
        if isinstance(number, numbers.Real) and not isinstance(number, bool):
            usual = _ANY_INT if isinstance(number, numbers.Integral) and float not in _members(hint) else _ANY_FLOAT
            if found := (within or usual).problem(number):  # type: ignore[arg-type]
                return found
    return None


def problems(values: Mapping[str, Any], cls: type) -> Iterator[tuple[str, str]]:
    """Yield name and problem of each value that a field of a dataclass does not take. Other names are left out.

    The types are those of the fields. The ranges are in their metadata as "within", also where a derived class defines
    a field again without it.
    """
    hints = _hints(cls)
    ranges = _ranges(cls)
    for name, value in values.items():
        if name in hints and (found := problem(value, hints[name], ranges.get(name))):
            yield name, found


def within(default: Any, limits: Range) -> Any:
    """Make a field of a dataclass with a default and a range."""
    return dataclasses.field(default=default, metadata={"within": limits})


def limited(limits: Range) -> Mapping[str, Range]:
    """Return the metadata of a dataclass's field with a range and without a default."""
    return {"within": limits}


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    optional = {item.name for item in dataclasses.fields(cls) if item.default is None}
    return {
        item.name: hints[item.name] | None if item.name in optional else hints[item.name]
        for item in dataclasses.fields(cls)
    }


@cache
def _ranges(cls: type) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for base in reversed(cls.__mro__):
        for name, item in base.__dict__.get("__dataclass_fields__", {}).items():
            if "within" in item.metadata and item.metadata["within"] is not None:
                found[name] = item.metadata["within"]
    return found


def _members(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return tuple(part for member in typing.get_args(hint) for part in _members(member)) if union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    for member in _members(hint):
        origin = typing.get_origin(member)
        if member is Any:
            return True
        if origin is typing.Literal:
            fits = any(value == choice and type(value) is type(choice) for choice in typing.get_args(member))
        elif origin is list:
            [kind] = typing.get_args(member)
            fits = isinstance(value, list) and all(_fits(item, kind) for item in value)
        elif member is float:
            fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
        elif member is int:
            fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        else:
            fits = isinstance(value, origin or member)
        if fits:
            return True
    return False


def _described(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "an object"}
    parts: list[str] = []
    for member in _members(hint):
        origin = typing.get_origin(member)
        if origin is typing.Literal:
            parts += [str(choice) for choice in typing.get_args(member)]
        elif origin is list:
            [kind] = typing.get_args(member)
            parts.append("a list" if kind is Any else f"a list, each of whose entries is {_described(kind)}")
        elif member is type(None):
            parts.append("nothing")
        else:
            parts.append(names.get(origin or member, str(member)))
    return ", ".join(parts[:-1]) + " or " * (len(parts) > 1) + parts[-1]


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"  # its digits would be pages, and Python may refuse them
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
