"""`python -m iefvad.evaluate RUN`: metrics of a finished run, per class, and how it degrades with a masked stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from iefvad.command import command
from iefvad.config import TrainConfig
from iefvad.data.datasets import Video
from iefvad.data.sources import load_benchmark
from iefvad.metrics import robustness_row, table
from iefvad.model import IEFVAD, MODALITIES
from iefvad.options import add_options, from_namespace, make_parser, option
from iefvad.results import Results, finish
from iefvad.run import Run, load_model
from iefvad.scoring import Masked, check_encoder, density_scores, score_videos
from iefvad.trainer import choose_device
from iefvad.video_scores import VideoScores

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)  # Appendix H


@dataclass
class EvaluateConfig:
    """Settings of `python -m iefvad.evaluate`; `None` means: as the run was trained."""

    features: str | None = option(None, "evaluate on this feature store instead of the run's")
    test_list: str | None = option(None, "CSV `path,label` of the test videos")
    annotations: str | None = option(None, "frame annotations of the test videos")
    gt: str | None = option(None, "gt.npy of the test videos, in the order of the test list")
    test_crops: str | None = option(None, "crop that is tested: 5 mirrored centre, 0 centre, all mean of all")
    robustness: bool = option(True, "mask a share of one stream's feature dimensions and measure again (Appendix H)")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    out: str | None = option(None, "folder for metrics.json, scores.csv and report.html [default: the run folder]")


def test_model(model: IEFVAD, videos: Sequence[Video], config: TrainConfig) -> list[VideoScores]:
    """Score all test videos."""
    return score_videos(model, videos, crops=config.test_crops, chunk=config.max_segments)


def robustness(
    model: IEFVAD, videos: Sequence[Video], config: TrainConfig, *, ratios: Sequence[float] = RATIOS, seed: int = 0
) -> list[dict[str, Any]]:
    """Appendix H: mask a share of one modality's feature dimensions (the same ones in all videos) and score again.

    The first row is the clean run. Keys as in `metrics.robustness_row`.
    """
    clean = test_model(model, videos, config)
    rows = [robustness_row("none", 0.0, clean, clean)]
    bar = tqdm([(name, ratio) for name in MODALITIES for ratio in ratios], desc="robustness", dynamic_ncols=True)
    for name, ratio in bar:
        generator = torch.Generator().manual_seed(seed)
        dim = model.config.dim
        masked = torch.randperm(dim, generator=generator)[: round(ratio * dim)]
        degraded = test_model(model, [Masked(video, name, masked) for video in videos], config)
        rows.append(robustness_row(name, ratio, clean, degraded))
    return rows


def evaluate_run(path: str, config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate the models of a run folder and return what metrics.json holds."""
    run = Run.open(path)
    overrides = {
        name: getattr(config, name)
        for name in ("features", "test_list", "annotations", "gt", "test_crops")
        if getattr(config, name) is not None
    }
    run.config = replace(run.config, device=config.device, **overrides)
    device = choose_device(config.device)
    benchmark = load_benchmark(run.config)
    results = Results()
    degradation: list[dict[str, Any]] | None = None
    for seed in run.config.seeds:
        for variant in run.variants:
            backend = "auto" if run.config.fused else "reference"
            model, extra = load_model(run.checkpoint(variant, seed), backend=backend, device=device)
            check_encoder(extra.get("encoder") or {}, benchmark.settings, "the features")
            results.add(variant.name, seed, test_model(model, benchmark.test, run.config))
            first = variant == run.variants[0] and seed == run.config.seeds[0]
            if first and config.robustness and variant.modality == "fusion":
                degradation = robustness(model, benchmark.test, run.config)
    density = density_scores(benchmark.test)
    if density is not None:
        results.add("event density", run.config.seeds[0], density)
    if config.out is not None:
        run = replace(run, config=replace(run.config, out=config.out))
        run.path = run.config.run_dir
    document = finish(run, benchmark, results, robustness=degradation)
    if degradation is not None:
        print("\nrobustness to masked feature dimensions (Appendix H)\n" + table(degradation))
    return document


@command("evaluate")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad evaluate`; returns the exit status."""
    parser = make_parser(
        "evaluate",
        "Evaluate a finished run on its test videos (or on others): AUC, AP, Ano-AUC, per class, and how the scores"
        " hold when a share of one stream's feature dimensions is masked. Rewrites metrics.json, scores.csv and"
        " report.html.",
        usage="RUN [options]",
    )
    parser.add_argument("run", type=str, help="run folder that `iefvad train` wrote", metavar="RUN")
    add_options(parser, EvaluateConfig)
    arguments = parser.parse_args(argv)
    evaluate_run(arguments.run, from_namespace(EvaluateConfig, arguments))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
