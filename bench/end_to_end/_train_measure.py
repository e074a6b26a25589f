"""What `bench train` measures: steps of all ways in turn, where their time goes, and a whole run of the trainer."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.end_to_end._ways import COMPILED, WAYS, Sections, Training, without_dropout
from bench.measure import Row
from bench.timing import Budget, Laps, Stopwatch, explanation, interleave, ratio
from iefvad.data.batches import Batch, Clips, epoch_batches
from iefvad.data.datasets import load_packed
from iefvad.model.config import ModelConfig
from iefvad.training.run import Run, Variant
from iefvad.training.settings import TrainConfig, resolve
from iefvad.training.trainer import Trainer

UCF_CLIPS, UCF_BATCH, UCF_EPOCHS, SEGMENTS, DIM = 16_100, 64, 10, 256, 768
TOLERANCE = {False: 1e-4, True: 2e-2}
"""Relative, of the loss and the gradient's norm: float32 sums in another order; bfloat16 products."""


@dataclass(frozen=True)
class Size:
    """What is trained on: `clips` of `segments` × `dim`, `batch` normal and as many abnormal ones per step.

    `fill`: the share of the segments that are no padding.
    """

    clips: int = UCF_CLIPS
    segments: int = SEGMENTS
    dim: int = DIM
    batch: int = UCF_BATCH
    epochs: int = UCF_EPOCHS
    fill: float = 1.0

    @property
    def heads(self) -> int:
        return math.gcd(self.dim, 8)

    @property
    def shape(self) -> list[int]:
        return [2 * self.batch, self.segments, self.dim]

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(dim=self.dim, heads=self.heads)

    @property
    def share(self) -> float:
        """The matrix products of a step relative to those at UCF-Crime size, with as much padding."""
        return self.operations() / Size(fill=self.fill).operations()

    @property
    def is_ucf(self) -> bool:
        """Whether a step, an epoch and the run are those of UCF-Crime, but for the padding."""
        return self == Size(fill=self.fill)

    def operations(self) -> float:
        """Of the matrix products of one step, forward and backward, nothing computed twice.

        Padding counts as computed within attention and nowhere else.
        """
        config = self.model
        attention = config.layers * 4 * self.segments * self.dim  # scores and weighted values
        projections = config.layers * 8 * self.dim**2 + 4 * self.dim**2
        refinement = 4 * config.refine_steps * self.dim * (config.hidden or self.dim)
        segment = 2 * attention + self.fill * (2 * projections + refinement)
        return 3.0 * 2 * self.batch * self.segments * segment


def endless(clips: Clips, batch: int) -> Generator[Batch, None, None]:
    """Batches as the trainer draws them, epoch after epoch."""
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(epoch)
        order = list(epoch_batches(clips.labels, batch, mixed=False, generator=generator))
        yield from clips.batches(order, pad_to=2)


