"""Peak memory: of any call in this process, and of a training step of each provider in a process of its own.

    python -m bench.memory --provider native --device cpu --shape 16 256 768

runs one step through fusion, scan and refinement and prints {"peak_mb", "step_mb"}: the highest memory above that of
the loaded program, and above program, inputs and weights. On the CPU that is resident memory, on a GPU what torch's
allocator handed out.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.operators import OPERATORS, Case
from bench.providers import bind, refusal
from bench.timing import explanation

_STATUS = Path("/proc/self/status")
OPS = ("precision_fusion", "kalman_scan", "refine")


def resident(field: str) -> int:
    """Bytes of resident memory: now (``VmRSS``) or at most since `forget_peak` (``VmHWM``)."""
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Starts a new highest value where the system lets a process do so; elsewhere the old one stays."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")


def return_freed() -> None:
    """Gives memory that was freed back to the system where the C library can (glibc), so that it counts as freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Meter:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else resident("VmRSS")

    def forget(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            forget_peak()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident("VmHWM")


def peak_of(call: Callable[[], object], device: torch.device) -> float:
    """The highest memory during one call above that before it, in MB; what the call returns is dropped."""
    meter = _Meter(device)
    if device.type == "cpu":
        return_freed()
    before = meter.now()
    meter.forget()
    call()
    return max(meter.peak() - before, 0) / 1e6


def _leaves(case: Case, device: torch.device) -> dict[str, dict[str, Any]]:
    """Inputs of the step by operator; what one operator hands to the next is missing."""
    inputs = {op: OPERATORS[op].inputs(Case(op, "training", case.shape, case.dtype), device) for op in OPS}
    del inputs["kalman_scan"]["x"], inputs["kalman_scan"]["var"], inputs["refine"]["z"]
    return inputs


def _step(provider: str, case: Case, inputs: dict[str, dict[str, Any]], upstream: Tensor) -> None:
    """Forward and backward, the gradients of all leaves left in `.grad`."""

    def run(op: str, **extra: Tensor) -> Any:
        return bind(provider, Case(op, "training", case.shape, case.dtype), {**extra, **inputs[op]}).call()

    mean, var = run("precision_fusion")[:2]
    mean = run("kalman_scan", x=mean, var=var)[0]
    del var
    refined = run("refine", z=mean)
    del mean
    refined.backward(upstream)


def measure_here(provider: str, shape: tuple[int, ...], device: torch.device) -> dict[str, float]:
    """`peak_mb` and `step_mb` of one step, measured in this process."""
    meter = _Meter(device)
    small = Case("step", "training", (1, 4, 8))
    case = Case("step", "training", shape)
    _step(provider, small, _leaves(small, device), torch.ones(small.shape, device=device))
    before = meter.now()
    inputs = _leaves(case, device)
    upstream = torch.randn(shape, device=device)
    ready = meter.now()
    meter.forget()
    _step(provider, case, inputs, upstream)
    peak = meter.peak()
    return {"peak_mb": (peak - before) / 1e6, "step_mb": (peak - ready) / 1e6}


def measure(
    providers: Iterable[str], shape: tuple[int, ...], device: torch.device, *, timeout: float = 120.0
) -> list[dict[str, Any]]:
    """One record per provider, with `peak_mb` and `step_mb`, or a `reason`; each from a process of its own."""
    records = []
    for provider in providers:
        record: dict[str, Any] = {"provider": provider, "shape": list(shape), "peak_mb": None, "step_mb": None}
        cases = [Case(op, "training", shape) for op in OPS]
        record["reason"] = next((why for case in cases if (why := refusal(provider, case, device))), None)
        if record["reason"] is None:
            arguments = ["--provider", provider, "--device", str(device), "--shape", *map(str, shape)]
            record |= ask("bench.memory", arguments, timeout)
        records.append(record)
    return records


def ask(module: str, arguments: Sequence[str], timeout: float) -> dict[str, Any]:
    """What a process of a module of this package, which ends in `answer`, has measured; or why not, as `reason`."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=root)
    except subprocess.TimeoutExpired:
        return {"reason": f"took longer than {timeout:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"reason": lines[-1] if lines else f"exit status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def answer(measured: Callable[[], dict[str, float]]) -> int:
    """Prints what `ask` reads; the exit status."""
    try:
        found = measured()
    except Exception as error:  # the last line of stderr is what the table shows
        print(explanation(error), file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the record of one provider as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Peak memory of one training step.")
    parser.add_argument("--provider", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", type=int, nargs=3, default=[16, 256, 768])
    options = parser.parse_args(arguments)
    return answer(lambda: measure_here(options.provider, tuple(options.shape), torch.device(options.device)))


if __name__ == "__main__":
    raise SystemExit(main())
