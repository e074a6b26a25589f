"""Robustness to damage: dimensions or time steps of one modality are damaged, and all videos are scored again.

Source: Appendix H of the paper; `docs/specification.md#robustness`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from iefvad.features.videos import Video, pad_batch
from iefvad.model.config import MODALITIES
from iefvad.model.networks import LearnedNetwork
from iefvad.model.standardize import Standardize
from iefvad.scoring.choices import DRAWS, RATIOS, Damage, Mask
from iefvad.scoring.direction import STREAM_WEIGHTS, paired_test
from iefvad.scoring.metrics import robustness_row
from iefvad.scoring.scorer import Scorer, as_scores, choose_crops, score_batch, score_videos
from iefvad.scoring.seeds import Spread
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError
from iefvad.utils.progress import Progress

LEFT = 0.01
"""What is left of a damaged time step, as in the released script."""

_BATCH = 64  # sequences scored together, as in `score_videos`


class _Case(NamedTuple):
    masked: str
    ratio: float
    draw: int


def robustness(
    model: LearnedNetwork,
    videos: Sequence[Video],
    *,
    crops: str = "5",
    chunk: int = 256,
    ratios: Sequence[float] = RATIOS,
    draws: int = DRAWS,
    seed: int = 0,
    damage: Damage = "features",
    mask: Mask | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Damage a fraction of one modality and score again, several times.

    Args:
        model: The network.
        videos: Videos with stored features.
        crops: The crops that are scored, as in `choose_crops`.
        chunk: Number of segments that the attention sees at once.
        ratios: Fractions of the dimensions or of the time steps, above 0 and at most 1.
        draws: Number of times that dimensions or time steps are drawn.
        seed: Seed of the first draw; the next draw has the next seed. A draw damages with a larger ratio all that it
            damages with a smaller one.
        damage: "features": dimensions are masked, the same ones in all videos, as the paper says. "segments": 0.01 of
            whole time steps is left, drawn anew for each video, as in the released script.
        mask: What masked dimensions become, and what damaged time steps shrink to: "zero", or "mean", the centre of the
            training features. None: `default_mask`.
        progress: Show a progress bar.

    Returns:
        Rows: first the clean features, then each modality with each ratio. Each has masked, ratio, damage, mask, draws
        and videos, and the metrics of `metrics.robustness_row` as means over the draws. "std" has their standard
        deviations over the draws, and "values" all values, one list per network of one value per draw. Where the
        network has weights, damaged rows also have "shift" (likewise "shift_abnormal" and "shift_normal"): mean weight
        of the damaged stream less that on clean features; and "videos_test": the paired test of it over videos.

    Raises:
        UserError: a ratio or the number of draws is out of range, or the mask is "mean" and the network has no centre.
    """
    if draws < 1:
        raise UserError(f"--draws must be 1 or more, not {draws}.")
    if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise UserError(f"--ratios must be fractions above 0 and at most 1, not {list(ratios)}.")
    mask = mask or default_mask(model)
    kind = {"damage": damage, "mask": mask, "videos": len(videos)}
    clean = score_videos(model, videos, crops=crops, chunk=chunk)
    start = robustness_row("none", 0.0, clean, clean)
    rows = [_over_draws([start]) | kind]
    cases = [_Case(*case) for case in itertools.product(MODALITIES, ratios, range(draws))]
    damaged = _score_cases(
        model, videos, cases, crops, chunk, _Damager(model, videos, damage, mask, draws, seed), progress
    )
    for (masked, ratio), group in itertools.groupby(zip(cases, damaged, strict=True), key=lambda pair: pair[0][:2]):
        scored = [_as_videos(videos, numbers) for _, numbers in group]
        drawn = [robustness_row(masked, ratio, clean, found) for found in scored]
        weight = STREAM_WEIGHTS[masked]
        tested = {}
        if start.get(weight) is not None:
            for row in drawn:
                row |= {f"shift{part}": _less(row, start, weight + part) for part in ("", "_abnormal", "_normal")}
            shifts = np.mean([_means(found, weight) for found in scored], axis=0) - _means(clean, weight)
            tested = {"videos_test": [paired_test(shifts)]}
        rows.append(_over_draws(drawn) | kind | tested)
    return rows


def default_mask(model: LearnedNetwork) -> Mask:
    """Return "mean" where the network standardises its features, so that it knows their centre; otherwise "zero"."""
    return "mean" if len(model.statistics) else "zero"


