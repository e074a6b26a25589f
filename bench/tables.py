"""Results as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bench.measure import Row

HEADER = (
    "case",
    "pass",
    "provider",
    "median",
    "quartiles",
    "runs",
    "rate",
    "of ceiling",
    "× reference",
    "× plain",
    "peak",
)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns of equal width, the first `left` flush left and the others flush right; trailing blanks removed."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        parts = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def duration(milliseconds: float) -> str:
    """Three significant digits, such as ``12.3 µs``, ``4.56 ms``, ``51.2 s``."""
    for limit, factor, unit in ((0.9995, 1e3, "µs"), (999.5, 1.0, "ms")):
        if milliseconds < limit:
            return f"{significant(milliseconds * factor)} {unit}"
    return f"{significant(milliseconds / 1e3)} s"


def significant(value: float, digits: int = 3) -> str:
    """A number with at least so many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def _spread(row: Row) -> str:
    if row.median_ms is None or row.q1_ms is None or row.q3_ms is None:
        return ""
    if row.repeats < 2:
        return "one run"
    return spread(row.q1_ms, row.median_ms, row.q3_ms)


def spread(low: float, median: float, high: float) -> str:
    """How far the quartiles lie from the median, such as ``−2% +5%``."""
    return f"−{(1 - low / median) * 100:.0f}% +{(high / median - 1) * 100:.0f}%"


def _times(value: float | None) -> str:
    return "" if value is None else significant(value)


def result_table(rows: Sequence[Row]) -> str:
    """One line per row; a provider that did not serve has its reason beneath the table."""
    lines: list[tuple[str, ...]] = []
    last: tuple[str, str] | None = None
    for row in rows:
        if row.median_ms is None:
            continue
        case = f"{row.op} {row.size} ({'×'.join(map(str, row.shape))}) {row.dtype}"
        label = (
            case if last is None or last[0] != case else "",
            row.direction if last != (case, row.direction) else "",
        )
        last = (case, row.direction)
        if row.ceiling is None:
            rate = ""
        elif row.ceiling == "copy":
            rate = "" if row.gigabytes_per_s is None else f"{significant(row.gigabytes_per_s)} GB/s"
        else:
            rate = "" if row.gigaoperations_per_s is None else f"{significant(row.gigaoperations_per_s)} GFLOP/s"
        share = "" if row.fraction_of_ceiling is None else f"{row.fraction_of_ceiling:.2f}"
        lines.append(
            (
                *label,
                row.provider,
                duration(row.median_ms),
                _spread(row),
                str(row.repeats),
                rate,
                share,
                _times(row.times_reference),
                _times(row.times_plain),
                "" if row.peak_mb is None else f"{row.peak_mb:.0f} MB",
            )
        )
    parts = [text_table(HEADER, lines, left=3)]
    if missing := _missing(rows):
        parts.append("Not measured:\n" + "\n".join(missing))
    return "\n\n".join(parts)


def _missing(rows: Sequence[Row]) -> list[str]:
    """One line for each provider, operator and reason, with the sizes it holds for."""
    sizes: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.reason is not None:
            sizes.setdefault((row.provider, row.op, row.reason), []).append(f"{row.size} {row.dtype}")
    everywhere: dict[tuple[str, str], list[str]] = {}
    for (provider, op, reason), found in sizes.items():
        every = {f"{row.size} {row.dtype}" for row in rows if row.op == op} == set(found)
        everywhere.setdefault((provider, reason), []).append(op if every else f"{op} ({', '.join(found)})")
    return [f"  {provider}: {reason}: {', '.join(ops)}" for (provider, reason), ops in everywhere.items()]


def ceiling_line(ceilings: dict[str, float]) -> str:
    """Such as ``Ceilings: copy 27.1 GB/s, sgemm …``."""
    parts = []
    for name, value in ceilings.items():
        if name == "copy":
            parts.append(f"copy {significant(value / 1e9)} GB/s (read and written)")
        else:
            parts.append(f"matrix product {name.removeprefix('gemm_')} {significant(value / 1e9)} GFLOP/s")
    return "Ceilings: " + (", ".join(parts) or "none for these cases")


def memory_table(records: Sequence[dict[str, Any]]) -> str:
    """Peak memory by provider, and as a fraction of the reference's."""
    base = next((r["peak_mb"] for r in records if r["provider"] == "reference"), None)
    lines = []
    for record in records:
        if record["peak_mb"] is None:
            lines.append((record["provider"], "", "", "", record["reason"] or ""))
            continue
        share = "" if not base else f"{record['peak_mb'] / base:.2f}"
        lines.append((record["provider"], f"{record['peak_mb']:.0f} MB", f"{record['step_mb']:.0f} MB", share, ""))
    return text_table(("provider", "peak", "without inputs", "of reference", ""), lines)
