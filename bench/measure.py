"""From a case to its rows: every provider checked against the reference, then all timed in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import ief_kernels
import ief_kernels.reference
from bench import timing
from bench.ceilings import dtype_name
from bench.operators import OPERATORS, Case, Inputs, Work, tensors_of
from bench.providers import COMPILED, PROVIDERS, bind, refusal
from bench.timing import Budget, Laps, Stopwatch, Timing

PASSES = ("forward", "backward", "both")
# ‖out − reference‖/‖reference‖ of sums in another order; half precision rounds each output, plain code each step.
TOLERANCE = {
    torch.uint8: 1e-6,
    torch.float64: 1e-10,
    torch.float32: 2e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 5e-3,
}
# Input sets of a case fill at least this much, so that no run finds its inputs in a cache.
POOL_BYTES = 128 << 20


@dataclass
class Row:
    """One provider on one pass of a case. Times in ms, rates in 1e9/s; None or a reason where not measured."""

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
    error: float | None = None
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)


class _Runner:
    """One provider on all input sets of a case; keeps what its last untimed run gave, for comparison."""

    def __init__(
        self, provider: str, case: Case, sets: Sequence[Inputs], incoming: Sequence[Tensor], device: torch.device
    ) -> None:
        self.case = case
        self.bound = [bind(provider, case, inputs) for inputs in sets]
        self.incoming = incoming
        self.watch = Stopwatch(device, latency=case.latency)
        self.keep = True
        self.kept: list[Tensor] = []

    def __call__(self, index: int) -> Laps:
        bound = self.bound[index % len(self.bound)]
        gradients: tuple[Tensor, ...] = ()
        with torch.set_grad_enabled(self.case.trains):
            self.watch.start()
            result = bound.call()
            self.watch.mark()
            if self.case.trains:
                outputs = OPERATORS[self.case.op].graded(result)
                gradients = torch.autograd.grad(list(outputs), bound.leaves, list(self.incoming))
                self.watch.mark()
        seconds = self.watch.seconds()
        if self.keep:
            self.kept = [tensor.detach() for tensor in [*tensors_of(result), *bound.gather(gradients)]]
        return (
            {"forward": seconds[0], "backward": seconds[1], "both": sum(seconds)}
            if gradients
            else {"forward": seconds[0]}
        )


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest ‖found − expected‖/‖expected‖ over pairs of tensors; NaN and a wrong shape count as infinite."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return math.inf
        difference, scale = (a.double() - b.double()).norm().item(), b.double().norm().item()
        error = difference / scale if scale > 0 else difference
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _incoming(case: Case, inputs: Inputs) -> list[Tensor]:
    """Random gradients of the graded outputs."""
    if not case.trains:
        return []
    with torch.no_grad():
        try:
            result = getattr(ief_kernels, case.op)(**inputs)
        except Exception:  # a broken kernel is found, and named, when it is timed; here only shapes are wanted
            result = getattr(ief_kernels.reference, case.op)(**inputs)
        return [torch.randn_like(output) for output in OPERATORS[case.op].graded(result)]


def measure_case(
    case: Case,
    device: torch.device,
    ceilings: dict[str, float],
    budget: Budget,
    providers: Iterable[str] = PROVIDERS,
) -> list[Row]:
    """Rows of all providers and passes of one case; a provider that does not serve has one row with the reason."""
    operator = OPERATORS[case.op]
    torch._dynamo.reset()
    first = operator.inputs(case, device)
    size = sum(value.numel() * value.element_size() for value in first.values() if isinstance(value, Tensor))
    count = 2 if device.type == "cuda" else min(8, max(2, math.ceil(POOL_BYTES / max(size, 1))))
    sets = [first, *(operator.inputs(case, device) for _ in range(count - 1))]
    incoming = _incoming(case, first)
    reasons: dict[str, str] = {}
    runners: dict[str, _Runner] = {}
    for provider in sorted(providers, key=PROVIDERS.index):
        reason = refusal(provider, case, device, quick=budget.quick)
        if reason is None:
            runners[provider] = _Runner(provider, case, sets, incoming, device)
        else:
            reasons[provider] = reason
    errors: dict[str, float] = {}

    def compare(provider: str) -> None:
        runner = runners[provider]
        runner.keep = False
        if provider == "reference" or "reference" not in runners:
            return
        errors[provider] = relative_error(runner.kept, runners["reference"].kept)
        runner.kept = []
        if not errors[provider] <= TOLERANCE[case.dtype]:
            raise ValueError(f"differs from reference by {errors[provider]:.1e}")

    timings, failures = timing.interleave(runners, budget, compiled=COMPILED, on_first=compare)
    reasons |= failures
    return _rows(case, ceilings, timings, reasons, errors)


def _rows(
    case: Case,
    ceilings: dict[str, float],
    timings: dict[str, Timing],
    reasons: dict[str, str],
    errors: dict[str, float],
) -> list[Row]:
    forward, backward = OPERATORS[case.op].work(case)
    works = {"forward": forward, "backward": backward, "both": forward + backward}
    rows = []
    for direction in PASSES if case.trains else PASSES[:1]:
        medians = {name: found.quartiles(direction)[1] for name, found in timings.items()}
        for name, measured in timings.items():
            row = _empty_row(case, direction, name)
            row.error = errors.get(name)
            _fill(row, case, measured, works[direction], ceilings)
            if name != "reference" and "reference" in medians:
                row.times_reference = _ratio(medians["reference"], medians[name])
            if name != "plain" and "plain" in medians:
                row.times_plain = _ratio(medians["plain"], medians[name])
            rows.append(row)
    for name, reason in reasons.items():
        row = _empty_row(case, "both" if case.trains else "forward", name)
        row.reason, row.error = reason, errors.get(name)
        rows.append(row)
    return rows


def _ratio(slow: float, fast: float) -> float | None:
    found = timing.ratio(slow, fast)
    return found if math.isfinite(found) else None


def _empty_row(case: Case, direction: str, provider: str) -> Row:
    return Row(case.op, case.size, list(case.shape), dtype_name(case.dtype), direction, provider)


def _fill(row: Row, case: Case, measured: Timing, work: Work, ceilings: dict[str, float]) -> None:
    low, median, high = measured.quartiles(row.direction)
    row.q1_ms, row.median_ms, row.q3_ms = low * 1e3, median * 1e3, high * 1e3
    row.repeats, row.first_call_s = len(measured.samples[row.direction]), measured.first_seconds
    row.gigabytes, row.gigaoperations = work.bytes / 1e9, work.operations / 1e9
    row.gigabytes_per_s = row.gigabytes / median
    row.gigaoperations_per_s = row.gigaoperations / median
    if OPERATORS[case.op].ceiling == "copy":
        row.ceiling, rate, limit = "copy", row.gigabytes_per_s, ceilings.get("copy")
    else:
        row.ceiling = f"gemm_{row.dtype}"
        rate, limit = row.gigaoperations_per_s, ceilings.get(row.ceiling)
    if limit:
        row.fraction_of_ceiling = rate * 1e9 / limit


def measure(
    cases: Sequence[Case],
    device: torch.device,
    ceilings: dict[str, float],
    budget: Budget,
    providers: Iterable[str] = PROVIDERS,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Rows of all cases, one after another; `progress` is told which."""
    chosen = list(providers)
    rows: list[Row] = []
    for number, case in enumerate(cases, 1):
        shape = "×".join(map(str, case.shape))
        progress(f"{number}/{len(cases)} {case.op} {case.size} ({shape}) {dtype_name(case.dtype)}")
        try:
            rows += measure_case(case, device, ceilings, budget, chosen)
        except Exception as error:  # such as too little memory for the inputs; the other cases go on
            rows += _rows(case, ceilings, {}, dict.fromkeys(chosen, timing.explanation(error)), {})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows
