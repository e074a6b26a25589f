"""Which frames of a segment the image encoder sees (`docs/specification.md#data-flow`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ief_kernels import event_synthesis


@dataclass(frozen=True)
class Choice:
    """Frames of one segment that are encoded.

    Attributes:
        indices: Numbers of the frames in the segment, ascending.
        runs: Number of frames that each of them stands for, 1 or more. They are the weights of the mean.
    """

    indices: list[int]
    runs: list[int]

    def of(self, frames: Any) -> Any:
        """Return the chosen ones of `frames` (a tensor or an array), without a copy where all are chosen."""
        return frames if len(self.indices) == len(frames) else frames[self.indices]

    def mean(self, rows: Tensor) -> Tensor:
        """Return the segment's feature: the float32 mean over its frames.

        A frame that was not encoded has the row of the frame that stands for it. So the sum has the same terms in the
        same order as if all frames were encoded, and identical frames change no bit.

        Args:
            rows: Features of the chosen frames, (n, C, D).

        Returns:
            (C, D).
        """
        if len(rows) < sum(self.runs):
            # Not an index: it would have to go to the GPU first.
            parts = zip(rows.split(1), self.runs, strict=True)
            rows = torch.cat([row.expand(run, -1, -1) for row, run in parts])
        return rows.mean(0)


def evenly_placed(count: int, frames: int) -> list[int]:
    """Return `count` of the numbers 0 to frames - 1: the frames in the middle of `count` equal parts."""
    return [(2 * part + 1) * frames // (2 * count) for part in range(count)]


def choose_frames(frames: Tensor, settings: Mapping[str, Any]) -> Choice:
    """Choose the frames of a segment that the image encoder sees.

    With `frames_per_segment` K, K evenly placed frames are taken. With `keyframes` F, the first of these is encoded,
    and each later one if the fraction of its pixels that differ from the last encoded frame exceeds F. The pixels are
    those of the whole picture. They differ if there is an event between them, |ΔY| > threshold as in event maps. For
    F = 0 they differ if they are not equal, so that only identical frames are skipped.

    Args:
        frames: uint8 (S, H, W, 3) RGB, on any device. On a GPU, key frames wait for the current stream.
        settings: The keys `frames_per_segment`, `keyframes` and `threshold` of `stream.DEFAULTS`.

    Returns:
        The choice, equal on every device.
    """
    placed = evenly_placed(settings["frames_per_segment"], len(frames))
    if settings["keyframes"] is None:
        return Choice(placed, [1] * len(placed))
    changed = _changes(frames[placed] if len(placed) < len(frames) else frames, settings, at_once=frames.is_cuda)
    indices, runs = [0], [1]
    for number in range(1, len(placed)):
        if changed(indices[-1], number):
            indices.append(number)
            runs.append(1)
        else:
            runs[-1] += 1
    return Choice([placed[index] for index in indices], runs)


def _changes(frames: Tensor, settings: Mapping[str, Any], *, at_once: bool) -> Callable[[int, int], bool]:
    """Return a function that says whether a later frame differs enough from an earlier one, by their numbers."""
    if not at_once:
        return lambda earlier, later: bool(_changed(frames, [earlier], [later], settings)[0])
    # For a GPU: one wait for all pairs instead of one wait per frame.
    earlier, later = torch.triu_indices(len(frames), len(frames), 1).tolist()
    answers = _changed(frames, earlier, later, settings).tolist() if earlier else []
    known = dict(zip(zip(earlier, later, strict=True), answers, strict=True))
    return lambda one, other: known[one, other]


def _changed(frames: Tensor, earlier: Sequence[int], later: Sequence[int], settings: Mapping[str, Any]) -> Tensor:
    """Return whether frames differ enough, for n pairs of numbers: bool (n,)."""
    before, after = _rows(frames, earlier), _rows(frames, later)
    if settings["keyframes"] == 0:
        return (before != after).flatten(1).any(1)
    events = event_synthesis(
        after[:, None], carry=before, threshold=settings["threshold"], clamp=1, normalize="none", layout="rgb"
    )
    # The division rounds as the fraction was rounded when it was given in decimals, so equal ones compare as equal.
    limit: float = settings["keyframes"]
    return events.flatten(1).sum(1, dtype=torch.float64) / events[0].numel() > limit


def _rows(frames: Tensor, numbers: Sequence[int]) -> Tensor:
    return frames[numbers[0] : numbers[0] + 1] if len(numbers) == 1 else frames[list(numbers)]
