"""The providers of one case on the same inputs: each is checked against the reference, and timed run by run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import ief_kernels
import ief_kernels.reference
from bench.operators import OPERATORS, Case, Inputs, tensors_of
from bench.providers import PROVIDERS, Bound, bind, refusal
from bench.timing import Laps, Stopwatch

# ‖out − reference‖/‖reference‖ of sums in another order; half precision rounds each output.
TOLERANCE = {
    torch.uint8: 1e-6,
    torch.float64: 1e-10,
    torch.float32: 2e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 5e-3,
}
HALF = (torch.bfloat16, torch.float16)
# Input sets of a case fill at least this much, so that no run finds its inputs in a cache.
POOL_BYTES = 128 << 20


class _Runner:
    """One provider on all input sets of a case; keeps what its last run gave while `keep` is set."""

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
        passes = 2 if self.case.trains else 1
        total = [0.0] * passes
        for _ in range(self.case.calls):
            total = [sum(pair) for pair in zip(total, self._call(bound), strict=True)]
        seconds = [part / self.case.calls for part in total]
        if passes == 1:
            return {"forward": seconds[0]}
        return {"forward": seconds[0], "backward": seconds[1], "both": sum(seconds)}

    def _call(self, bound: Bound) -> list[float]:
        """Seconds of the passes of one call."""
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
        return seconds


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


class Trial:
    """Some providers of one case.

    Attributes:
        runners: by provider, in the order of `PROVIDERS`; call one with the number of a run.
        reasons: why the other providers are not tried.
        errors: what `check` found, by provider.
        exact: what all are compared with; empty until the reference was checked.
    """

    def __init__(self, case: Case, device: torch.device, providers: Iterable[str], *, quick: bool = False) -> None:
        operator = OPERATORS[case.op]
        torch._dynamo.reset()
        first = operator.inputs(case, device)
        size = sum(value.numel() * value.element_size() for value in first.values() if isinstance(value, Tensor))
        count = 2 if device.type == "cuda" else min(8, max(2, math.ceil(POOL_BYTES / max(size, 1))))
        sets = [first, *(operator.inputs(case, device) for _ in range(count - 1))]
        incoming = _incoming(case, first)
        self.case = case
        self.runners: dict[str, _Runner] = {}
        self.reasons: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        self.exact: list[Tensor] = []
        self._first, self._incoming, self._device = first, incoming, device
        for provider in sorted(providers, key=PROVIDERS.index):
            reason = refusal(provider, case, device, quick=quick)
            if reason is None:
                self.runners[provider] = _Runner(provider, case, sets, incoming, device)
            else:
                self.reasons[provider] = reason

    def check(self, provider: str) -> None:
        """Compares the provider's run with the reference's, on the same input set; ValueError if they differ.

        In half precision both are compared with the reference in float32, and a provider may be as far from it as
        twice the reference, which rounds every step. Nothing is compared until the reference has been checked.
        """
        runner = self.runners[provider]
        runner.keep = False
        kept, runner.kept = runner.kept, []
        if provider == "reference":
            self.exact = kept if self.case.dtype not in HALF else self._exact()
        if not self.exact:
            return
        found = self.errors[provider] = relative_error(kept, self.exact)
        allowed = max(TOLERANCE[self.case.dtype], 2 * self.errors["reference"])
        if provider != "reference" and not found <= allowed:
            raise ValueError(f"differs from reference by {found:.1e}")

    def _exact(self) -> list[Tensor]:
        """What the reference gives in float32 on the first input set."""

        def widened(value: Any) -> Any:
            half = isinstance(value, Tensor) and value.dtype in HALF
            return value.detach().float().requires_grad_(value.requires_grad) if half else value

        inputs = {name: widened(value) for name, value in self._first.items()}
        case = replace(self.case, dtype=torch.float32)
        runner = _Runner("reference", case, [inputs], [tensor.float() for tensor in self._incoming], self._device)
        runner(0)
        return runner.kept
