"""The log of a run: log.jsonl, one JSON object per epoch and model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iefvad.utils.files import read_regular
from iefvad.utils.plain_json import LARGEST, parse_json
from iefvad.utils.values import NATURAL, SEED, limited, problem, problems


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


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log.jsonl, one per epoch and model.

    A log that cannot be read is empty, and lines that are cut off or damaged are left out: it is only a log. A row has
    "model", "seed" and "epoch", and all its values are texts or finite numbers, or nothing.
    """
    rows = []
    try:
        text = read_regular(path, LARGEST).decode(errors="replace")
    except (OSError, ValueError):
        return []
    for line in text.splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and not list(problems(dict.fromkeys(LogRow.__annotations__) | row, LogRow)):
            values = (problem(value, float | str | bool | None) for value in row.values())
            rows += [row] if not any(values) else []
    return rows
