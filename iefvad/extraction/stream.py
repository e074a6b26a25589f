"""The features of one video file, segment by segment, in bounded memory.

Extraction and detection both use `encode_segments` and `event_maps`, so that a model gets the same features in both.
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
"""{number of crops: crop numbers} in the order of `iefvad.video.crop_boxes`."""

DEFAULTS: dict[str, Any] = {
    "crops": [0],
    "threshold": 10.0,
    "clamp": 10,
    "normalize": "clamp",
    "tail": "drop",
    "on_truncated": "error",
}
"""The settings that `FeatureStream` reads, with their default values."""

_THUMBNAIL_HEIGHT = 120
_AHEAD = 8  # segments decoded ahead of the encoder: 33 MB at 340 x 256


@dataclass
class SegmentFeatures:
    """Features of one segment.

    Attributes:
        index: Number of the segment, from 0.
        start: Start of the segment in seconds.
        end: End of the segment in seconds: the start of the frame after it.
        image: float32 (C, D) on the CPU, one row per crop.
        event: float32 (C, D) on the CPU, one row per crop.
        density: Mean of the event map of the whole picture.
        thumbnail: uint8 (H, W, 3) RGB, a small picture of the middle frame with the aspect ratio of the video.
    """

    index: int
    start: float
    end: float
    image: Tensor
    event: Tensor
    density: float
    thumbnail: np.ndarray


@dataclass
class _Prepared:
    """A decoded segment: frames uint8 (16, 256, 340, 3), event map float32 (256, 340), start and end in seconds."""

    frames: np.ndarray
    map: np.ndarray
    start: float
    end: float
    thumbnail: np.ndarray


class FeatureStream:
    """Iterates over the `SegmentFeatures` of one video.

    Args:
        path: The video file.
        encoder: The encoder.
        settings: Values for keys of `DEFAULTS`. Other keys are ignored.
        prefetch: Let a thread decode, resize and make event maps ahead of the encoder.

    Attributes:
        segments: The video's segments; it counts frames read and dropped during and after iteration.
        fps: Frames per second.

    Raises:
        UserError: The video cannot be read, is truncated, or is shorter than one segment. Raised on construction or
            during iteration.
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
        # A portion never spans two videos, so that features do not depend on the video before.
        portion = max(1, self.encoder.batch // (SEGMENT * len(indices)))
        prepared = ahead(self._prepare(), _AHEAD) if self.prefetch else self._prepare()
        index = 0
        try:
            for group in grouped(prepared, portion):
                image, event = encode_segments(
                    self.encoder, [item.frames for item in group], np.stack([item.map for item in group]), indices
                )
                for row, item in enumerate(group):
                    yield SegmentFeatures(
                        index=index,
                        start=item.start,
                        end=item.end,
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
            for number, frames in enumerate(self.segments):
                events = event_maps(torch.from_numpy(frames), self.settings)
                thumbnail = cv2.resize(
                    frames[len(frames) // 2], (width, _THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA
                )
                start, end = self.segments.starts[number], self.segments.ends[number]
                yield _Prepared(frames, events.numpy(), start, end, thumbnail)
        finally:
            self.segments.close()


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
    """Crop and encode S segments (`docs/specification.md#data-flow`).

    The image feature of a segment is the float32 mean over its frames. An event map is made from the whole picture and
    then cropped.

    Args:
        encoder: The encoder.
        frames: S arrays, uint8 (16, 256, 340, 3) RGB.
        maps: Event maps, float32 (S, 256, 340).
        indices: C crop numbers, as in `iefvad.video.crop_boxes`.

    Returns:
        Image and event features, float32 (S, C, D) each, on the CPU.
    """
    cut = [crops(segment, indices) for segment in frames]
    pixels = torch.from_numpy(cut[0] if len(cut) == 1 else np.concatenate(cut))
    image = encoder.encode_image(pixels.flatten(0, 1))
    image = segment_means(image.view(len(frames), -1, len(indices), encoder.dim))
    event = encoder.encode_event(torch.from_numpy(crops(maps, indices)).flatten(0, 1))
    return image.cpu(), event.view(len(frames), len(indices), encoder.dim).cpu()


def segment_means(rows: Tensor) -> Tensor:
    """Return the mean over the frames of each segment, float32 (S, frames, C, D) → (S, C, D).

    Segments are averaged one by one. A sum over several segments could have another order and differ in its last bit.
    """
    return torch.stack([segment.mean(0) for segment in rows])


def density(events: Tensor) -> Tensor:
    """Return the mean of event maps (..., H, W) as float64 (...), equal to the last bit on every device.

    Values are counts divided by at most 255, with 24 bits each, so their sum is exact in float64 in any order.
    """
    return events.sum((-2, -1), dtype=torch.float64) / (events.shape[-2] * events.shape[-1])


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of `size`, the last one shorter."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
