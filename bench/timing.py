"""Interleaved timing of several ways to compute one thing, in one process.

Every round runs each provider once, on the next of several input sets, in an order that turns by one and is reversed
from round to round; so a drift of the machine (clocks, other load) and what the run before left behind (caches, warm
cores) meet all of them alike. Medians and quartiles are over a provider's runs.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ief_kernels import BackendUnavailable

_HEAD_START = 32
"""Overwrites of the level-2 cache before a measurement: about 2 ms on an H200, where a call of an operator with its
gradient takes the host 0.3 to 0.6 ms."""

Laps = dict[str, float]
"""Seconds of one run, by pass ("forward", "backward", "both")."""


@dataclass(frozen=True)
class Budget:
    """Duration of the measurement. A provider stops after `provider_seconds`, all of a case's after `rounds`.

    A provider whose first run takes longer than `single_seconds` is not run again: that run is its only sample.
    """

    rounds: int = 40
    least_rounds: int = 3
    provider_seconds: float = 4.0
    single_seconds: float = 8.0
    quick: bool = False


QUICK = Budget(rounds=7, provider_seconds=0.3, single_seconds=0.5, quick=True)


@dataclass
class Timing:
    """Samples of one provider, in seconds, by pass; `first_seconds` is its first call (compilation included)."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    first_seconds: float = 0.0

    def add(self, laps: Laps) -> None:
        for name, seconds in laps.items():
            self.samples.setdefault(name, []).append(seconds)

    def quartiles(self, name: str) -> tuple[float, float, float]:
        """First quartile, median and third quartile of a pass, in seconds."""
        return quartiles(self.samples[name])


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile (linear interpolation); ValueError for no samples."""
    if not samples:
        raise ValueError("no samples to summarise")
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


class Stopwatch:
    """Marks points in a device's work and gives the seconds between them.

    On a GPU the marks are events. Before the first one the level-2 cache is overwritten `_HEAD_START` times: the inputs
    then come from memory, and the queue holds work while the host prepares the launches, so that what is measured is
    the device's time and not the host's. With `latency=True` the host's clock is
    read after a synchronisation instead, so launches that keep the device waiting are counted.
    """

    def __init__(self, device: torch.device, *, latency: bool = False) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.latency = latency
        self.marks: list[Any] = []
        self._flush: torch.Tensor | None = None
        if self.cuda and not latency:
            size = 4 * getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
            self._flush = torch.empty(max(size, 1), dtype=torch.uint8, device=device)

    def start(self) -> None:
        self.marks = []
        if self.cuda:
            torch.cuda.synchronize(self.device)
            if self._flush is not None:
                for _ in range(_HEAD_START):
                    self._flush.zero_()
        self.mark()

    def mark(self) -> None:
        if not self.cuda:
            self.marks.append(time.perf_counter())
        elif self.latency:
            torch.cuda.synchronize(self.device)
            self.marks.append(time.perf_counter())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)

    def seconds(self) -> list[float]:
        """Seconds between consecutive marks; waits for the device."""
        if self.cuda and not self.latency:
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


Run = Callable[[int], Laps]
"""One run on input set number i, timed."""


def interleave(
    runs: Mapping[str, Run],
    budget: Budget,
    *,
    compiled: frozenset[str] = frozenset(),
    on_first: Callable[[str, float], None] = lambda name, seconds: None,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times all `runs` in turn.

    Args:
        runs: by provider.
        budget: when to stop.
        compiled: providers whose first call compiles, and therefore is no sample.
        on_first: called with a provider's name and its slowest pass in seconds after its first run, for example to
            check its results; an exception raised there, as one raised by a run, takes the provider out.

    Returns:
        Timings by provider, and the reason for each provider that was taken out.
    """
    timings: dict[str, Timing] = {}
    failures: dict[str, str] = {}
    for name, run in runs.items():
        began = time.perf_counter()
        try:
            laps = run(0)
            timing = Timing(first_seconds=time.perf_counter() - began)
            if name in compiled:
                laps = run(0)
            on_first(name, max(laps.values()))
        except Exception as error:  # any failure of a provider becomes its row
            failures[name] = explanation(error)
            continue
        timings[name] = timing
        if max(laps.values()) > budget.single_seconds:
            timing.add(laps)
    names = [name for name in timings if not timings[name].samples]
    spent = dict.fromkeys(names, 0.0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for round_number in range(budget.rounds):
            turn = round_number % max(len(names), 1)
            order = names[turn:] + names[:turn]
            for name in reversed(order) if round_number % 2 else order:
                enough = spent[name] > budget.provider_seconds and round_number >= budget.least_rounds
                if enough or name in failures:
                    continue
                began = time.perf_counter()
                try:
                    timings[name].add(runs[name](round_number + 1))
                except Exception as error:
                    failures[name] = explanation(error)
                    del timings[name]
                spent[name] += time.perf_counter() - began
    finally:
        if collecting:
            gc.enable()
    return timings, failures


def explanation(error: BaseException, width: int = 120) -> str:
    """Why a provider has no times: what a backend says of itself, else the error's kind and first line."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, BackendUnavailable):
        text = lines[0].partition(": ")[2] or lines[0]
    else:
        text = f"{type(error).__name__}: {lines[0].strip()}"
    return text if len(text) <= width else text[: width - 1] + "…"


def ratio(slow: float, fast: float) -> float:
    """How many times faster `fast` is than `slow`: a quotient of medians; NaN where one is missing."""
    return slow / fast if fast > 0 and math.isfinite(slow) else math.nan
