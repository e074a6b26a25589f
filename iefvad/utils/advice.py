"""Warnings with their remedy, as the terminal, the pages and the JSON files show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Advice:
    """A warning that says what to do.

    Attributes:
        cause: What is wrong, one sentence or two.
        remedy: What to do about it.
    """

    cause: str
    remedy: str

    def __str__(self) -> str:
        """Return cause and remedy as one text."""
        return f"{self.cause} {self.remedy}"


def as_json(warnings: Iterable[Advice]) -> list[dict[str, str]]:
    """Return warnings as JSON files hold them: a list of objects with `cause` and `remedy`."""
    return [asdict(warning) for warning in warnings]


def from_json(rows: Iterable[Mapping[str, Any]]) -> list[Advice]:
    """Return the warnings that `as_json` wrote."""
    return [Advice(str(row["cause"]), str(row["remedy"])) for row in rows]


def score_text(score: float, style: str = ".3g") -> str:
    """Return a score in a format, or with as many digits as it takes to tell it from 1."""
    text = f"{score:{style}}"
    if not score < 1 or float(text) < 1:
        return text
    return next((text for digits in range(4, 18) if float(text := f"{score:.{digits}f}") < 1), repr(score))
