"""From a network and a video's features to one score a segment, in chunks with the recursion's state carried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iefvad.data.datasets import Video, pad_batch
from iefvad.errors import UserError
from iefvad.model import IEFVAD, MODALITIES, State
from iefvad.video_scores import VideoScores

CENTRE, MIRRORED_CENTRE = 0, 5  # positions in the field's crop order (SPEC §4)


def test_crops(available: Sequence[int], wanted: str) -> list[int]:
    """Crops that are scored: `wanted` is "5", "0" or "all"; a store with the centre alone is tested on the centre.

    Raises UserError where the wanted crop was not extracted and the centre was not either.
    """
    if wanted == "all":
        return list(available)
    for crop in (int(wanted), CENTRE, MIRRORED_CENTRE):
        if crop in available:
            return [crop]
    raise UserError(
        f"none of the crops 0 and 5 is among the features (there are {list(available)}): use --test-crops all."
    )


class Scorer:
    """Scores one video chunk by chunk: feed features in order, get one row of numbers a segment.

    The encoder sees `chunk` segments at a time; the state of the recursion goes on from chunk to chunk, so memory does
    not grow with the video (SPEC §4).
    """

    def __init__(self, model: IEFVAD, *, chunk: int = 256) -> None:
        self.model = model.eval()
        self.chunk = chunk
        self._state: State | None = None

    def feed(self, image: Tensor, event: Tensor) -> np.ndarray:
        """(crops, t, D) features of the next t segments → (t, 4) float32: score, w_img, w_evt, gain, NaN where absent.

        Crops are scored as separate sequences and averaged.
        """
        rows = []
        for start in range(0, image.shape[1], self.chunk):
            end = min(start + self.chunk, image.shape[1])
            lengths = torch.full((len(image),), end - start)
            numbers, self._state = score_batch(
                self.model, image[:, start:end], event[:, start:end], lengths, chunk=self.chunk, state=self._state
            )
            rows.append(numbers.mean(0))
        return np.concatenate(rows) if rows else np.zeros((0, 4), np.float32)


@torch.inference_mode()
def score_batch(
    model: IEFVAD, image: Tensor, event: Tensor, lengths: Tensor, *, chunk: int, state: State | None = None
) -> tuple[np.ndarray, State | None]:
    """(B, T, D) features with T ≤ chunk → (B, T, 4) float32 rows as of `Scorer.feed`, and the recursion's state.

    The published variant attends to padding, so its input is padded to `chunk` segments, as in its training.
    """
    device = next(model.parameters()).device
    segments = image.shape[1]
    if model.config.released:
        image, event = (F.pad(features, (0, 0, 0, chunk - segments)) for features in (image, event))
    out = model(image.to(device).float(), event.to(device).float(), lengths.to(device), state=state)
    columns = [out.scores]
    for values in (out.w_img, out.w_evt, out.gain):
        columns.append(torch.full_like(out.scores, torch.nan) if values is None else values.float().mean(-1))
    return torch.stack(columns, -1)[:, :segments].cpu().numpy(), out.state


class Masked(Video):
    """A video one of whose modalities has some feature dimensions set to zero (paper §4.2)."""

    def __init__(self, video: Video, modality: str, dimensions: Tensor) -> None:
        self.__dict__.update(video.__dict__)
        self._video, self._modality, self._dimensions = video, modality, dimensions

    def features(self, crop: int) -> tuple[Tensor, Tensor]:
        """Image and event features (T, D) of one crop, masked."""
        pair = dict(zip(MODALITIES, self._video.features(crop), strict=True))
        pair[self._modality] = pair[self._modality].index_fill(1, self._dimensions, 0.0)
        return pair["image"], pair["event"]


def check_encoder(trained: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Raise UserError where features were made by another encoder, or in another way, than a model was trained on."""
    ignored = {"crops", "format", "tail", "image_weights", "event_weights"}  # not what decides a feature's meaning
    differing = [key for key in trained if key not in ignored and key in given and trained[key] != given[key]]
    if differing:
        changes = "; ".join(f"{key} is {given[key]}, the run has {trained[key]}" for key in differing)
        raise UserError(
            f"{what} were made differently from those the run was trained on: {changes}. Extract them again."
        )


def score_videos(
    model: IEFVAD, videos: Sequence[Video], *, crops: str = "5", chunk: int = 256, batch: int = 64
) -> list[VideoScores]:
    """Score stored videos; `crops` as in `test_crops`. Returns per-segment scores, weights and gain of each.

    Sequences that fit in one chunk are scored `batch` at a time; padding never influences a score, so this changes
    nothing but the time it takes.
    """
    model.eval()
    rows: dict[int, list[np.ndarray]] = {index: [] for index in range(len(videos))}
    waiting: list[tuple[int, Tensor, Tensor]] = []

    def score_waiting() -> None:
        image, lengths = pad_batch([entry[1] for entry in waiting])
        event, _ = pad_batch([entry[2] for entry in waiting])
        numbers, _ = score_batch(model, image, event, lengths, chunk=chunk)
        for (index, features, _), row in zip(waiting, numbers, strict=True):
            rows[index].append(row[: len(features)])
        waiting.clear()

    for index, video in enumerate(videos):
        for crop in test_crops(video.crops, crops):
            image, event = video.features(crop)
            if len(image) > chunk:
                rows[index].append(Scorer(model, chunk=chunk).feed(image[None], event[None]))
                continue
            waiting.append((index, image, event))
            if len(waiting) == batch:
                score_waiting()
    if waiting:
        score_waiting()
    return [as_scores(video, np.mean(rows[index], axis=0)) for index, video in enumerate(videos)]


def as_scores(video: Video, rows: np.ndarray) -> VideoScores:
    """Scores of a video from the (T, 4) rows of a `Scorer`; absent columns become None."""
    columns = [None if np.isnan(column).all() else column for column in rows.T[1:]]
    if len(rows) == 0:
        columns = [None, None, None]
    return VideoScores(
        name=video.name,
        classes=video.classes,
        fps=video.fps,
        truth=video.truth,
        scores=rows[:, 0],
        w_img=columns[0],
        w_evt=columns[1],
        gain=columns[2],
        source=video.source,
    )


def density_scores(videos: Sequence[Video]) -> list[VideoScores] | None:
    """The trivial detector: a segment's score is its mean event density. None where the store holds no densities."""
    result = []
    for video in videos:
        if video.event_density is None:
            return None
        density = np.asarray(video.event_density, dtype=np.float32)
        rows = np.stack([density, *[np.full_like(density, np.nan)] * 3], axis=1)
        result.append(as_scores(video, rows))
    return result
