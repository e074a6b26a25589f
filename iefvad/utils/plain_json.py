"""JSON files that anybody may have changed: one error that names the file, whatever is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from iefvad.utils.errors import UserError
from iefvad.utils.files import open_regular
from iefvad.utils.values import NATURAL, SEED, limited, problem, problems

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
        with open_regular(path) as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MiB")
        return parse_json(data)
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


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log.jsonl, one per epoch and model.

    Lines that are cut off or damaged are left out: it is only a log. A row has "model", "seed" and "epoch", and all its
    values are texts or finite numbers, or nothing.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and not list(problems(dict.fromkeys(LogRow.__annotations__) | row, LogRow)):
            values = (problem(value, float | str | bool | None) for value in row.values())
            rows += [row] if not any(values) else []
    return rows


@dataclass
class LogRow:
    """What every row of a log.jsonl has, and the numbers that tables and plots take from it."""

    model: str
    seed: int = field(metadata=limited(SEED))
    epoch: int = field(metadata=limited(NATURAL))
    phase: str | None = None
    loss: float | None = None
    loss_cls: float | None = None
    loss_kl: float | None = None
    loss_reg: float | None = None
    lr: float | None = None
    seconds: float | None = None
    val_auc: float | None = None
    val_ap: float | None = None
    val_loss: float | None = None
    test_auc: float | None = None
    test_ap: float | None = None
    q_mean: float | None = None
    q_min: float | None = None
    q_max: float | None = None
    nu_image: float | None = None
    nu_event: float | None = None
