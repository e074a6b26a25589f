"""Run the trainings of a sweep, and keep their documents (`docs/specification.md#sweeps`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from iefvad.sweep.trainings import Document, Training

Engine = Literal["local", "ray"]


def run_all(
    trainings: Sequence[Training],
    out: Path,
    *,
    jobs: int | None = None,
    threads: int = 1,
    engine: Engine = "local",
    jobs_per_gpu: int = 1,
    ray_address: str | None = None,
    names: Mapping[str, str] | None = None,
    progress: bool = True,
) -> dict[str, Document]:
    """Train everything that `out` does not have yet.

    Args:
        trainings: What to train. Equal trainings are trained once, with the measures of all of them.
        out: Folder of the sweep.
        jobs: Number of processes. By default as many as the CPUs allow, or `jobs_per_gpu` per GPU.
        threads: CPU threads per process. Results may differ in the last bits for another number.
        engine: "local": processes of this machine. "ray": tasks of a Ray cluster.
        jobs_per_gpu: Number of trainings that share one GPU.
        ray_address: Address of the cluster; None starts Ray on this machine.
        names: Names of trainings for messages, by key.
        progress: Show progress.

    Returns:
        Documents by key, in the order of the trainings.

    Raises:
        UserError: data or settings are wrong, or another process works in the folder.
    """
    raise NotImplementedError