def over_seeds(by_seed: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Average rows over networks trained with several seeds.

    Args:
        by_seed: Seed of the training → what `robustness` returns for its network, with the same settings.

    Returns:
        Rows of the same form with "seeds", the list of the seeds. Metrics are means over seeds and draws. With several
        seeds "std" is the deviation over the seeds of the mean over draws. "std_draws" is always the deviation over the
        draws of one network.

    Raises:
        ValueError: the rows of two seeds have other ratios, or damage otherwise.
    """
    result = []
    for rows in zip(*by_seed.values(), strict=True):
        same = [{key: row[key] for key in ("masked", "ratio", "damage", "mask", "draws", "videos")} for row in rows]
        if any(settings != same[0] for settings in same):
            raise ValueError(f"rows of different settings cannot be averaged: {same}")
        values = {key: [row["values"][key][0] for row in rows] for key in rows[0]["values"]}
        merged = same[0] | {"seeds": list(by_seed)} | _summary(values)
        if "videos_test" in rows[0]:
            merged["videos_test"] = [test for row in rows for test in row["videos_test"]]
        result.append(merged)
    return result


class _Damager:
    """Damages batches of sequences. What is damaged depends on the draw and the video, never on the batch."""

    def __init__(
        self, model: LearnedNetwork, videos: Sequence[Video], damage: Damage, mask: Mask, draws: int, seed: int
    ) -> None:
        if mask == "mean" and not len(model.statistics):
            raise UserError(
                "--mask mean needs the mean of the training features, and this model has none because it does not"
                " standardise its features: use --mask zero."
            )
        self._damage = damage
        self._towards = dict.fromkeys(MODALITIES, torch.zeros(model.config.dim))
        if mask == "mean":
            for name in MODALITIES:
                statistics = model.statistics[name]
                assert isinstance(statistics, Standardize)
                self._towards[name] = statistics.centre.cpu()
        # The rank of each dimension, or of each segment of each video, in the order in which they are damaged.
        self._ranks: list[list[Tensor]] = []
        sizes = [model.config.dim] if damage == "features" else [video.segments for video in videos]
        for draw in range(draws):
            generator = torch.Generator().manual_seed(seed + draw)
            self._ranks.append([torch.randperm(size, generator=generator).argsort() for size in sizes])

    def __call__(self, case: _Case, numbers: Sequence[int], image: Tensor, event: Tensor) -> tuple[Tensor, Tensor]:
        """Return the damaged features of the videos of these numbers; image and event are (B, T, D) each."""
        values, towards = (image if case.masked == "image" else event), self._towards[case.masked]
        ranks = self._ranks[case.draw]
        if self._damage == "features":
            hit = ranks[0] < round(case.ratio * len(ranks[0]))
            values = torch.where(hit, towards, values)
        else:
            hits, _ = pad_batch([ranks[n] < round(case.ratio * len(ranks[n])) for n in numbers])
            values = torch.where(hits.unsqueeze(-1), towards + LEFT * (values - towards), values)
        return (values, event) if case.masked == "image" else (image, values)


def _score_cases(
    model: LearnedNetwork,
    videos: Sequence[Video],
    cases: Sequence[_Case],
    crops: str,
    chunk: int,
    damager: _Damager,
    progress: bool,
) -> np.ndarray:
    """Score all videos with each damage; (cases, segments of all videos, 4) as `Scorer.feed` returns them.

    Features are read once. Sequences that fit in one chunk are scored together, also those of several cases.
    """
    starts = np.cumsum([0, *(video.segments for video in videos)])
    rows = np.zeros((len(cases), starts[-1], 4), np.float32)
    bar = Progress(len(cases) * len(videos), "robustness", "video", shown=progress)
    for numbers, pairs, parts in _groups(videos, crops, chunk):
        image, lengths = pad_batch([pair[0] for pair in pairs])
        event, _ = pad_batch([pair[1] for pair in pairs])
        together = max(1, _BATCH // len(pairs))
        for first in range(0, len(cases), together):
            some = cases[first : first + together]
            if image.shape[1] > chunk:
                found = np.stack([Scorer(model, chunk=chunk).feed(*damager(c, numbers, image, event)) for c in some])
                found = found[:, None]
            else:
                images, events = zip(*(damager(case, numbers, image, event) for case in some), strict=True)
                scored, _ = score_batch(
                    model, torch.cat(images), torch.cat(events), lengths.repeat(len(some)), chunk=chunk
                )
                found = scored.reshape(len(some), len(pairs), -1, 4)
            for place, number in enumerate(numbers):
                length = videos[number].segments
                rows[first : first + together, starts[number] : starts[number + 1]] += (
                    parts[place] * found[:, place, :length]
                )
            bar.update(float(sum(parts)) * len(some))
    bar.close()
    return rows


def _groups(
    videos: Sequence[Video], crops: str, chunk: int
) -> Iterable[tuple[list[int], list[tuple[Tensor, Tensor]], list[float]]]:
    """Yield what is scored together: numbers of the videos, features, and part of each in the mean over its crops.

    These are up to `_BATCH` sequences that fit in one chunk, or one crop of a longer video.
    """
    waiting: list[tuple[int, tuple[Tensor, Tensor], float]] = []
    for number, video in enumerate(videos):
        chosen = choose_crops(video.crops, crops)
        for crop in chosen:
            entry = (number, video.features(crop), 1 / len(chosen))
            if video.segments > chunk:
                yield [entry[0]], [entry[1]], [entry[2]]
                continue
            waiting.append(entry)
            if len(waiting) == _BATCH:
                yield tuple(map(list, zip(*waiting, strict=True)))  # type: ignore[misc]
                waiting.clear()
    if waiting:
        yield tuple(map(list, zip(*waiting, strict=True)))  # type: ignore[misc]


def _as_videos(videos: Sequence[Video], rows: np.ndarray) -> list[VideoScores]:
    ends = np.cumsum([video.segments for video in videos])
    return [as_scores(video, rows[end - video.segments : end]) for video, end in zip(videos, ends, strict=True)]


ROW_METRICS = ("auc", "ap", "ano_auc", "brier", "ece", "kl", "w_img", "w_evt")
"""Metrics in the table of robustness, where the network has them."""


def robustness_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the printed table: damaged stream, fraction and `ROW_METRICS`, as `spread` returns them."""
    titles = {"auc": "AUC", "ap": "AP", "ano_auc": "Ano-AUC", "brier": "Brier", "ece": "ECE", "kl": "KL"}
    return [
        {"damaged": row["masked"], "fraction": f"{row['ratio']:.0%}"}
        | {titles.get(key, key): spread(row, key) for key in ROW_METRICS}
        for row in rows
    ]


def spread(row: Mapping[str, Any], key: str) -> Spread | None:
    """Return mean and deviation of a metric of a row; None where it is undefined. Rows of old runs have one draw."""
    return None if row.get(key) is None else Spread(row[key], (row.get("std") or {}).get(key))


def explain(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence how the rows were measured."""
    # Version 0.1 had one way, which its rows do not name.
    row = {"mask": "zero", "damage": "features", "draws": 1, **rows[-1]}
    towards = "the mean of the training features" if row["mask"] == "mean" else "zero"
    if row["damage"] == "features":
        what = f"Feature dimensions become {towards}"
    elif row["mask"] == "mean":
        what = f"The distance of time steps from {towards} is scaled by {LEFT}"
    else:
        what = f"Time steps are scaled by {LEFT}"
    draws = f"{row['draws']} draw{'s' if row['draws'] > 1 else ''}"
    seeds = row.get("seeds", ())
    over = "seeds" if len(seeds) > 1 else "draws"
    by = f" for each of {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"{what}; mean ± standard deviation over {over}, {draws}{by}."


def _means(videos: Sequence[VideoScores], weight: str) -> np.ndarray:
    """Return the mean weight of each video that has segments."""
    return np.array([getattr(v, weight).mean(dtype=np.float64) for v in videos if v.scores.size])


def _less(row: Mapping[str, Any], clean: Mapping[str, Any], key: str) -> float | None:
    return None if row[key] is None else row[key] - clean[key]


def _over_draws(drawn: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise rows that differ in the draw alone."""
    values = {key: [[row[key] for row in drawn]] for key in drawn[0] if key not in ("masked", "ratio")}
    return {key: drawn[0][key] for key in ("masked", "ratio")} | {"draws": len(drawn)} | _summary(values)


def _summary(values: dict[str, list[list[float | None]]]) -> dict[str, Any]:
    """Return mean, deviations and values of each metric, from one list per network of one value per draw."""
    means: dict[str, float | None] = {}
    deviations: dict[str, dict[str, float | None]] = {"std": {}, "std_draws": {}}
    for key, networks in values.items():
        numbers = np.array(networks, dtype=np.float64)  # None becomes NaN
        defined = bool(np.isfinite(numbers).all())
        means[key] = float(numbers.mean()) if defined else None
        draws = None
        if defined and numbers.shape[1] > 1:
            draws = float(np.sqrt(numbers.var(axis=1, ddof=1).mean()))
        seeds = float(numbers.mean(axis=1).std(ddof=1)) if defined and len(numbers) > 1 else None
        deviations["std_draws"][key] = draws
        deviations["std"][key] = draws if len(numbers) == 1 else seeds
    return means | deviations | {"values": values}
