"""From one video file to the features of its segments, one after another, in bounded memory.

Extraction and detection both run on `FeatureStream`, so that a model meets the same features in both.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from ief_kernels import event_synthesis
from iefvad.encoders.encoder import Encoder
from iefvad.utils.prefetch import ahead
from iefvad.video import SEGMENT, Segments, crops

Item = TypeVar("Item")

CROPS: dict[int, list[int]] = {1: [0], 5: list(range(5)), 10: list(range(10))}
"""Crop numbers, in the field's order, for each number of crops: the centre, the first five, all."""

DEFAULTS: dict[str, Any] = {
    "crops": [0],
    "threshold": 10.0,
    "clamp": 10,
    "normalize": "clamp",
    "tail": "drop",
    "on_truncated": "error",
}
"""What `FeatureStream` reads of its settings, and what it takes where a key is absent."""

_THUMBNAIL_HEIGHT = 120
_AHEAD = 8  # segments decoded ahead of the encoder: 33 MB at 340 x 256


@dataclass
class SegmentFeatures:
    """Features of one segment: `image` and `event` (C, D) float32 on the CPU, a row for each crop.

    `time` is the segment's start in seconds, `density` the mean of its whole event map, `thumbnail` a small uint8 RGB
    picture of its middle frame in the video's own proportions.
    """

    index: int
    time: float
    image: Tensor
    event: Tensor
    density: float
    thumbnail: np.ndarray


@dataclass
class _Prepared:
    """A decoded segment: frames uint8 (16, 256, 340, 3), event map float32 (256, 340)."""

    frames: np.ndarray
    map: np.ndarray
    thumbnail: np.ndarray


class FeatureStream:
    """Iterate over the `SegmentFeatures` of one video.

    `settings` has the keys of `DEFAULTS` (others are ignored). A thread decodes, resizes and makes event maps ahead of
    the encoder unless `prefetch` is False. `segments` tells fps, frames read and frames dropped during and after
    iteration. Raises UserError, on construction or while iterating, if the video cannot be read, is truncated or is
    shorter than a segment.
    """

    def __init__(
        self, path: str | Path, encoder: Encoder, settings: Mapping[str, Any] | None = None, *, prefetch: bool = True
    ) -> None:
        self.path = Path(path)
        self.encoder = encoder
        self.settings = {key: (settings or {}).get(key, value) for key, value in DEFAULTS.items()}
        self.prefetch = prefetch
        self.segments = Segments(path, tail=self.settings["tail"], on_truncated=self.settings["on_truncated"])
        self.fps = self.segments.info.fps

    def __iter__(self) -> Generator[SegmentFeatures, None, None]:
        indices: list[int] = list(self.settings["crops"])
        # Portions are cut within a video, so that its features do not depend on what was extracted before it.
        portion = max(1, self.encoder.batch // (SEGMENT * len(indices)))
        prepared = ahead(self._prepare(), _AHEAD) if self.prefetch else self._prepare()
        index = 0
        try:
            for group in _groups(prepared, portion):
                image, event = encode_segments(
                    self.encoder, [item.frames for item in group], np.stack([item.map for item in group]), indices
                )
                for row, item in enumerate(group):
                    yield SegmentFeatures(
                        index=index,
                        time=index * SEGMENT / self.fps,
                        image=image[row],
                        event=event[row],
                        density=float(density(torch.from_numpy(item.map))),
                        thumbnail=item.thumbnail,
                    )
                    index += 1
        finally:
            prepared.close()

    def _prepare(self) -> Generator[_Prepared, None, None]:
        info = self.segments.info
        width = max(1, round(_THUMBNAIL_HEIGHT * info.width / info.height))
        try:
            for frames in self.segments:
                events = event_maps(torch.from_numpy(frames), self.settings)
                thumbnail = cv2.resize(
                    frames[len(frames) // 2], (width, _THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA
                )
                yield _Prepared(frames, events.numpy(), thumbnail)
        finally:
            self.segments.close()


def stream_features(path: str | Path, encoder: Encoder, settings: Mapping[str, Any] | None = None) -> FeatureStream:
    """Features of a video's segments as they are decoded; see `FeatureStream`."""
    return FeatureStream(path, encoder, settings)


def event_maps(frames: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Synthesise the event maps of segments (`docs/specification.md#event-synthesis`).

    Args:
        frames: uint8 (..., 16, H, W, 3) RGB, one segment or several.
        settings: The keys `threshold`, `clamp` and `normalize` of `DEFAULTS`; others are ignored.

    Returns:
        float32 (..., H, W) in [0, 1], on the device of `frames`.
    """
    return event_synthesis(
        frames, threshold=settings["threshold"], clamp=settings["clamp"], normalize=settings["normalize"]
    )


def encode_segments(
    encoder: Encoder, frames: Sequence[np.ndarray], maps: np.ndarray, indices: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Crop and encode S segments: frames S x uint8 (16, 256, 340, 3), maps float32 (S, 256, 340).

    Returns image and event features, float32 (S, C, D) on the CPU, C = len(indices). Image features are the mean over a
    segment's frames (SPEC §1), taken in float32; a map is made on the whole picture and then cropped.
    """
    cut = [crops(segment, indices) for segment in frames]
    pixels = torch.from_numpy(cut[0] if len(cut) == 1 else np.concatenate(cut))
    image = encoder.encode_image(pixels.flatten(0, 1))
    image = segment_means(image.view(len(frames), -1, len(indices), encoder.dim))
    event = encoder.encode_event(torch.from_numpy(crops(maps, indices)).flatten(0, 1))
    return image.cpu(), event.view(len(frames), len(indices), encoder.dim).cpu()


def segment_means(rows: Tensor) -> Tensor:
    """Mean over the frames of each segment, float32 (S, frames, C, D) → (S, C, D).

    One segment at a time: a sum over several at once may be taken in another order, and differ in its last bit.
    """
    return torch.stack([segment.mean(0) for segment in rows])


def density(events: Tensor) -> Tensor:
    """Mean of event maps (..., H, W) as float64 (...), the same to the last bit wherever it is computed.

    Values are counts over at most 255, of 24 bits each, so that their sum is exact in float64 in any order.
    """
    return events.sum((-2, -1), dtype=torch.float64) / (events.shape[-2] * events.shape[-1])


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
