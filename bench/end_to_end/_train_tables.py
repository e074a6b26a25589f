"""Tables and targets of `bench train`, from the content of its result file."""

from __future__ import annotations

from typing import Any

from bench.end_to_end._ways import COMPILED, FUSED
from bench.tables import duration, significant, spread, text_table
from bench.targets import Target
from bench.timing import ratio

Result = dict[str, Any]
UCF_STEPS = 1250
"""Steps of ten epochs at UCF-Crime size: 8,000 normal clips in batches of 64."""


def _served(result: Result) -> dict[str, dict[str, Any]]:
    return {row["provider"]: row for row in result["results"] if row["median_ms"] is not None}


def step_table(result: Result) -> str:
    """One line per way: its step, and what ten epochs of UCF-Crime would take at that rate; reasons beneath."""
    last = "10 epochs of UCF-Crime" + ("" if result["size"]["is_ucf"] else ", extrapolated")
    header = ("step", "median", "quartiles", "runs", "of matrix product", "× reference", "× plain", "data wait", last)
    lines = []
    for name, row in _served(result).items():
        share, median = row["fraction_of_ceiling"], row["median_ms"]
        lines.append(
            (
                name,
                duration(median),
                spread(row["q1_ms"], median, row["q3_ms"]),
                str(row["repeats"]),
                "" if share is None else f"{share:.2f}",
                *("" if row[key] is None else significant(row[key]) for key in ("times_reference", "times_plain")),
                duration(result["waits_for_data_ms"][name]),
                "" if result["quick"] else _hours(full_run_seconds(result, name)),
            )
        )
    missing = [f"  {row['provider']}: {row['reason']}" for row in result["results"] if row["median_ms"] is None]
    return "\n".join([text_table(header, lines), *(["Not measured:", *missing] if missing else [])])


def full_run_seconds(result: Result, way: str) -> float:
    """Seconds of the steps of ten epochs at UCF-Crime size, by a way's step and its wait for data.

    Smaller sizes are scaled by the matrix products of a step; exact where the measured step is of that size.
    """
    seconds: float = (_served(result)[way]["median_ms"] + result["waits_for_data_ms"][way]) / 1e3
    return UCF_STEPS * seconds / result["size"]["share_of_ucf_step"]


def section_table(result: Result) -> str:
    """Milliseconds of each section, forward and backward, by way."""
    sections = result["sections_ms"]
    names = list(dict.fromkeys(name for parts in sections.values() for name in parts))
    lines = []
    for name in names:
        cells = []
        for parts in sections.values():
            whole = sum(parts.values())
            cells.append(f"{duration(parts[name])} {100 * parts[name] / whole:3.0f}%")
        lines.append((name, *cells))
    return "Where the time of a step goes (forward and backward):\n" + text_table(("", *sections), lines)


def memory_table(result: Result) -> str:
    """Peak memory of a step by way, and as a fraction of the plain way's."""
    peaks = result["memory"]
    if not peaks:
        return "Peak memory: not measured."
    base = next((record["peak_mb"] for record in peaks if record["provider"] == "plain"), None)
    lines = []
    for record in peaks:
        if record["peak_mb"] is None:
            lines.append((record["provider"], "", "", "", "", record["reason"] or ""))
            continue
        share = f"{record['peak_mb'] / base:.2f}" if base else ""
        sizes = (f"{record[key]:.0f} MB" for key in ("peak_mb", "state_mb", "step_mb"))
        lines.append((record["provider"], *sizes, share, ""))
    header = ("peak memory", "peak", "weights, optimiser, batch", "the step itself", "of plain", "")
    return text_table(header, lines)


def run_table(result: Result) -> str:
    """The trainer's whole runs."""
    size = result["size"]
    if not result["runs"]:
        return "Whole run: not measured."
    lines = []
    for run in result["runs"]:
        steps = size["steps_an_epoch"] * size["epochs"]
        lines.append((run["provider"], f"{steps}", _hours(sum(run["seconds_epochs"])), _hours(run["seconds"])))
    title = f"Whole run of the trainer, {size['epochs']} epochs over {size['clips']} clips:\n"
    return title + text_table(("", "steps", "epochs alone", "all"), lines)


def targets(device: str, result: Result) -> list[Target]:
    """The figures that training is to reach, each with what was measured."""
    served = _served(result)
    peaks = {record["provider"]: record["peak_mb"] for record in result["memory"]}

    def fastest(names: tuple[str, ...]) -> str | None:
        return min((name for name in names if name in served), key=lambda name: served[name]["median_ms"], default=None)

    def times(slow: str | None, fast: str | None) -> float | None:
        if slow is None or fast is None or slow not in served:
            return None
        return ratio(served[slow]["median_ms"], served[fast]["median_ms"])

    best, compiled = fastest(FUSED), fastest(COMPILED)
    own = "fused" if "fused" in served else None
    small = "" if result["size"]["is_ucf"] else "at the smaller size; "
    shares = {name: peaks[name] / peaks["plain"] for name in FUSED if peaks.get(name) and peaks.get("plain")}
    least = min(shares, key=lambda name: shares[name], default=None)
    memory = Target(
        "peak memory of a step: share of plain's",
        round(1 / 3, 3),
        shares[least] if least else None,
        at_most=True,
        note=small + _each(shares),
    )
    if device == "cpu":
        every = {name: found for name in FUSED if name in served and (found := times("plain", name)) is not None}
        note = small + _each(every)
        return [Target("training step, float32: times plain", 1.15, times("plain", own), note=note), memory]
    whole = {run["provider"]: run["seconds"] for run in result["runs"]}
    quickest = min(whole, key=lambda name: whole[name], default=None)
    seconds = whole[quickest] if quickest and result["size"]["is_ucf"] else None
    run = Target("ten epochs of UCF-Crime, the trainer's whole run: seconds", 60, seconds, at_most=True)
    run.note = quickest or ""
    return [
        Target("training step: times plain eager float32", 8, times("plain", best), note=small + (best or "")),
        Target("training step: times torch.compile", 1.5, times(compiled, best), note=f"{small}{best} to {compiled}"),
        Target("the same, both in float32", 1.5, times(compiled, own), note=f"{small}fused to {compiled}"),
        run,
        memory,
    ]


def _each(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {significant(value)}" for name, value in values.items())


def _hours(seconds: float) -> str:
    return f"{significant(seconds / 3600)} h" if seconds >= 3600 else duration(1e3 * seconds)
