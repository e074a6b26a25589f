"""From a network and a video's features to one score per segment, in chunks that pass on the state of the recursion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from iefvad.encoders.sources import same_encoder
from iefvad.features.store import with_defaults
from iefvad.features.videos import Video, pad_batch
from iefvad.model.network import State
from iefvad.model.networks import AnyNetwork, device_of
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError
from iefvad.utils.progress import Progress

CENTRE, MIRRORED_CENTRE = 0, 5
"""Numbers of two crops in the field's order (`docs/specification.md#data-conventions`)."""


def choose_crops(available: Sequence[int], wanted: str) -> list[int]:
    """Choose the crops that are scored.

    Args:
        available: Numbers of the crops that were extracted.
        wanted: "5" (mirrored centre), "0" (centre) or "all".

    Returns:
        All crops, or one: the wanted one, otherwise the centre, otherwise the mirrored centre.

    Raises:
        UserError: none of these was extracted.
    """
    if wanted == "all":
        return list(available)
    for crop in (int(wanted), CENTRE, MIRRORED_CENTRE):
        if crop in available:
            return [crop]
    raise UserError(
        f"none of the crops 0 and 5 is among the features (there are {list(available)}): use --test-crops all."
    )


def tested_crops(videos: Sequence[Video], wanted: str) -> str:
    """Return which crops `choose_crops` takes: "all", or a number such as "0" (several where videos differ)."""
    if wanted == "all":
        return wanted
    return " and ".join(str(crop) for crop in sorted({choose_crops(video.crops, wanted)[0] for video in videos}))


def crop_notes(videos: Sequence[Video], wanted: str) -> list[str]:
    """Say it where the wanted crop is missing among several, so that another one is tested."""
    lacking = sum(len(video.crops) > 1 and wanted != "all" and int(wanted) not in video.crops for video in videos)
    if not lacking:
        return []
    return [
        f"{lacking} of {len(videos)} test videos have no crop {wanted}: crop {tested_crops(videos, wanted)} is tested;"
        " choose it with --test-crops 0 or all"
    ]


class Scorer:
    """Scores one video in pieces: takes features in order and returns one row of numbers per segment.

    The state of the recursion goes on from piece to piece, so memory does not grow with the video. A network with
    attention windows sees only the part of the current window that came before: windows lie where they would lie in the
    whole video.
    """

    def __init__(
        self, model: AnyNetwork, *, chunk: int = 256, hop: int | None = None, context: int | None = None
    ) -> None:
        """Prepare for a new video.

        Args:
            model: The network; it is put into evaluation mode.
            chunk: Number of segments that the attention sees at once.
            hop: Number of segments scored at a time. By default `chunk`, the protocol of evaluation
                (`docs/specification.md#data-conventions`).
            context: Number of segments before these that the attention also sees. By default `chunk` - `hop`.

        Raises:
            UserError: `hop` or `context` is out of range.
        """
        self.model = model.eval()
        self.chunk = chunk
        self.hop = chunk if hop is None else hop
        if not 1 <= self.hop <= chunk:
            raise UserError(
                f"--hop must lie between 1 and {chunk}, the number of segments that the model sees at once; not {hop}."
            )
        self.context = chunk - self.hop if context is None else context
        if not 0 <= self.context <= chunk - self.hop:
            raise UserError(
                f"--context must lie between 0 and {chunk - self.hop}, as the model sees {chunk} segments at once and"
                f" {self.hop} of them are new; not {context}."
            )
        self._state: State | None = None
        self._seen = 0
        self._before: tuple[Tensor, Tensor] | None = None

    def feed(self, image: Tensor, event: Tensor) -> np.ndarray:
        """Score the next t segments. Crops are scored as separate sequences and averaged.

        Args:
            image: Image features, (crops, t, D).
            event: Event features, (crops, t, D).

        Returns:
            Score, w_img, w_evt and gain of each segment, (t, 4) float32; NaN for what the network does not have.
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
        rows: np.ndarray = numbers.mean(0)
        return rows

    def _keep(self) -> int:
        """Return the number of segments before the next piece that its attention will see."""
        window = self.model.config.window
        if self.hop == self.chunk or window is None:
            return self.context
        return self._seen % window


@torch.inference_mode()
def score_batch(
    model: AnyNetwork,
    image: Tensor,
    event: Tensor,
    lengths: Tensor,
    *,
    chunk: int,
    state: State | None = None,
    context: int = 0,
) -> tuple[np.ndarray, State | None]:
    """Score a batch of sequences.

    Args:
        model: The network, in evaluation mode.
        image: Image features, (B, T, D) with T of at most `chunk`.
        event: Event features, (B, T, D).
        lengths: Number of valid segments of each sequence, (B,).
        chunk: Number of segments that the attention sees at once. The released variant attends to padding, so its input
            is padded to this length, as in its training.
        state: State of the recursion before the first new segment; None at the start of a video.
        context: The first segments, which only the attention sees.

    Returns:
        Rows as in `Scorer.feed`, (B, T - context, 4) float32, and the state after the last segment.
    """
    device = device_of(model)
    segments = image.shape[1]
    if model.config.released and segments < chunk:
        image, event = (pad(features, (0, 0, 0, chunk - segments)) for features in (image, event))
    out = model(image.to(device).float(), event.to(device).float(), lengths.cpu(), state=state, context=context)
    columns = [out.scores]
    for values in (out.w_img, out.w_evt, out.gain):
        columns.append(torch.full_like(out.scores, torch.nan) if values is None else values.float().mean(-1))
    return torch.stack(columns, -1)[:, : segments - context].cpu().numpy(), out.state


def check_encoder(trained: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Check that features were made as those that a model was trained on.

    Args:
        trained: Encoder settings that the model was trained with.
        given: Encoder settings of the features.
        what: Name of the features for the message.

    Raises:
        UserError: a setting that changes the features differs.
    """
    trained, given = with_defaults(trained), with_defaults(given)
    # None of these changes a feature, nor where the weights are. Damage does, but to measure that is its purpose.
    ignored = {"crops", "format", "tail", "corrupt"}
    ignored |= {f"{stream}_weights{what}" for stream in ("image", "event") for what in ("", "_origin")}
    differing = [
        key
        for key in trained
        if key not in ignored
        and key in given
        and trained[key] != given[key]
        and not (key.endswith("_encoder") and same_encoder(trained[key], given[key]))
    ]
    if differing:
        changes = "; ".join(f"{key} is {given[key]}, but {trained[key]} in the run" for key in differing)
        raise UserError(
            f"{what} were made differently from those the run was trained on: {changes}. Extract them again."
        )