def check(trainings: dict[str, Training], batch: Batch, size: Size) -> dict[str, float]:
    """The largest relative difference of each way's loss and gradient norm from the reference's, without dropout.

    On four videos, with networks of their own. Raises ValueError where one differs.
    """
    few = Batch(*(value[-4:] for value in vars(batch).values()))
    device = next(iter(trainings.values())).device  # the reference is compared with, even where it is not timed
    found: dict[str, float] = {}
    exact: tuple[float, float] | None = None
    for name in ["reference", *(name for name in trainings if name != "reference")]:
        if name in COMPILED:  # the same code; compiling it a second time is all that a check would measure
            continue
        training = Training(name, without_dropout(size.model), device)
        loss = training.loss(few)
        loss.backward()
        gradients = [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
        values = loss.item(), norm.item()
        exact = exact or values
        found[name] = max(abs(a - b) / abs(b) for a, b in zip(values, exact, strict=True))
        if not found[name] <= TOLERANCE[WAYS[name].half]:
            raise ValueError(f"the {name} step differs from the reference's by {found[name]:.1e}")
    return found


def time_steps(
    trainings: dict[str, Training], batches: Iterator[Batch], device: torch.device, budget: Budget
) -> tuple[dict[str, Any], dict[str, str]]:
    """Timings of "step" and of "data", the wait for the batch; reasons of ways that failed."""

    def runner(training: Training) -> Callable[[int], Laps]:
        def run(index: int) -> Laps:
            watch = Stopwatch(device, latency=True)
            watch.start()
            batch = next(batches)
            watch.mark()
            training.step(batch)
            watch.mark()
            data, step = watch.seconds()
            return {"data": data, "step": step}

        return run

    runs = {name: runner(training) for name, training in trainings.items()}
    return interleave(runs, budget, compiled=frozenset(COMPILED))


def rows(
    size: Size,
    timings: dict[str, Any],
    failures: dict[str, str],
    errors: dict[str, float],
    ceilings: dict[str, float],
    names: Sequence[str],
) -> list[Row]:
    """One row per way in `names`, in the form of the operators' results."""
    medians = {name: timing.quartiles("step")[1] for name, timing in timings.items()}
    found = []
    operations = size.operations()
    for name in names:
        dtype = "bfloat16" if WAYS[name].half else "float32"
        row = Row("training_step", "ucf-crime", size.shape, dtype, "both", name, reason=failures.get(name))
        found.append(row)
        if name not in timings:
            continue
        timing = timings[name]
        row.q1_ms, row.median_ms, row.q3_ms = (1e3 * seconds for seconds in timing.quartiles("step"))
        row.repeats, row.first_call_s = len(timing.samples["step"]), timing.first_seconds
        row.gigaoperations = operations / 1e9
        row.gigaoperations_per_s = operations / 1e9 / medians[name]
        row.ceiling = f"gemm_{dtype}"
        if ceiling := ceilings.get(row.ceiling):
            row.fraction_of_ceiling = row.gigaoperations_per_s * 1e9 / ceiling
        row.times_reference = ratio(medians["reference"], medians[name]) if "reference" in medians else None
        row.times_plain = ratio(medians["plain"], medians[name]) if "plain" in medians else None
        row.error = errors.get(name)
    return found


def time_sections(
    trainings: dict[str, Training], batches: Iterator[Batch], device: torch.device, rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds of each section of a step, "data" included, of the ways that are not compiled."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    timed = {name: Sections(training, clock) for name, training in trainings.items() if name not in COMPILED}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, sections in timed.items():
            began = clock()
            batch = next(batches)
            sections.seconds = {"data": clock() - began}
            sections.step(batch)
            samples[name].append(sections.seconds)
    return {
        name: {section: statistics.median(sample[section] for sample in found) for section in found[0]}
        for name, found in samples.items()
    }


def whole_run(store: Path, out: Path, size: Size, way: str, device: torch.device) -> dict[str, Any]:
    """Seconds of a run of the trainer from the packed store to the last epoch's state, as `iefvad train` runs it.

    Opening the store, filling the device and saving the state after each epoch are in it; `seconds_epochs` are the
    epochs' own. No video is held out, and the last epoch is taken.
    """
    settings = TrainConfig(
        preset="ucf-crime",
        features=str(store),
        fused=True,
        precision="bfloat16" if WAYS[way].half else "float32",
        epochs=size.epochs,
        batch=size.batch,
        heads=size.heads,
        max_segments=size.segments,
        validation=0.0,
        select="last",
        device=str(device),
        out=str(out / way),
    )
    config = resolve(settings)
    began = time.perf_counter()
    benchmark = load_packed(store)
    clips = Clips(benchmark.train, max_segments=size.segments)
    trainer = Trainer(Run.create(config), Variant("fusion", "fusion", config.method), 0, dim=benchmark.dim)
    trainer.fit(clips, [], [], progress=False)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    epochs = [row["seconds"] for row in trainer.progress.history]
    losses = [row["loss"] for row in trainer.progress.history]
    return {"provider": way, "seconds": seconds, "seconds_epochs": epochs, "losses": losses}


def prepare(names: Sequence[str], size: Size, device: torch.device) -> tuple[dict[str, Training], dict[str, str]]:
    """Networks of these ways, and why others could not be made."""
    trainings, failures = {}, {}
    for name in names:
        try:
            trainings[name] = Training(name, size.model, device)
        except Exception as error:  # any failure of a way becomes its row
            failures[name] = explanation(error)
    return trainings, failures
