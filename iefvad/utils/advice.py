"""Warnings with their remedy, as the terminal, the pages and the JSON files show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Advice:
    """A warning that says what to do.

    Attributes:
        cause: What is wrong, one sentence.
        remedy: What to do about it, one sentence.
    """

    cause: str
    remedy: str

    def __str__(self) -> str:
        """Return both sentences."""
        return f"{self.cause} {self.remedy}"


def as_json(warnings: Iterable[Advice]) -> list[dict[str, str]]:
    """Return warnings as JSON files hold them: a list of objects with `cause` and `remedy`."""
    return [asdict(warning) for warning in warnings]


def near_one(score: float) -> str:
    """Return a score with three digits, or with as many as it takes to tell it from 1."""
    if not 0.999 <= score < 1:
        return f"{score:.3g}"
    return next((text for digits in range(3, 18) if float(text := f"{score:.{digits}f}") < 1), repr(score))
