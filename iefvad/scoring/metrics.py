"""Frame-level detection metrics, computed by scikit-learn. Definitions: `docs/specification.md#metrics`.

A score belongs to a segment of 16 frames and counts once per frame, as in the field's protocol. The frames of a
segment share its score, so a segment enters twice, weighted by its numbers of abnormal and of normal frames. This gives
the same figures as repeating each score 16 times, and sorts an eighth of the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iefvad.scoring.video_scores import Array, VideoScores, to_frames
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT


@dataclass(frozen=True)
class Curves:
    """ROC and precision-recall curves over frames: one point per distinct score, from the highest score down.

    Attributes:
        fpr: False positive rates; the curve (fpr, tpr) goes from (0, 0) to (1, 1).
        tpr: True positive rates.
        precision: Precisions, starting at 1 by convention.
        recall: Recalls, starting at 0.
        auc: Area under the ROC curve.
        ap: Average precision.
    """

    fpr: Array
    tpr: Array
    precision: Array
    recall: Array
    auc: float
    ap: float


@dataclass(frozen=True)
class _Points:
    """What scikit-learn ranks: each segment twice, weighted by its number of abnormal and of normal frames."""

    scores: Array
    labels: Array
    weights: Array
    video: Array

    @classmethod
    def of(cls, videos: Sequence[VideoScores]) -> _Points:
        scores = np.concatenate([np.zeros(0), *(v.scores for v in videos)])
        video = np.repeat(np.arange(len(videos)), [v.scores.size for v in videos])
        abnormal = [np.asarray(v.truth).reshape(-1, SEGMENT).sum(axis=1, dtype=np.int64) for v in videos]
        positive = np.concatenate([np.zeros(0, np.int64), *abnormal])
        labels = np.repeat([1, 0], scores.size)
        return cls(np.tile(scores, 2), labels, np.concatenate([positive, SEGMENT - positive]), np.tile(video, 2))

    def weighted(self, weights: Array) -> _Points:
        """Return the same points with other weights, without those of weight 0."""
        kept = weights > 0
        return _Points(self.scores[kept], self.labels[kept], weights[kept], self.video[kept])

    @property
    def both_labels(self) -> bool:
        return set(np.unique(self.labels[self.weights > 0])) == {0, 1}

    def auc(self) -> float | None:
        if not self.both_labels:
            return None
        from sklearn.metrics import roc_auc_score  # here, so that detection does without its 150 MB

        return float(roc_auc_score(self.labels, self.scores, sample_weight=self.weights))

    def ap(self) -> float | None:
        if not self.both_labels:
            return None
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(self.labels, self.scores, sample_weight=self.weights))


def _frames(scores: npt.ArrayLike, truth: npt.ArrayLike) -> _Points:
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(truth) > 0
    if values.shape != labels.shape or values.ndim != 1:
        raise ValueError(f"scores and truth must be (n,) both, got {values.shape} and {labels.shape}")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    return _Points(values, labels.astype(np.int64), np.ones(values.size), np.zeros(values.size, np.int64))


def roc_auc(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float | None:
    """Compute the area under the ROC curve.

    Args:
        scores: Finite scores, (n,).
        truth: 0/1 labels, (n,).

    Returns:
        The area; None unless both labels occur.

    Raises:
        ValueError: shapes do not match, or a score is not finite.
    """
    return _frames(scores, truth).auc()


def average_precision(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float | None:
    """Compute the average precision, the sum of (R_n - R_{n-1}) P_n. Arguments and errors as in `roc_auc`."""
    return _frames(scores, truth).ap()


def curves(videos: Sequence[VideoScores]) -> Curves | None:
    """Compute the frame-level curves over the videos that have truth. None unless both labels occur."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    points = _Points.of([v for v in videos if v.truth is not None])
    auc, ap = points.auc(), points.ap()
    if auc is None or ap is None:
        return None
    points = points.weighted(points.weights)
    fpr, tpr, _ = roc_curve(points.labels, points.scores, sample_weight=points.weights, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(points.labels, points.scores, sample_weight=points.weights)
    return Curves(fpr, tpr, precision[::-1], recall[::-1], auc, ap)


def bootstrap_auc(
    videos: Sequence[VideoScores], *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Compute a percentile interval of the frame AUC. Whole videos are resampled, because their frames are dependent.

    Args:
        videos: Scores; videos without truth are left out.
        resamples: Number of resamples.
        level: Probability that the interval covers.
        seed: Seed of the resampling.

    Returns:
        The ends of the interval. None with fewer than 5 videos that have truth, or where fewer than half of the
        resamples contain both labels.
    """
    known = [v for v in videos if v.truth is not None and v.scores.size]
    if len(known) < 5:
        return None
    points = _Points.of(known)
    random = np.random.default_rng(seed)
    areas = []
    for _ in range(resamples):
        times = np.bincount(random.integers(len(known), size=len(known)), minlength=len(known))
        area = points.weighted(points.weights * times[points.video]).auc()
        if area is not None:
            areas.append(area)
    if len(areas) * 2 < resamples or not areas:
        return None
    low, high = np.quantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _bernoulli_inputs(values: npt.ArrayLike | Sequence[VideoScores]) -> Array:
    if isinstance(values, Sequence) and values and isinstance(values[0], VideoScores):
        return np.concatenate([v.scores for v in values if isinstance(v, VideoScores)]).astype(np.float64)
    return np.asarray(values, dtype=np.float64).ravel()


def prediction_kl(
    clean: npt.ArrayLike | Sequence[VideoScores], masked: npt.ArrayLike | Sequence[VideoScores], eps: float = 1e-7
) -> float | None:
    """Compute the mean KL(clean || masked) of the Bernoulli predictions over segments (paper, Appendix H).

    Args:
        clean: Probabilities of any shape, or scores of videos.
        masked: Probabilities of the same shape, or scores of the same videos in the same order.
        eps: Probabilities are clipped to [eps, 1 - eps].

    Returns:
        The divergence in nats; None without segments.

    Raises:
        ValueError: the numbers of predictions differ.
    """
    p, q = _bernoulli_inputs(clean), _bernoulli_inputs(masked)
    if p.shape != q.shape:
        raise ValueError(f"clean and masked predictions differ in number: {p.size} and {q.size}")
    if not p.size:
        return None
    p, q = np.clip(p, eps, 1 - eps), np.clip(q, eps, 1 - eps)
    return float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


def _mean(values: Iterable[Array]) -> float | None:
    parts = [v for v in values if v.size]
    return float(np.concatenate(parts).mean(dtype=np.float64)) if parts else None


def _weights(videos: Sequence[VideoScores]) -> dict[str, dict[str, float | None]]:
    """Average w_img, w_evt and gain over all, abnormal and normal segments; empty for a model without them."""
    result: dict[str, dict[str, float | None]] = {}
    for field in ("w_img", "w_evt", "gain"):
        having = [(getattr(v, field), v.abnormal_segments) for v in videos if getattr(v, field) is not None]
        if having:
            result[field] = {
                "overall": _mean(w for w, _ in having),
                "abnormal": _mean(w[a] for w, a in having if a is not None),
                "normal": _mean(w[~a] for w, a in having if a is not None),
            }
    return result


def _brier(videos: Sequence[VideoScores]) -> float | None:
    """Average the squared distance between probability and 0/1 truth over frames."""
    frames = sum(SEGMENT * v.scores.size for v in videos)
    if not frames:
        return None
    total = 0.0
    for v in videos:
        difference = to_frames(v.scores.astype(np.float64)) - np.asarray(v.truth)
        total += float(difference @ difference)
    return total / frames


@dataclass(frozen=True)
class Reliability:
    """How often frames of about the same score are abnormal (reliability diagram).

    Bins are equally wide; those without frames are left out.

    Attributes:
        score: Mean score of each bin, ascending.
        abnormal: Fraction of its frames that are abnormal.
        frames: Number of its frames.
        ece: Expected calibration error: mean distance of the first two, weighted by the third.
    """

    score: Array
    abnormal: Array
    frames: Array
    ece: float


def reliability(videos: Sequence[VideoScores], *, bins: int = 15) -> Reliability | None:
    """Compare scores, read as probabilities, with the truth. Definition: `docs/specification.md#metrics`.

    Args:
        videos: Scores; videos without truth are left out.
        bins: Number B of bins [k/B, (k + 1)/B); the last contains 1 also.

    Returns:
        The comparison; None without frames, or where a score is outside [0, 1].
    """
    points = _Points.of([v for v in videos if v.truth is not None])
    if not points.scores.size or points.scores.min() < 0 or points.scores.max() > 1:
        return None
    number = np.minimum((points.scores * bins).astype(np.int64), bins - 1)
    frames = np.bincount(number, points.weights, minlength=bins)
    used = frames > 0
    frames = frames[used]
    score = np.bincount(number, points.weights * points.scores, minlength=bins)[used] / frames
    abnormal = np.bincount(number, points.weights * points.labels, minlength=bins)[used] / frames
    return Reliability(score, abnormal, frames, float(frames @ np.abs(score - abnormal) / frames.sum()))


def _why_undefined(videos: Sequence[VideoScores], what: str) -> str:
    if not videos:
        return f"{what} are undefined: no such video has frame-level truth"
    if not any(v.scores.size for v in videos):
        return f"{what} are undefined: no video has a segment"
    abnormal = any(np.asarray(v.truth).any() for v in videos)
    return f"{what} are undefined: every frame is {'abnormal' if abnormal else 'normal'}"


def evaluate(
    videos: Sequence[VideoScores], *, bootstrap: int = 0, classes: bool = True, probabilities: bool = True
) -> dict[str, Any]:
    """Compute all metrics of one model. Definitions: `docs/specification.md#metrics`.

    Args:
        videos: Scores of the test videos.
        bootstrap: Number of resamples of the 95% interval of the AUC; 0 for no interval.
        classes: Compute the metrics per class too.
        probabilities: The scores claim to be probabilities of an anomaly; without it, brier and ece are None.

    Returns:
        Plain JSON values: auc and ap over all frames that have truth; ano_auc over the videos with a class; brier; ece;
        per_class {class: {auc, ap, videos}} over the videos of one class alone, where a video of several classes counts
        in each; weights {w_img, w_evt and gain: {overall, abnormal, normal}} over segments; videos, abnormal_videos,
        segments, frames, abnormal_frames; auc_ci [low, high] where `bootstrap` is not 0; notes. What cannot be computed
        is None, and the notes say why.

    Raises:
        UserError: there are no videos.
    """
    if not videos:
        raise UserError("there are no test videos to evaluate; check the test list")
    notes: list[str] = []
    known = [v for v in videos if v.truth is not None]
    if len(known) < len(videos):
        notes.append(f"{len(videos) - len(known)} of {len(videos)} videos have no frame-level truth and are left out")

    def rank(subset: Sequence[VideoScores], what: str) -> tuple[float | None, float | None]:
        points = _Points.of(subset)
        auc = points.auc()
        if auc is None:
            notes.append(_why_undefined(subset, what))
        return auc, points.ap()

    auc, ap = rank(known, "AUC and AP")
    anomalous = [v for v in known if v.classes]
    ano_auc, _ = rank(anomalous, "Ano-AUC and its AP")
    per_class: dict[str, dict[str, Any]] = {}
    for name in sorted({c for v in videos for c in v.classes if classes}):
        members = [v for v in known if name in v.classes]
        class_auc, class_ap = rank(members, f"AUC and AP of class {name}")
        per_class[name] = {"auc": class_auc, "ap": class_ap, "videos": len(members)}
    brier = None
    calibration = reliability(known) if probabilities else None
    if not probabilities:
        notes.append("Brier score and ECE are undefined: the scores are not probabilities of an anomaly")
    elif any(v.scores.size and (v.scores.min() < 0 or v.scores.max() > 1) for v in known):
        notes.append("Brier score and ECE are undefined: the scores are not probabilities (outside [0, 1])")
    else:
        brier = _brier(known)
    result: dict[str, Any] = {
        "auc": auc,
        "ap": ap,
        "ano_auc": ano_auc,
        "brier": brier,
        "ece": None if calibration is None else calibration.ece,
        "per_class": per_class,
        "weights": _weights(videos),
        "videos": len(videos),
        "abnormal_videos": sum(bool(v.classes) for v in videos),
        "segments": sum(v.scores.size for v in videos),
        "frames": sum(SEGMENT * v.scores.size for v in known),
        "abnormal_frames": sum(int(np.asarray(v.truth).sum(dtype=np.int64)) for v in known),
        "notes": notes,
    }
    if bootstrap:
        interval = bootstrap_auc(known, resamples=bootstrap)
        result["auc_ci"] = None if interval is None else list(interval)
    return result


def robustness_row(
    masked: str, ratio: float, clean: Sequence[VideoScores], degraded: Sequence[VideoScores]
) -> dict[str, Any]:
    """Compute one row of the tables of Appendix H of the paper.

    Args:
        masked: The masked modality: "none", "image" or "event".
        ratio: Fraction of its feature dimensions or time steps that is damaged.
        clean: Scores on clean features.
        degraded: Scores on masked features, of the same videos in the same order.

    Returns:
        masked, ratio, auc, ap, ano_auc, brier, ece, kl, and for each of w_img, w_evt and gain that the model has its
        mean over all segments, with "_abnormal" over abnormal and with "_normal" over normal segments.
    """
    found = evaluate(degraded, classes=False)
    row: dict[str, Any] = {"masked": masked, "ratio": float(ratio)}
    row.update({key: found[key] for key in ("auc", "ap", "ano_auc", "brier", "ece")})
    row["kl"] = prediction_kl(clean, degraded)
    for field, means in found["weights"].items():
        row.update(
            {field: means["overall"], f"{field}_abnormal": means["abnormal"], f"{field}_normal": means["normal"]}
        )
    return row
