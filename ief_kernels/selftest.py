"""Check every operator, dtype and configuration against the float64 reference on the machine at hand.

Run ``python -m ief_kernels.selftest``. On the CPU it checks the native kernels and the reference, with
TRITON_INTERPRET=1 also the Triton kernels; on a GPU every configuration of the Triton kernels and the CUDA kernels.
Outputs and all gradients are compared. The exit status is 1 if one of them is wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cuda_extension, _native, _problems, _triton
from ._measure import processors
from ._problems import Problem
from .dispatch import BACKENDS, BackendUnavailable, choose, operators

MOST_PROCESSES = 12  # each needs a CUDA context, about half a GiB of GPU memory


class Task(NamedTuple):
    """One problem on one device and backend."""

    device: str
    operator: str
    backend: str
    dtype: torch.dtype
    number: int


class Row(NamedTuple):
    """What was found out about an operator, backend and dtype.

    Attributes:
        runs: number of calls.
        worst: largest error, divided by what is allowed.
        faults: a sentence for each fault.
    """

    runs: int
    worst: float
    faults: tuple[str, ...]

    def merged(self, other: Row) -> Row:
        """Return both as one."""
        return Row(self.runs + other.runs, max(self.worst, other.worst), self.faults + other.faults)


def _results(problem: Problem, device: torch.device, dtype: torch.dtype | None, backend: str) -> dict[str, Tensor]:
    """Outputs and gradients on the CPU in float64; `dtype` float64 computes them with wide inputs."""
    leaves = {}
    for name, tensor in problem.inputs.items():
        floating = tensor.is_floating_point()
        leaves[name] = tensor.to(device, dtype if floating and dtype else tensor.dtype).requires_grad_(floating)
    outputs = problem.call(leaves, backend)
    found = {name: output.detach().double().cpu() for name, output in outputs.items()}
    above = {name: output for name, output in outputs.items() if output.requires_grad}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if above:
        generator = torch.Generator().manual_seed(1)
        rounded = problem.dtype if problem.dtype.is_floating_point else torch.float64
        weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(rounded) for o in above.values()]
        grads = torch.autograd.grad(
            list(above.values()),
            list(wanted.values()),
            [weight.to(o) for weight, o in zip(weights, above.values(), strict=True)],
            allow_unused=True,
        )
        for name, grad in zip(wanted, grads, strict=True):
            if grad is not None:
                found[f"grad_{name}"] = grad.double().cpu()
    return found


def _compare(problem: Problem, found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> Row:
    worst, faults = 0.0, []
    if missing := expected.keys() ^ found.keys():
        faults.append(f"{problem.label}{where}: {', '.join(sorted(missing))} only on one side")
    for name, want in expected.items():
        got = found.get(name)
        if got is None or want.numel() == 0:
            continue
        error = (got - want).abs().max().item() / max(1.0, want.abs().max().item()) / problem.relative(name)
        if not error <= 1:  # NaN included
            faults.append(f"{problem.label}{where}: the error of {name} is {error:.3g} times what is allowed")
        worst = error if error != error else max(worst, error)
    return Row(1, worst, tuple(faults))


@contextmanager
def _careful() -> Iterator[None]:
    """Uninitialised memory contains NaN, so that a kernel that forgets an element is found."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def run(task: Task) -> Row:
    """Run one problem in every configuration of its kernels, and compare each with the reference in float64."""
    problem = _problems.problems(task.operator, task.dtype, _triton.INTERPRET)[task.number]()
    device = torch.device(task.device)
    row = Row(0, 0.0, ())
    with _careful():
        wide = torch.float64 if task.dtype.is_floating_point else None
        expected = _results(problem, torch.device("cpu"), wide, "reference")
        index, most = 0, 1
        while index < most:
            with _triton.forced(index) as kernels, problem.around():
                where = f", configuration {index}" if task.backend == "triton" else ""
                try:
                    found = _results(problem, device, None, task.backend)
                    row = row.merged(_compare(problem, found, expected, where))
                except Exception as error:  # whatever a compiler or driver raises is a fault of that configuration
                    text = (str(error).strip().splitlines() or [""])[0]
                    fault = f"{problem.label}{where}: {type(error).__name__}: {text}"
                    row = row.merged(Row(1, float("nan"), (fault,)))
            index, most = index + 1, max(most, kernels.largest)
    return row


