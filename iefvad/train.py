"""`python -m iefvad.train`: data → training → evaluation → run folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from iefvad.command import command
from iefvad.config import TrainConfig, parse_train
from iefvad.data.batches import Clips, split_validation
from iefvad.data.datasets import Benchmark
from iefvad.data.sources import load_benchmark
from iefvad.evaluate import test_model
from iefvad.results import Results, finish
from iefvad.run import Run, save_model
from iefvad.scoring import density_scores
from iefvad.trainer import Trainer


def train(config: TrainConfig, *, progress: bool = True) -> dict[str, Any]:
    """Run the whole of a resolved configuration and return what metrics.json holds.

    Writes the run folder of SPEC §6. Raises UserError for anything wrong with the data or the settings, before
    training where it can be known before.
    """
    begin = time.perf_counter()
    run = Run.create(config)
    benchmark = load_benchmark(config, progress=progress)
    _describe(config, benchmark)
    training, held_out = split_validation(benchmark.train, config.validation, seed=0)
    clips = Clips(training, max_segments=config.max_segments)
    results = Results()
    for seed in config.seeds:
        for variant in run.variants:
            trainer = Trainer(run, variant, seed, dim=benchmark.dim)
            fitted = trainer.fit(clips, held_out, benchmark.test, progress=progress)
            extra = {
                "threshold": fitted.threshold,
                "epoch": fitted.epoch,
                "seed": seed,
                "encoder": benchmark.settings,
                "chunk": config.max_segments,
            }
            save_model(run.checkpoint(variant, seed), fitted.model, extra)
            results.add(variant.name, seed, test_model(fitted.model, benchmark.test, trainer.config))
    density = density_scores(benchmark.test)
    if density is not None:
        results.add("event density", config.seeds[0], density)
    return finish(run, benchmark, results, seconds=time.perf_counter() - begin)


def _describe(config: TrainConfig, benchmark: Benchmark) -> None:
    def count(videos: Sequence[Any]) -> str:
        abnormal = sum(bool(video.classes) for video in videos)
        return f"{len(videos)} videos ({abnormal} abnormal, {sum(video.segments for video in videos)} segments)"

    print(
        f"{benchmark.name}: train {count(benchmark.train)}, test {count(benchmark.test)}, features {benchmark.dim} wide"
    )
    for note in benchmark.notes:
        print(f"note: {note}")
    kernels = "fused kernels" if config.fused else "reference operators"
    print(f"method {config.method}, preset {config.preset}, {kernels}, run folder {config.run_dir}", flush=True)


@command("train")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad train`; returns the exit status."""
    config = parse_train(argv)
    try:
        train(config)
    except KeyboardInterrupt:
        path = config.run_dir / "config.yaml"
        print(
            f"\niefvad: interrupted; finished epochs are kept. Go on with:"
            f" python -m iefvad.train --config {path} --resume",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
