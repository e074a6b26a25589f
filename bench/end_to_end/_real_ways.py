"""The ways to score the clips: event density, logistic regression on mean features, and trained networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from iefvad.data.batches import Clips, split_validation
from iefvad.features.videos import Video
from iefvad.model.config import MODALITIES
from iefvad.scoring.probe import probe_scores
from iefvad.training.run import Run, Variant
from iefvad.training.settings import Settings
from iefvad.training.trainer import Trainer

Array = npt.NDArray[np.float64]
PROBES = {"logistic image": ("image",), "logistic event": ("event",), "logistic both": MODALITIES}
NETWORKS = {
    "fusion": ("fusion", "ief"),
    "image": ("image", "ief"),
    "event": ("event", "ief"),
    "fusion paper": ("fusion", "paper"),
    "fusion released": ("fusion", "released"),
}
"""Streams and method of the trained networks."""
WAYS = ("event density", *PROBES, "linear probe", *NETWORKS)
STRENGTHS = {"logisticregression__C": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]}


@dataclass
class Scored:
    """Scores of the test clips of one fold.

    Attributes:
        clips: One score per clip.
        frame_auc: AUC over frames, each with the score of its segment.
        about: What else is known, such as the strength C of a regression.
    """

    clips: list[float]
    frame_auc: float
    about: dict[str, Any] = field(default_factory=dict)


class _Unsaved(Trainer):
    """The trainer without the files of a run: a benchmark trains hundreds of networks and keeps none."""

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        self.progress.epoch += 1
        self.progress.history.append(row)


def labels(videos: Sequence[Video]) -> npt.NDArray[np.int64]:
    """Return 1 for each abnormal video."""
    return np.array([bool(video.classes) for video in videos], np.int64)


def density(test: Sequence[Video]) -> Scored:
    """Score clips by their mean event density."""
    rows = [np.asarray(video.event_density, np.float64) for video in test]
    return _scored(rows, test)


def mean_features(videos: Sequence[Video], streams: Sequence[str]) -> Array:
    """Return the mean over the segments of the streams' features, side by side, (N, D · streams)."""
    rows = []
    for video in videos:
        found = video.features(video.crops[0])
        rows.append(np.concatenate([found[MODALITIES.index(stream)].double().mean(0).numpy() for stream in streams]))
    return np.stack(rows)


def regression(train: Sequence[Video], test: Sequence[Video], folds: Sequence[int], streams: Sequence[str]) -> Scored:
    """Score clips by logistic regression on standardised mean features.

    The strength C is chosen within the training clips: each of their folds is tested by the others.

    Args:
        train: Training clips.
        test: Test clips.
        folds: Fold of each training clip.
        streams: Modalities whose features are used.
    """
    kinds = labels(train)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)),
        STRENGTHS,
        scoring="roc_auc",
        cv=LeaveOneGroupOut(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weak regularisation may not converge; then it is not chosen
        search.fit(mean_features(train, streams), kinds, groups=np.asarray(folds))
    found = search.decision_function(mean_features(test, streams))
    rows = [np.full(video.segments, value) for video, value in zip(test, found, strict=True)]
    return _scored(rows, test, C=search.best_params_["logisticregression__C"])


def probe(train: Sequence[Video], test: Sequence[Video]) -> Scored:
    """Score clips by the probe of `iefvad.scoring.probe`, whose strength is fixed."""
    scored = probe_scores(train, test, "all")
    assert scored is not None
    return _scored([video.scores.astype(np.float64) for video in scored], test)


def network(train: Sequence[Video], test: Sequence[Video], settings: Settings, way: str, seed: int, dim: int) -> Scored:
    """Train a network as `iefvad train` does, and score the test clips by the mean score of their segments.

    Args:
        train: Training clips.
        test: Test clips.
        settings: Settings of the training.
        way: One of `NETWORKS`.
        seed: Seed of the training.
        dim: Width of the features.
    """
    modality, method = NETWORKS[way]
    run = Run(Path("unused"), settings)
    training, held_out = split_validation(train, settings.validation, seed=0)
    trainer = _Unsaved(run, Variant(way, modality, method), seed, dim=dim)
    fitted = trainer.fit(Clips(training, max_segments=settings.max_segments), held_out, [], progress=False)
    scored = trainer.score(test)
    about = {"epoch": fitted.epoch, "loss": trainer.progress.history[fitted.epoch - 1]["loss_cls"]}
    if scored[0].w_img is not None:
        weights = [np.asarray(video.w_img) for video in scored]
        about["w_img"] = float(np.concatenate(weights).mean())
    return _scored([video.scores.astype(np.float64) for video in scored], test, **about)


def _scored(rows: Sequence[Array], test: Sequence[Video], **about: Any) -> Scored:
    kinds = labels(test)
    frames = roc_auc_score(np.repeat(kinds, [len(row) for row in rows]), np.concatenate(rows))
    return Scored([float(row.mean()) for row in rows], float(frames), about)
