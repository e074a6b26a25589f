"""From cases to rows: every provider of a case checked, measured for memory, timed, and rated against the ceilings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench import memory, timing
from bench.ceilings import Ceilings, dtype_name
from bench.operators import CALLS, OPERATORS, Case, Work
from bench.providers import COMPILED, PROVIDERS
from bench.timing import Budget, Timing
from bench.trial import Trial

PASSES = ("forward", "backward", "both")


@dataclass
class Row:
    """One provider on one pass of a case. Times in ms, rates in 1e9/s; None or a reason where not measured.

    `peak_mb` is the highest memory during one run above that before it, outputs and gradients included; the row of
    the longest pass has it.
    """

    op: str
    size: str
    shape: list[int]
    dtype: str
    direction: str
    provider: str
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    repeats: int = 0
    first_call_s: float | None = None
    gigabytes: float | None = None
    gigaoperations: float | None = None
    gigabytes_per_s: float | None = None
    gigaoperations_per_s: float | None = None
    ceiling: str | None = None
    fraction_of_ceiling: float | None = None
    times_reference: float | None = None
    times_plain: float | None = None
    peak_mb: float | None = None
    error: float | None = None
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


def measure_case(case: Case, device: torch.device, budget: Budget, providers: Iterable[str] = PROVIDERS) -> list[Row]:
    """Rows of all providers and passes of one case; a provider that does not serve has one row with the reason."""
    trial = Trial(case, device, providers, quick=budget.quick)
    peaks: dict[str, float] = {}

    def first(provider: str, seconds: float) -> None:
        trial.check(provider)
        if seconds <= budget.single_seconds:
            peaks[provider] = memory.peak_of(lambda: trial.runners[provider](0), device)

    timings, failures = timing.interleave(trial.runners, budget, compiled=COMPILED, on_first=first)
    rows = _rows(case, timings, {**trial.reasons, **failures})
    for row in rows:
        row.error = trial.errors.get(row.provider)
        if row.direction == _longest(case) and row.median_ms is not None:
            row.peak_mb = peaks.get(row.provider)
    return rows


def _longest(case: Case) -> str:
    return "both" if case.trains else "forward"


def _rows(case: Case, timings: dict[str, Timing], reasons: dict[str, str]) -> list[Row]:
    forward, backward = OPERATORS[case.op].work(case)
    works = {"forward": forward, "backward": backward, "both": forward + backward}
    rows = []
    for direction in PASSES if case.trains else PASSES[:1]:
        medians = {name: found.quartiles(direction)[1] for name, found in timings.items()}
        for name, measured in timings.items():
            row = _empty_row(case, direction, name)
            _fill(row, measured, works[direction])
            if name != "reference" and "reference" in medians:
                row.times_reference = _ratio(medians["reference"], medians[name])
            if name != "plain" and "plain" in medians:
                row.times_plain = _ratio(medians["plain"], medians[name])
            rows.append(row)
    for name, reason in reasons.items():
        row = _empty_row(case, _longest(case), name)
        row.reason = reason
        rows.append(row)
    return rows


def _ratio(slow: float, fast: float) -> float | None:
    found = timing.ratio(slow, fast)
    return found if math.isfinite(found) else None


def _empty_row(case: Case, direction: str, provider: str) -> Row:
    return Row(case.op, case.size, list(case.shape), dtype_name(case.dtype), direction, provider)


def _fill(row: Row, measured: Timing, work: Work) -> None:
    low, median, high = measured.quartiles(row.direction)
    row.q1_ms, row.median_ms, row.q3_ms = low * 1e3, median * 1e3, high * 1e3
    row.repeats, row.first_call_s = len(measured.samples[row.direction]), measured.first_seconds
    row.gigabytes, row.gigaoperations = work.bytes / 1e9, work.operations / 1e9
    row.gigabytes_per_s = row.gigabytes / median
    row.gigaoperations_per_s = row.gigaoperations / median
    if row.size not in CALLS:
        row.ceiling = "copy" if OPERATORS[row.op].ceiling == "copy" else f"gemm_{row.dtype}"


def rate(rows: Iterable[Row], ceilings: dict[str, float]) -> None:
    """Sets each row's fraction of its ceiling, where that ceiling was measured."""
    for row in rows:
        achieved = row.gigabytes_per_s if row.ceiling == "copy" else row.gigaoperations_per_s
        limit = ceilings.get(row.ceiling or "")
        if achieved is not None and limit:
            row.fraction_of_ceiling = achieved * 1e9 / limit


def measure(
    cases: Sequence[Case],
    device: torch.device,
    ceilings: Ceilings,
    budget: Budget,
    providers: Iterable[str] = PROVIDERS,
    *,
    seconds: float = math.inf,
    progress: Callable[[str], None] = lambda text: None,
    known: Callable[[Case], list[Row] | None] = lambda case: None,
    keep: Callable[[Case, list[Row]], None] = lambda case, rows: None,
) -> list[Row]:
    """Rows of all cases; `progress` is called with the case at hand.

    A case whose rows are `known` is not measured; `keep` is called with the rows of each that was.

    No case begins after so many seconds; as those of size "training" come first, it is the others that are left out.

    All are measured with the number of threads that torch has at the beginning.

    The ceilings are measured before each operator (quick: the first) and after the last, so that a machine that is
    busy or throttled for a while does not lower them; fractions are of the best.
    """
    chosen = list(providers)
    found: dict[Case, list[Row]] = {}
    last = ""
    threads = torch.get_num_threads()
    began = time.perf_counter()
    for number, case in enumerate(sorted(cases, key=lambda case: case.size != "training"), 1):
        before = known(case)
        if before is not None:
            found[case] = before
            continue
        if time.perf_counter() - began > seconds:
            found[case] = _rows(case, {}, dict.fromkeys(chosen, "no time was left"))
            continue
        shape = "×".join(map(str, case.shape))
        progress(f"{number}/{len(cases)} {case.op} {case.size} ({shape}) {dtype_name(case.dtype)}")
        if not last or (case.op != last and not budget.quick):
            ceilings.measure()
        last = case.op
        torch.set_num_threads(threads)  # as many for every provider, whatever the one before has set
        try:
            found[case] = measure_case(case, device, budget, chosen)
        except Exception as error:  # such as too little memory for the inputs; the other cases go on
            found[case] = _rows(case, {}, dict.fromkeys(chosen, timing.explanation(error)))
        keep(case, found[case])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    ceilings.measure()
    rows = [row for case in cases for row in found[case]]
    rate(rows, ceilings.best())
    return rows
