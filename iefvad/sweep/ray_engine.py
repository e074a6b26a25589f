"""The engine for a cluster: each training is a task of Ray.

The documents are equal to those of the local engine, because a training depends on its settings and threads alone.
The folder of the sweep and the data must have the same paths on all machines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from iefvad.sweep.engine import Outcome, Task, work
from iefvad.utils.cluster import cluster
from iefvad.utils.errors import UserError
from iefvad.utils.threads import use_threads


def run_ray(
    tasks: Sequence[Task],
    out: Path,
    *,
    device: str,
    threads: int,
    jobs: int | None,
    jobs_per_gpu: int,
    address: str | None,
) -> Iterator[Outcome]:
    """Do tasks on a Ray cluster, and yield how each ended, in any order. Closing the iterator cancels the others.

    Args:
        tasks: The tasks.
        out: Folder of the sweep.
        device: The `--device` of the user.
        threads: CPU threads per task.
        jobs: Maximum number of tasks at a time; None: what the cluster has room for.
        jobs_per_gpu: Number of tasks that share one GPU.
        address: Address of the cluster; None starts Ray on this machine.

    Raises:
        UserError: Ray is not installed, the cluster does not answer, or it lacks GPUs or cores.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--engine ray needs Ray ({error}): pip install 'iefvad[ray]'.") from None
    with cluster(ray, address):
        chosen = _device(device, _resources(ray), threads)
        gpus = 1 / jobs_per_gpu if chosen == "cuda" else 0
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_task)
        waiting, running = list(tasks)[::-1], dict[Any, Task]()
        try:
            while waiting or running:
                while waiting and (jobs is None or len(running) < jobs):
                    task = waiting.pop()
                    running[remote.remote(task, out, chosen, threads)] = task
                for reference in ray.wait(list(running))[0]:
                    task = running.pop(reference)
                    try:
                        outcome: Outcome = ray.get(reference)
                    except ray.exceptions.RayError as error:
                        first = (str(error).strip() or type(error).__name__).splitlines()[0]
                        problem = f"its Ray task died ({first}); start the same command again to retry"
                        outcome = Outcome(task.training, problem=problem)
                    yield outcome
        finally:
            for reference in running:
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=True)


def _resources(ray: Any) -> dict[str, float]:
    there: dict[str, float] = ray.cluster_resources()
    return there


def _device(wanted: str, there: dict[str, float], threads: int) -> str:
    gpus, cores = there.get("GPU", 0), there.get("CPU", 0)
    if wanted.startswith("cuda") and not gpus:
        raise UserError("--device cuda: the Ray cluster has no GPU; use --device cpu, or another cluster.")
    if threads > cores:
        raise UserError(f"--threads {threads}: the Ray cluster has {cores:.0f} cores; use fewer threads.")
    return "cuda" if gpus and wanted != "cpu" else "cpu"


def _task(task: Task, out: Path, device: str, threads: int) -> Outcome:
    use_threads(threads)
    return work(task, out, device)
