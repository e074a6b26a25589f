"""Compiles, checks and times the configurations among which a `_triton.Tuner` chooses.

Checks come before times: a configuration that the compiler gets wrong must not win because it is fast.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

PAIRS, RUNS, WARM_UPS = 7, 3, 2
SLOW = 1.0
"""Seconds after which a compilation is announced. Kernels that are read from triton's cache take milliseconds."""
_SLICE = 1 << 24  # elements compared at once, so that a comparison needs little memory


class Named(Protocol):
    """What this file needs of a configuration."""

    @property
    def name(self) -> str:
        """The configuration as one word."""


Run = Callable[[Any], None]
Compared = Callable[[Any], Sequence[Tensor]]


class Found(NamedTuple):
    """The outcome of measuring.

    Attributes:
        best: index of the fastest configuration that is right.
        wrong: indices of those that gave other results than the first.
        failed: indices of those that cannot be compiled or launched.
        seconds: median time of a call by index, of those that were timed.
    """

    best: int
    wrong: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    seconds: Mapping[int, float] = MappingProxyType({})


class Task(NamedTuple):
    """What is measured.

    Attributes:
        name: of the kernel.
        configs: all configurations.
        run: launches the kernel once in a configuration.
        outputs: all that `run` writes. They are overwritten with NaN before a run that is checked.
        compared: what of them means the same in every configuration, after a run in the one given.
        device: the GPU.
        device_name: its name, for messages.
    """

    name: str
    configs: Sequence[Named]
    run: Run
    outputs: Sequence[Tensor]
    compared: Compared
    device: torch.device
    device_name: str


def measure(task: Task, usable: Sequence[int]) -> Found:
    """Compile the usable configurations, leave out those that are wrong, and time the rest.

    One that the GPU has no room for does not take part. Each that is wrong is reported by one warning.

    Raises:
        RuntimeError: the GPU has no room for any configuration.
    """
    serving, failed = compile_all(task, usable)
    wrong = tuple(_wrong(task, serving)) if len(serving) > 1 else ()
    right = [index for index in serving if index not in wrong]
    seconds = _medians(task, right) if len(right) > 1 else {}
    return Found(min(right, key=lambda index: seconds.get(index, 0.0)), wrong, failed, seconds)


