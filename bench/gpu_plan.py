"""Count what the first steps of `gpu.sh` compile, with a GPU that compiles for real and runs nothing.

``bench/gpu.sh --dry-run`` prints this behind its plan. The seconds are those of this machine's compiler, and divided by
the number of processes they predict the step's on a machine with as many cores. Alone: ``python -m bench.gpu_plan``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.fake_gpu import FakeGPU, child

STEPS = ("selftest", "warmup")


def measure_everything(gpu: FakeGPU) -> None:
    """Let every tuner launch all its usable configurations once per key, as measuring does, and take the first."""
    from ief_kernels import _triton

    seen: set[tuple[int, Hashable]] = set()
    choose: Any = _triton.Tuner._index

    def index(tuner: Any, tensor: Any, key: Hashable, run: Any, worth: bool, *rest: Any) -> int:
        usable = tuner.usable(gpu.arch // 10)
        if _triton._forced is not None:
            return int(choose(tuner, tensor, key, run, worth, *rest))
        if worth and (id(tuner), key) not in seen:
            seen.add((id(tuner), key))
            for at in usable:
                run(tuner.configs[at])
        return int(usable[0])

    tuners: Any = _triton.Tuner
    tuners._index = index


def count(step: str, arch: int, part: int, parts: int) -> dict[str, float]:
    """Run every `parts`-th task of a step in this process, and return number and seconds of its compilations."""
    gpu = FakeGPU(arch)
    measure_everything(gpu)
    import torch

    from ief_kernels import selftest, warmup
    from ief_kernels.dispatch import operators

    with gpu.watch() as seen:
        if step == "selftest":
            tasks, _ = selftest.tasks("cpu", operators(), ["triton"])
            for task in tasks[part::parts]:
                selftest.run(task)  # its verdict is meaningless here: nothing has been computed
        else:
            for name in list(warmup.OPERATORS)[part::parts]:
                warmup.call(name, warmup.Shapes(batch=32), torch.device("cpu"))
    kernels = {(c.kernel, tuple(c.signature.items()), c.config) for c in seen.compilations}
    return {"kernels": len(kernels), "seconds": sum(c.seconds for c in seen.compilations)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per step, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_plan", description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="processes here (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=12, help="processes on the GPU's machine (default: %(default)s)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help="default: all")
    parser.add_argument("--part", nargs=3, metavar=("STEP", "PART", "PARTS"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.part:
        step, part, parts = asked.part
        print(json.dumps(count(step, asked.arch, int(part), int(parts))))
        return 0
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(asked.processes) as pool:
        for step in asked.steps:

            def run(part: int, step: str = step) -> dict[str, float]:
                done = child(
                    [
                        "-m",
                        "bench.gpu_plan",
                        "--arch",
                        str(asked.arch),
                        "--part",
                        step,
                        str(part),
                        str(asked.processes),
                    ],
                    cache=Path(cache) / step,
                )
                if done.returncode:
                    raise RuntimeError(done.stderr)
                found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
                return found

            found = list(pool.map(run, range(asked.processes)))
            seconds = sum(each["seconds"] for each in found)
            kernels = int(sum(each["kernels"] for each in found))
            text = f"{seconds:.0f} s of one core: about {seconds / asked.cores:.0f} s with {asked.cores} processes"
            print(f"{step:<9} {kernels:4d} kernels, {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