def tasks(device: str, names: Sequence[str], backends: Sequence[str]) -> tuple[list[Task], dict[str, str]]:
    """Return what can run on a device, and for each operator and backend that cannot, why."""
    found: list[Task] = []
    left_out: dict[str, str] = {}
    for operator in names:
        for backend in backends:
            for dtype in _problems.dtypes(operator):
                try:
                    choose(operator, backend, torch.device(device), dtype)
                except BackendUnavailable as error:
                    left_out.setdefault(backend, str(error).partition(": ")[2])
                    continue
                numbers = range(len(_problems.problems(operator, dtype, _triton.INTERPRET)))
                found += [Task(device, operator, backend, dtype, number) for number in numbers]
    served = {task.backend for task in found}
    return found, {backend: why for backend, why in left_out.items() if backend not in served}


def _rows(found: Sequence[Task], processes: int) -> Iterator[tuple[Task, Row]]:
    """Every task's row, as they come."""
    if processes <= 1:
        yield from ((task, run(task)) for task in found)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(found)), mp_context=context) as pool:
        for task, future in [(task, pool.submit(run, task)) for task in found]:
            try:
                yield task, future.result()
            except BrokenProcessPool:
                yield (
                    task,
                    Row(0, float("nan"), ("a process died here or in another operator; run with --processes 1",)),
                )


def _describe(device: str) -> str:
    if device == "cpu":
        return f"cpu: {_native.describe()}"
    return f"{device}: {torch.cuda.get_device_name(device)}; {_cuda_extension.describe()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ief_kernels.selftest",
        description="Check every operator, dtype and configuration against the float64 reference on this machine. "
        "The exit status is 1 if a result is wrong.",
    )
    gpu = ["cuda"] if torch.cuda.is_available() else []
    parser.add_argument(
        "--device",
        nargs="+",
        default=["cpu", *gpu],
        metavar="DEVICE",
        help="devices to check, such as cpu, cuda or cuda:1 (default: %(default)s)",
    )
    parser.add_argument(
        "--operators", nargs="+", choices=operators(), default=operators(), metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=BACKENDS, metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=min(processors(), MOST_PROCESSES),
        metavar="N",
        help="processes that compile and run GPU kernels side by side; the CPU takes one (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the test, print its table, and return the exit status."""
    asked = _parser().parse_args(argv)
    began = time.perf_counter()
    faults: list[str] = []
    line = "{:<17} {:<10} {:<9} {:>5} {:>12}  {}"
    for device in asked.device:
        found, left_out = tasks(device, asked.operators, asked.backends)
        print(_describe(device))
        print(line.format("operator", "backend", "dtype", "calls", "error/allowed", "verdict"))
        table: dict[tuple[str, str, torch.dtype], Row] = {}
        last: dict[tuple[str, str, torch.dtype], int] = {task[1:4]: task.number for task in found}
        for task, row in _rows(found, 1 if device == "cpu" else asked.processes):
            key = task[1:4]
            table[key] = table.get(key, Row(0, 0.0, ())).merged(row)
            if task.number == last[key]:
                total = table[key]
                dtype = str(task.dtype).removeprefix("torch.")
                verdict = "FAULT" if total.faults else "ok"
                print(line.format(*key[:2], dtype, total.runs, f"{total.worst:.3f}", verdict), flush=True)
                faults += [f"{task.operator} {task.backend} {dtype} on {device}, {text}" for text in total.faults]
        for backend, why in left_out.items():
            print(f"not checked on {device}: {backend} ({why})")
    for text in faults:
        print(f"FAULT {text}")
    print(
        f"{len(faults)} fault(s) in {time.perf_counter() - began:.0f} s"
        if faults
        else f"no fault in {time.perf_counter() - began:.0f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
