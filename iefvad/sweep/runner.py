"""Run the trainings of a sweep, and keep their documents (`docs/specification.md#sweeps`)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from iefvad.sweep.choices import Engine
from iefvad.sweep.data import Prepared, data_key, prepare
from iefvad.sweep.documents import locked, log, measured, read_document, write_document
from iefvad.sweep.engine import Outcome, Task
from iefvad.sweep.progress import Progress
from iefvad.sweep.trainings import Document, Training, effective
from iefvad.training.networks import model_config
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable, rescued
from iefvad.utils.threads import cpus


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
        Documents by key, in the order of the trainings. That of a training that failed has `failed`, the reason. A
        training that diverged would do so again, so its document is kept; one that failed otherwise is tried again by
        the next call.

    Raises:
        UserError: data or settings are wrong, or another process works in the folder.
    """
    if threads < 1 or (jobs is not None and jobs < 1) or jobs_per_gpu < 1:
        raise UserError("--jobs, --threads and --jobs-per-gpu must be at least 1: leave them out for the defaults.")
    out = Path(out).absolute()
    wanted = _merged(trainings)
    with locked(out, threads):
        require_writable(out)
        documents, missing = _there(wanted, out)
        if missing:
            prepared = prepare(missing, out, progress=progress)
            tasks = _tasks(missing, prepared)
            if progress and documents:
                print(f"iefvad sweep: {len(documents)} of {len(wanted)} trainings are there.", file=sys.stderr)
            if engine == "ray":
                from iefvad.sweep.ray_engine import run_ray

                device = missing[0].settings.device
                ended = run_ray(
                    tasks,
                    out,
                    device=device,
                    threads=threads,
                    jobs=jobs,
                    jobs_per_gpu=jobs_per_gpu,
                    address=ray_address,
                )
            else:
                from iefvad.sweep.local import run_local

                ended = run_local(tasks, out, _devices(missing, jobs, threads, jobs_per_gpu), threads)
            documents |= _collected(ended, out, len(tasks), names or {}, progress)
        shutil.rmtree(out / "work", ignore_errors=True)
    return {key: documents[key] for key in wanted}


def _merged(trainings: Sequence[Training]) -> dict[str, Training]:
    """Return each training once, by key, with all measures that are asked for."""
    found: dict[str, Training] = {}
    for training in trainings:
        key = training.key
        known = found.setdefault(key, training)
        if known.settings.robustness != training.settings.robustness and known.measures & training.measures:
            raise UserError("one training cannot be measured by both kinds of --robustness: use another folder.")
        found[key] = replace(known, measures=known.measures | training.measures)
    return found


def _there(wanted: Mapping[str, Training], out: Path) -> tuple[dict[str, Document], list[Training]]:
    """Return the documents that are complete, and the other trainings with what their documents have already."""
    documents, missing = {}, []
    for key, training in wanted.items():
        document = read_document(out, training)
        if document is not None and measured(document, training):
            documents[key] = document
        else:
            known = frozenset(document["measures"]) if document is not None else frozenset()
            missing.append(replace(training, measures=training.measures | known))
    return documents, missing


def _tasks(trainings: Sequence[Training], prepared: Mapping[str, Prepared]) -> list[Task]:
    """Return the tasks; those of the same data follow each other. Networks that do not fit the data are refused."""
    tasks = []
    for training in trainings:
        data = prepared[data_key(training.settings)]
        model_config(training.settings, data.dim, training.settings.modality)
        tasks.append(Task(training, data))
    order = {key: place for place, key in enumerate(prepared)}
    return sorted(tasks, key=lambda task: order[data_key(task.training.settings)])


def _devices(trainings: Sequence[Training], jobs: int | None, threads: int, per_gpu: int) -> list[str]:
    """Return the device of each process."""
    device = resolve_device(trainings[0].settings.device)
    names = [str(device)]
    if device.type == "cuda" and device.index is None:
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    default = per_gpu * len(names) if device.type == "cuda" else max(1, cpus() // threads)
    return [names[index % len(names)] for index in range(jobs or default)]


def _kept(out: Path, key: str, text: str) -> Document:
    """Write a document, and remove the state of its training, which is no longer needed."""
    document = rescued(lambda folder: write_document(folder, key, text), out, "the results of the last training")
    shutil.rmtree(out / "work" / key, ignore_errors=True)
    return document


def _collected(
    ended: Iterator[Outcome], out: Path, total: int, names: Mapping[str, str], shown: bool
) -> dict[str, Document]:
    """Write documents as they come. What failed for another reason than its settings is kept in memory alone."""
    documents: dict[str, Document] = {}
    progress = Progress(total, shown=shown)
    try:
        for outcome in ended:
            training = outcome.training
            key, name = training.key, names.get(training.key, training.name)
            if outcome.text is not None:
                document = _kept(out, key, outcome.text)
            else:
                document = {"key": key, "settings": effective(training.settings), "seed": training.seed}
                document["failed"] = outcome.problem
            documents[key] = document
            row = {"key": key, "name": name, "seconds": outcome.seconds}
            if "failed" in document:
                progress.say(f"{name} failed: {document['failed']}")
                row |= {"failed": document["failed"], "details": outcome.details}
            log(out, row)
            progress.advance()
    finally:
        ended.close()  # type: ignore[attr-defined]  # a generator: its processes end now
        progress.close()
    return documents
