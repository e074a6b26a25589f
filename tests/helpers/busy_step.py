"""Time small matrix products and sums on a busy machine: all threads against one.

Prints the ratio of the mean times. Run in a process of its own, because OpenMP reads its variables once.
"""

from __future__ import annotations

import sys
import time

if "--unprepared" not in sys.argv:
    import iefvad.cli  # noqa: F401  (sets how threads wait, before torch is loaded)

import torch


def step(x: torch.Tensor, weight: torch.Tensor) -> None:
    """40 parallel loops of well under a millisecond, as in a training step of a small network."""
    for _ in range(20):
        x = torch.sub(x, x @ weight, alpha=1e-3)


def seconds(count: int, x: torch.Tensor, weight: torch.Tensor) -> float:
    """Duration of one step with this number of threads."""
    torch.set_num_threads(count)
    begin = time.perf_counter()
    step(x, weight)
    return time.perf_counter() - begin


if __name__ == "__main__":
    threads = torch.get_num_threads()
    tensors = torch.randn(656, 128), torch.randn(128, 128)
    for count in (1, threads):
        seconds(count, *tensors)
    if "--wait" in sys.argv:  # for whoever makes the machine busy
        print("ready", flush=True)
        sys.stdin.readline()
    end = time.monotonic() + 4
    times: dict[int, list[float]] = {1: [], threads: []}
    while time.monotonic() < end:
        for count in times:
            times[count].append(seconds(count, *tensors))
    print(sum(times[threads]) / sum(times[1]))