def score_videos(
    model: AnyNetwork,
    videos: Sequence[Video],
    *,
    crops: str = "5",
    chunk: int = 256,
    batch: int = 64,
    progress: str = "",
) -> list[VideoScores]:
    """Score stored videos.

    Args:
        model: The network; it is put into evaluation mode.
        videos: Videos with stored features.
        crops: The crops that are scored, as in `choose_crops`.
        chunk: Number of segments that the attention sees at once.
        batch: Number of sequences scored together, among those that fit in one chunk. Padding never changes a score, so
            this only changes the time it takes.
        progress: What the progress is called; empty: none is shown.

    Returns:
        Scores, weights and gain of each video, in the order of `videos`.
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

    with Progress(len(videos), progress, "video", shown=bool(progress)) as bar:
        for index, video in enumerate(videos):
            for crop in choose_crops(video.crops, crops):
                image, event = video.features(crop)
                if len(image) > chunk:
                    rows[index].append(Scorer(model, chunk=chunk).feed(image[None], event[None]))
                    continue
                waiting.append((index, image, event))
                if len(waiting) == batch:
                    score_waiting()
            bar.update()
        if waiting:
            score_waiting()
    return [as_scores(video, np.mean(rows[index], axis=0)) for index, video in enumerate(videos)]


def as_scores(video: Video, rows: np.ndarray) -> VideoScores:
    """Make the scores of a video from the rows (T, 4) of a `Scorer`."""
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
        starts=video.starts,
        ends=video.ends,
    )


def columns_of(rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Return w_img, w_evt and gain, (T,) each, from the rows (T, 4) of a `Scorer`. None for what is absent."""
    columns = [column if len(column) and not np.isnan(column).all() else None for column in rows.T[1:]]
    return columns[0], columns[1], columns[2]


def density_scores(videos: Sequence[Video]) -> list[VideoScores] | None:
    """Score videos by the trivial detector: a segment's score is its mean event density. None without densities."""
    result = []
    for video in videos:
        if video.event_density is None:
            return None
        density = np.asarray(video.event_density, dtype=np.float32)
        rows = np.stack([density, *[np.full_like(density, np.nan)] * 3], axis=1)
        result.append(as_scores(video, rows))
    return result
