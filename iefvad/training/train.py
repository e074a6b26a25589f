"""Train and evaluate: data → training → scores of the test videos → run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iefvad.checkpoints.files import save_model
from iefvad.features.videos import Benchmark
from iefvad.scoring.scorer import crop_notes, density_scores
from iefvad.scoring.tables import table
from iefvad.training import distributed
from iefvad.training.advice import familiar_limits
from iefvad.training.backends import operators_of
from iefvad.training.distributed import Processes
from iefvad.training.effects import check_effects
from iefvad.training.fitting import TrainingData, fit_and_score
from iefvad.training.folder import claimed
from iefvad.training.normality import train_normal
from iefvad.training.protocols import deviations
from iefvad.training.results import Results, add_probe, finish
from iefvad.training.run import Run
from iefvad.training.settings import Settings
from iefvad.training.sources import NO_DENSITY, load_benchmark
from iefvad.training.tracking import Tracking
from iefvad.utils.errors import UserError
from iefvad.utils.files import StorageError
from iefvad.utils.text import readable


def train(config: Settings, *, progress: bool = True) -> dict[str, Any]:
    """Train and evaluate all models of a run, and write the run folder (`docs/specification.md#run-folder`).

    Under torchrun all processes train together. The main process prints and writes.

    Args:
        config: Settings with every choice made, from `settings.resolve`.
        progress: Show bars.

    Returns:
        The content of metrics.json; an empty dictionary in all processes but the main one.

    Raises:
        UserError: the data or the settings are wrong. What can be known before training is found before.
        Aborted: another process failed.
    """
    with distributed.start(config.device) as processes, contextlib.ExitStack() as stack:
        with processes.barrier():
            if processes.is_main:
                config = stack.enter_context(claimed(config))
        config = dataclasses.replace(config, out=processes.union([config.out or ""])[0] or None)
        try:
            return _train(config, processes, progress and processes.is_main, stack)
        except KeyboardInterrupt:
            raise Interrupted(config.run_dir) from None
        except StorageError as error:
            if any((config.run_dir / "trainer_state").glob("*.safetensors")):
                raise StorageError(f"{error} Finished epochs are kept: continue with --resume.") from error
            raise


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a run was trained; `folder` is that of the run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder


def _train(config: Settings, processes: Processes, progress: bool, stack: contextlib.ExitStack) -> dict[str, Any]:
    begin = time.perf_counter()
    with processes.barrier():
        run = Run.create(config) if processes.is_main else Run(config.run_dir, config)
        if processes.is_main:
            run.tracking = Tracking(run.path, run.config, run.variants)
            stack.callback(run.tracking.close)
        if config.normal_only and processes.world > 1:
            raise UserError("--normal-only takes seconds and runs in one process: start it without torchrun.")
    benchmark = _load(config, processes, progress)
    if config.normal_only:
        return train_normal(run, benchmark, begin)
    if NO_DENSITY in benchmark.notes:
        config = run.config = dataclasses.replace(config, density_prior=0.0)
        with processes.barrier():
            if processes.is_main:
                run.save()
    with processes.barrier():
        benchmark.notes += check_effects(config, benchmark, run.variants, processes.world)
        benchmark.notes += crop_notes(benchmark.test, config.test_crops)
    if processes.world > 1:
        benchmark.notes.append(f"Trained on {processes.world} processes that shared each batch.")
    if processes.is_main:
        _describe(config, benchmark, operators_of(run, benchmark.dim))
    with processes.barrier():
        data = TrainingData.of(benchmark, config)
    used = {"train_videos": len(data.whole.videos), "held_out_videos": len(data.held_out)}
    results = Results()
    for seed in config.seeds:
        for variant in run.variants:
            fitted, scores = fit_and_score(run, variant, seed, data, processes=processes, progress=progress)
            run.tracking.tested(variant, seed, scores)
            results.add(variant.name, seed, scores, fitted.model, epoch=fitted.epoch, threshold=fitted.threshold)
            provenance: dict[str, Any] = {
                "threshold": fitted.threshold,
                "epoch": fitted.epoch,
                "seed": seed,
                "encoder": benchmark.settings,
                "chunk": config.max_segments,
                "test_crops": config.test_crops,
                "method": fitted.settings.method if config.model == "ief-vad" else config.model,
                "protocol": config.protocol,
                **used,
            }
            if config.features is None and config.train_list is None:
                provenance["rendered"] = True
            with processes.barrier():
                if processes.is_main:
                    if limits := familiar_limits(fitted.model, data.whole):
                        provenance["familiar"] = limits
                    save_model(run.checkpoint(variant, seed), fitted.model, provenance)
    # Notes on features are known only to the process that read them.
    benchmark.notes = processes.union(benchmark.notes)
    with processes.barrier():
        if not processes.is_main:
            return {}
        density = density_scores(benchmark.test)
        if density is not None:
            results.add("event density", config.seeds[0], density)
        add_probe(results, config, benchmark)
        return finish(run, benchmark, results, used=used, seconds=time.perf_counter() - begin)


def _load(config: Settings, processes: Processes, progress: bool) -> Benchmark:
    """Load the data on every process. The embedded benchmark is rendered and copied, so processes take turns."""
    embedded = config.features is None and config.train_list is None
    for turn in range(processes.world if embedded else 1):
        with processes.barrier():
            if turn == processes.rank or not embedded:
                benchmark = load_benchmark(config, progress=progress)
    return benchmark


def _describe(config: Settings, benchmark: Benchmark, operators: str) -> None:
    def count(videos: Sequence[Any]) -> str:
        abnormal = sum(bool(video.classes) for video in videos)
        return f"{len(videos)} videos ({abnormal} abnormal, {sum(video.segments for video in videos)} segments)"

    print(
        f"{readable(benchmark.name)}: train {count(benchmark.train)}, test {count(benchmark.test)}, features"
        f" {benchmark.dim} wide"
    )
    for note in benchmark.notes:
        print(f"note: {readable(note)}")
    what = f"method {config.method}" if config.model == "ief-vad" else f"model {config.model}"
    print(f"protocol {config.protocol}, {what}, preset {config.preset}, run folder {readable(config.run_dir)}")
    print(f"operators: {operators}")
    if rows := deviations(config):
        print(f"deviations from the protocol {config.protocol}\n{table(rows)}")
    sys.stdout.flush()
