"""Run folders with results of made-up scores, written as a training writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from iefvad.features.videos import Benchmark
from iefvad.scoring.metrics import robustness_row
from iefvad.scoring.video_scores import VideoScores
from iefvad.training.results import Results, Subject, write_results


def videos(classes: list[str], seed: int, quality: float, *, per_class: int = 2, test: int = 0) -> list[VideoScores]:
    """Scores of videos of each class and as many normal ones. `test` decides the truth, `seed` the scores."""
    truths, random = np.random.default_rng(test), np.random.default_rng(seed)
    result = []
    for number, name in enumerate([*classes, *[""] * len(classes)] * per_class):
        segments = 12 + number % 7
        truth = np.zeros(16 * segments, np.uint8)
        if name:
            start = int(truths.integers(0, 8 * segments))
            truth[start : start + 6 * segments] = 1
        inside = truth.reshape(-1, 16).mean(axis=1) > 0.5
        scores = 1 / (1 + np.exp(-(quality * (inside - 0.5) + random.normal(size=segments))))
        weight = 0.5 + 0.02 * random.normal(size=segments)
        result.append(
            VideoScores(f"{name or 'Normal'}_{number}", (name,) if name else (), 30, truth, scores, weight, 1 - weight)
        )
    return result


def write_run(
    path: Path,
    *,
    models: list[str],
    seeds: list[int],
    classes: list[str],
    quality: float = 1.0,
    test: int = 0,
    settings: dict[str, Any] | None = None,
    name: str = "made up",
) -> None:
    """Write the results of a run: a model of a higher place in the list has worse scores."""
    results = Results()
    for seed in seeds:
        for place, model in enumerate(models):
            scores = videos(classes, 100 * seed + place, quality * 2 / (2 + place) + 0.1 * seed, test=test)
            results.add(model, seed, scores, epoch=3 + seed, threshold=0.5)
    history = [
        {"model": m, "seed": s, "epoch": e, "loss": 2.0 / e + place / 9 + s / 50, "loss_cls": 1.0 / e, "seconds": 1.0}
        | {"q_mean": 0.4 + e / 50, "q_min": 0.3, "q_max": 0.6 + s / 50}
        for place, m in enumerate(models)
        for s in seeds
        for e in range(1, 9)
    ]
    clean = results.first()[models[0]]
    rows = [robustness_row("none", 0, clean, clean)]
    rows += [
        robustness_row(masked, ratio, clean, videos(classes, 7, quality * (1 - ratio), test=test))
        for masked in ("image", "event")
        for ratio in (0.1, 0.3, 0.5)
    ]
    subject = Subject(
        path=path,
        primary=models[0],
        summary={"protocol": "clean", "method": "ief", "seeds": seeds, "deviations": []},
        settings={"lr": 0.001, "out": str(path)} | (settings or {}),
        command=f"python -m iefvad.train --config {path / 'config.yaml'}",
        history=history,
        device=torch.device("cpu"),
    )
    write_results(subject, Benchmark(name, [], [], dim=4), results, seconds=12.0, robustness=rows)