def compile_all(task: Task, usable: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
    """Run each configuration once: the first alone, then the others in threads, of which each waits for its compiler.

    Returns:
        Indices of those that run, and of those whose compilation fails. Those without room on the GPU are in neither.

    Raises:
        RuntimeError: the GPU has no room for any configuration.
    """
    from triton.runtime.errors import OutOfResources

    def attempt(index: int) -> Exception | None:
        try:
            task.run(task.configs[index])
        except Exception as error:  # a compiler fails in many ways
            return error
        return None

    same = _same_place(task.device)

    def in_thread(index: int) -> Exception | None:
        with same():
            return attempt(index)

    count = len(usable)
    text = f"compiling {count} configuration{'s' if count > 1 else ''} of {task.name} for {task.device_name}"
    with progress(text):
        errors = {usable[0]: attempt(usable[0])}
        if (first := errors[usable[0]]) is not None and not isinstance(first, OutOfResources):
            raise first
        rest = usable[1:]
        if rest:
            with ThreadPoolExecutor(min(len(rest), processors())) as pool:
                errors |= dict(zip(rest, pool.map(in_thread, rest), strict=True))
    failed = []
    for index, error in errors.items():
        if error is not None and not isinstance(error, OutOfResources):
            failed.append(index)
            first_line = (str(error).strip().splitlines() or [""])[0]
            _warn(task, index, f"fails ({type(error).__name__}: {first_line})")
    serving = [index for index, error in errors.items() if error is None]
    if not serving:
        raise RuntimeError(f"no configuration of {task.name} fits the GPU ({task.device_name})")
    return serving, tuple(failed)


def _same_place(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Return what makes another thread launch on this thread's device and stream."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    @contextmanager
    def same() -> Iterator[None]:
        with torch.no_grad():
            if stream is None:
                yield
                return
            with torch.cuda.device(device), torch.cuda.stream(stream):
                torch.empty(1, device=device).zero_()  # a launch by torch gives the thread its CUDA context
                yield

    return same


def processors() -> int:
    """Return the number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Print one line to stderr if the body takes longer than `SLOW`; nothing with IEF_KERNELS_QUIET=1."""
    if os.environ.get("IEF_KERNELS_QUIET") == "1":
        yield
        return
    timer = threading.Timer(SLOW, lambda: print(f"ief_kernels: {text}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _warn(task: Task, index: int, what: str) -> None:
    warnings.warn(
        f"{task.name} in configuration {task.configs[index].name} on {task.device_name} {what}; it is not used. "
        "Please report it. `python -m ief_kernels.selftest` checks all kernels on this machine",
        RuntimeWarning,
        stacklevel=2,
    )


# Checking.


def _wrong(task: Task, serving: Sequence[int]) -> Iterator[int]:
    """Yield the indices whose results differ from those of the first that serves."""

    def results(index: int) -> Sequence[Tensor]:
        for output in task.outputs:
            output.fill_(math.nan if output.is_floating_point() else torch.iinfo(output.dtype).max)
        task.run(task.configs[index])
        return task.compared(task.configs[index])

    expected = [tensor.clone() for tensor in results(serving[0])]
    for index in serving[1:]:
        reasons = [
            reason
            for number, (actual, want) in enumerate(zip(results(index), expected, strict=True))
            if (reason := difference(actual, want)) is not None
        ]
        if reasons:
            _warn(task, index, f"differs from configuration {task.configs[serving[0]].name} ({reasons[0]})")
            yield index


def allowed(dtype: torch.dtype) -> float:
    """Return how far two right configurations may be apart, relative to the largest number of a row.

    Other tiles add up in another order, and other instructions round or cut the inputs of a tf32 product (10 bits):
    2·10⁻³ covers both, for sums of several thousand products. Half precision also rounds to the neighbouring number.
    Integers are equal.
    """
    return 2e-3 + (torch.finfo(dtype).eps if dtype != torch.float32 else 0) if dtype.is_floating_point else 0.0


def difference(actual: Tensor, expected: Tensor) -> str | None:
    """Say how `actual` differs from `expected` by more than `allowed`, or return None.

    Numbers that are not finite in `expected` are not compared. An error is measured against the largest number of its
    row (the last dimension) or the root mean square of the whole tensor, whichever is larger: where the parts of a sum
    cancel, its error is that of the parts.
    """
    if expected.numel() == 0:
        return None
    actual, expected = (tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1) for tensor in (actual, expected))
    if not expected.is_floating_point():
        return None if torch.equal(actual, expected) else "integers differ"
    slices = range(0, len(expected), max(1, _SLICE // expected.shape[1]))
    rows = slices.step

    def known(start: int) -> tuple[Tensor, Tensor]:
        wide = expected[start : start + rows].float()
        return wide, wide.isfinite()

    squares, count = 0.0, 0.0
    for start in slices:
        wide, finite = known(start)
        squares += wide.masked_fill(~finite, 0).double().square().sum().item()
        count += finite.sum().item()
    typical = math.sqrt(squares / max(count, 1.0))
    limit = allowed(expected.dtype)
    worst = 0.0
    for start in slices:
        wide, finite = known(start)
        got = actual[start : start + rows].float()
        if (finite & ~got.isfinite()).any():
            return "NaN or infinite where it must not be"
        scale = wide.masked_fill(~finite, 0).abs().amax(1, keepdim=True).clamp(min=typical)
        error = (got - wide).masked_fill(~finite, 0).abs()
        worst = max(worst, (error / scale.clamp(min=torch.finfo(torch.float32).tiny)).max().item())
    return None if worst <= limit else f"relative error {worst:.2g}, allowed {limit:.2g}"


# Timing.


class Stopwatch:
    """Times a call on the GPU, from a second-level cache without its data, and while the CPU runs ahead.

    Zeros are written over twice the size of that cache first. This also keeps the GPU busy while Python launches what
    is timed: an idle GPU would wait for each launch, and the time would be the CPU's.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 1 << 26
        self._room = torch.empty(2 * size, dtype=torch.uint8, device=device)
        self._room.zero_()
        self._flush_seconds = max(self._between(lambda: self._flush(4)) / 4, 1e-6)

    def _flush(self, times: int) -> None:
        for _ in range(times):
            self._room.zero_()

    @staticmethod
    def _between(call: Callable[[], None]) -> float:
        event: Any = torch.cuda.Event  # its constructor has no annotations in some versions of torch
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def flushes(self, host_seconds: float) -> int:
        """Return how often the zeros are written so that the GPU is busy for 1.5 times so long, at least once."""
        return min(max(1, math.ceil(1.5 * host_seconds / self._flush_seconds)), 256)

    def seconds(self, call: Callable[[], None], host_seconds: float) -> float:
        """Return the GPU's time from the first of `RUNS` calls to the end of the last.

        Args:
            call: launches what is timed.
            host_seconds: what the CPU needs for `RUNS` calls.
        """
        self._flush(self.flushes(host_seconds))

        def several() -> None:
            for _ in range(RUNS):
                call()

        return self._between(several)


def _medians(task: Task, right: Sequence[int]) -> dict[int, float]:
    """Median seconds of a call in each configuration."""
    stopwatch = Stopwatch(task.device)
    calls = {index: functools.partial(task.run, task.configs[index]) for index in right}
    host = {}
    for index, call in calls.items():
        for _ in range(WARM_UPS):
            call()
        began = time.perf_counter()
        for _ in range(RUNS):
            call()
        host[index] = time.perf_counter() - began
    times: dict[int, list[float]] = {index: [] for index in right}
    for _ in range(PAIRS):  # interleaved, so that a change of clocks meets all of them
        for index, call in calls.items():
            times[index].append(stopwatch.seconds(call, host[index]))
    return {index: statistics.median(times[index]) / RUNS for index in right}
