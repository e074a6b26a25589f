"""Metrics as rows of tables, and tables as plain text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iefvad.scoring.seeds import Spread, quantity
from iefvad.utils.text import readable


def headline_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the main table, one per model. With several seeds the values are `Spread`s.

    Args:
        metrics: Model → its object of metrics.json, or what `metrics.evaluate` returns.
    """
    rows = []
    for model, found in metrics.items():
        rows.append(
            {"model": model}
            | {
                title: quantity(found, key)
                for title, key in (
                    ("AUC", "auc"),
                    ("AP", "ap"),
                    ("Ano-AUC", "ano_auc"),
                    ("Brier", "brier"),
                    ("ECE", "ece"),
                )
            }
            | {field: quantity(found, "weights", field, "overall") for field in ("w_img", "w_evt")}
        )
    return rows


def class_rows(metrics: Mapping[str, Mapping[str, Any]], key: str = "auc") -> list[dict[str, Any]]:
    """Return the rows of the per-class table: class, number of videos, then one column per model.

    Args:
        metrics: Model → its object of metrics.json, or what `metrics.evaluate` returns.
        key: "auc" or "ap".
    """
    names = sorted({c for found in metrics.values() for c in found.get("per_class") or {}})
    rows: list[dict[str, Any]] = []
    for name in names:
        videos = [(found.get("per_class") or {}).get(name, {}).get("videos", 0) for found in metrics.values()]
        row: dict[str, Any] = {"class": name, "videos": max(map(int, videos))}
        rows.append(row | {model: quantity(found, "per_class", name, key) for model, found in metrics.items()})
    return rows


def cell(value: Any) -> str:
    """Return the text of one table cell: floats with 4 decimals, a dash for None, NaN and infinity.

    A `Spread` is written as mean ± deviation.
    """
    if value is None:
        return "-"
    if isinstance(value, Spread):
        return cell(value.mean) + (f" ± {cell(value.std)}" if value.std is not None else "")
    if isinstance(value, (float, np.floating)):
        return f"{value:.4f}" if np.isfinite(value) else "-"
    return str(value)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, width: int | None = None) -> str:
    """Return rows as an aligned plain-text table.

    Args:
        rows: Values by column title.
        columns: Titles of the columns that are shown. By default all keys in order of appearance, without those that
            are always None.
        width: Number of characters per line. Columns that do not fit follow in further tables below, each with the
            first columns of text again. 0: no limit. By default that of the terminal, without limit in a pipe.
    """
    if columns is None:
        keys = list(dict.fromkeys(key for row in rows for key in row))
        columns = [key for key in keys if any(row.get(key) is not None for row in rows)]
    texts = [[readable(cell(row.get(key))) for key in columns] for row in rows]
    numeric = [all(not isinstance(row.get(key), str) for row in rows) for key in columns]
    widths = [max([len(key), *(len(line[i]) for line in texts)]) for i, key in enumerate(columns)]

    def aligned(line: Sequence[str], chosen: Sequence[int]) -> str:
        padded = (line[i].rjust(widths[i]) if numeric[i] else line[i].ljust(widths[i]) for i in chosen)
        return "  ".join(padded).rstrip()

    lines = [columns, ["-" * w for w in widths], *texts]
    parts = _folded(widths, numeric, _terminal_width() if width is None else width)
    return "\n\n".join("\n".join(aligned(line, chosen) for line in lines) for chosen in parts)


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else 0


def _folded(widths: Sequence[int], numeric: Sequence[bool], limit: int) -> list[list[int]]:
    """Divide columns into parts that are no wider than a limit; each begins with the first columns of text."""
    heads = next((i for i, number in enumerate(numeric) if number), len(widths))
    heads = max(1, heads) if heads < len(widths) else 1
    parts = [list(range(min(heads, len(widths))))]
    for i in range(heads, len(widths)):
        chosen = [*parts[-1], i]
        if limit and len(parts[-1]) > heads and sum(widths[k] + 2 for k in chosen) - 2 > limit:
            parts.append([*range(heads), i])
        else:
            parts[-1] = chosen
    return parts
