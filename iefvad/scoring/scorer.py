"""From a network and a video's features to one score a segment, in chunks with the recursion's state carried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iefvad.features.videos import Video, pad_batch
from iefvad.model.network import Network, State
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError

CENTRE, MIRRORED_CENTRE = 0, 5  # positions in the field's crop order (SPEC §4)


def choose_crops(available: Sequence[int], wanted: str) -> list[int]:
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
    """Scores one video in pieces: feed features in order, get one row of numbers a segment.

    `hop` segments are scored at a time (default: `chunk`, the protocol of evaluation, SPEC §4). The attention sees them
    and the `context` segments before them (default: chunk - hop), at most `chunk` in all. The recursion's state goes on
    from piece to piece, so memory does not grow with the video. A network with windows sees, of what came before, the
    begun window and nothing else: windows lie where they would in the whole video. Raises UserError for a hop or
    context that does not fit.
    """

    def __init__(self, model: Network, *, chunk: int = 256, hop: int | None = None, context: int | None = None) -> None:
        self.model = model.eval()
        self.chunk = chunk
        self.hop = chunk if hop is None else hop
        if not 1 <= self.hop <= chunk:
            raise UserError(f"--hop is a number of segments from 1 to {chunk}, what the model sees at once; not {hop}.")
        self.context = chunk - self.hop if context is None else context
        if not 0 <= self.context <= chunk - self.hop:
            raise UserError(
                f"--context must lie between 0 and {chunk - self.hop}: the model sees {chunk} segments at once and"
                f" {self.hop} of them are new; not {context}."
            )
        self._state: State | None = None
        self._seen = 0
        self._before: tuple[Tensor, Tensor] | None = None

    def feed(self, image: Tensor, event: Tensor) -> np.ndarray:
        """(crops, t, D) features of the next t segments → (t, 4) float32: score, w_img, w_evt, gain, NaN where absent.

        Crops are scored as separate sequences and averaged.
        """
        rows = []
        for start in range(0, image.shape[1], self.hop):
            end = min(start + self.hop, image.shape[1])
            rows.append(self._piece(image[:, start:end], event[:, start:end]))
        return np.concatenate(rows) if rows else np.zeros((0, 4), np.float32)

    def _piece(self, image: Tensor, event: Tensor) -> np.ndarray:
        context = 0
        if self._before is not None:
            context = self._before[0].shape[1]
            image = torch.cat((self._before[0], image), 1)
            event = torch.cat((self._before[1], event), 1)
        lengths = torch.full((len(image),), image.shape[1])
        numbers, self._state = score_batch(
            self.model, image, event, lengths, chunk=self.chunk, state=self._state, context=context
        )
        self._seen += image.shape[1] - context
        kept = min(self._keep(), image.shape[1])
        # Clones: a view would keep the whole tensor it was cut from.
        self._before = (image[:, -kept:].clone(), event[:, -kept:].clone()) if kept else None
        return numbers.mean(0)

    def _keep(self) -> int:
        """Segments before the next piece that its attention shall see."""
        window = self.model.config.window
        if self.hop == self.chunk or window is None:
            return self.context
        return self._seen % window


@torch.inference_mode()
def score_batch(
    model: Network,
    image: Tensor,
    event: Tensor,
    lengths: Tensor,
    *,
    chunk: int,
    state: State | None = None,
    context: int = 0,
) -> tuple[np.ndarray, State | None]:
    """(B, T, D) features with T ≤ chunk → (B, T - context, 4) float32 rows as of `Scorer.feed`, and the state.

    The first `context` segments are there for the attention alone. The published variant attends to padding, so its
    input is padded to `chunk` segments, as in its training.
    """
    device = next(model.parameters()).device
    segments = image.shape[1]
    if model.config.released and segments < chunk:
        image, event = (F.pad(features, (0, 0, 0, chunk - segments)) for features in (image, event))
    out = model(image.to(device).float(), event.to(device).float(), lengths.cpu(), state=state, context=context)
    columns = [out.scores]
    for values in (out.w_img, out.w_evt, out.gain):
        columns.append(torch.full_like(out.scores, torch.nan) if values is None else values.float().mean(-1))
    return torch.stack(columns, -1)[:, : segments - context].cpu().numpy(), out.state


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
    model: Network, videos: Sequence[Video], *, crops: str = "5", chunk: int = 256, batch: int = 64
) -> list[VideoScores]:
    """Score stored videos; `crops` as in `choose_crops`. Returns per-segment scores, weights and gain of each.

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
        for crop in choose_crops(video.crops, crops):
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
    w_img, w_evt, gain = columns_of(rows)
    return VideoScores(
        name=video.name,
        classes=video.classes,
        fps=video.fps,
        truth=video.truth,
        scores=rows[:, 0],
        w_img=w_img,
        w_evt=w_evt,
        gain=gain,
        source=video.source,
    )


def columns_of(rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """w_img, w_evt and gain (T,) from the (T, 4) rows of a `Scorer`; None for what the network does not have."""
    columns = [column if len(column) and not np.isnan(column).all() else None for column in rows.T[1:]]
    return columns[0], columns[1], columns[2]


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
