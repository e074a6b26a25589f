"""JSON files that anybody may have changed: one error that names the file, whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from iefvad.utils.errors import UserError
from iefvad.utils.files import read_regular

LARGEST = 256 << 20
"""Maximum size of a JSON file in bytes."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. NaN and infinity, which are not JSON, are refused.

    Raises:
        ValueError: it is not JSON, an object has a name twice, or it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it contains {constant}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # Python would take the last value without a word
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        remedy: What to do where it cannot be read, for the message.

    Raises:
        FileNotFoundError: it is missing.
        UserError: it cannot be read, is too large, or is not JSON.
    """
    try:
        return parse_json(read_regular(path, LARGEST))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:200]
        how = "cannot be read" if isinstance(error, OSError) else "cannot be read as JSON"
        raise UserError(f"{path} {how} ({reason}): {remedy}.") from error


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that contains an object. Args and errors as `read_json`."""
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: {remedy}.")
    return value
