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
from iefvad.extraction.frame_choice import choose_frames
from iefvad.features.store import UNRECORDED
from iefvad.utils.prefetch import ahead
from iefvad.video import LIMITS, SEGMENT, Segments, crops
from iefvad.video.corruption import Corruptions

Item = TypeVar("Item")

DEFAULTS: dict[str, Any] = {
    "crops": [0],
    "threshold": 10.0,
    "clamp": 10,
    "normalize": "clamp",
    "tail": "drop",
    "on_truncated": "error",
    **UNRECORDED,
}
"""The settings that `FeatureStream` reads, with the values that a store without them stands for."""

_THUMBNAIL_HEIGHT, _WIDEST_THUMBNAIL = 120, 1200
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
        encoded: Number of frames that the image encoder saw.
    """

    index: int
    start: float
    end: float
    image: Tensor
    event: Tensor
    density: float
    thumbnail: np.ndarray
    encoded: int = SEGMENT


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
        settings: Values for keys of `DEFAULTS`, and perhaps `fps`, `name` and `LIMITS`, as for
            `iefvad.video.Segments`. Other keys are ignored.
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
        self.segments = Segments(
            path,
            tail=self.settings["tail"],
            on_truncated=self.settings["on_truncated"],
            fps=(settings or {}).get("fps"),
            corrupt=self.settings["corrupt"],
            name=(settings or {}).get("name", ""),
            **{limit: settings[limit] for limit in LIMITS if settings and limit in settings},
        )
        self.fps = self.segments.info.fps

    def __iter__(self) -> Generator[SegmentFeatures, None, None]:
        rows = self.settings["frames_per_segment"] * len(self.settings["crops"])
        # A portion never spans two videos, so that features do not depend on the video before.
        portion = max(1, self.encoder.batch // rows)
        prepared = ahead(self._prepare(), _AHEAD) if self.prefetch else self._prepare()
        index = 0
        try:
            for group in grouped(prepared, portion):
                image, event, encoded = encode_segments(
                    self.encoder, [item.frames for item in group], np.stack([item.map for item in group]), self.settings
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
                        encoded=encoded[row],
                    )
                    index += 1
        finally:
            prepared.close()

    def _prepare(self) -> Generator[_Prepared, None, None]:
        info = self.segments.info
        width = min(max(1, round(_THUMBNAIL_HEIGHT * info.width / info.height)), _WIDEST_THUMBNAIL)
        before: Tensor | None = None
        try:
            for number, frames in enumerate(self.segments):
                events = event_maps(torch.from_numpy(frames), self.settings, before)
                before = torch.from_numpy(frames[-1].copy())
                thumbnail = cv2.resize(
                    frames[len(frames) // 2], (width, _THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA
                )
                start, end = self.segments.starts[number], self.segments.ends[number]
                yield _Prepared(frames, events.numpy(), start, end, thumbnail)
        finally:
            self.segments.close()


def event_maps(frames: Tensor, settings: Mapping[str, Any], before: Tensor | None = None) -> Tensor:
    """Synthesise the event maps of segments (`docs/specification.md#event-synthesis`).

    Args:
        frames: uint8 (..., 16, H, W, 3) RGB, one segment or several.
        settings: The keys `threshold`, `clamp`, `normalize`, `carry` and `corrupt` of `DEFAULTS`; others are ignored.
        before: uint8 (..., H, W, 3), the frame before each segment, where there is one. Its difference to the first
            frame counts if `carry` is set.

    Returns:
        float32 (..., H, W) in [0, 1], on the device of `frames`.
    """
    if Corruptions.parse(settings.get("corrupt")).dead_event:
        return torch.zeros(frames.shape[:-4] + frames.shape[-3:-1], device=frames.device)
    return event_synthesis(
        frames,
        threshold=settings["threshold"],
        clamp=settings["clamp"],
        normalize=settings["normalize"],
        carry=before if settings["carry"] else None,
    )


def encode_segments(
    encoder: Encoder, frames: Sequence[np.ndarray], maps: np.ndarray, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor, list[int]]:
    """Choose frames, crop and encode S segments (`docs/specification.md#data-flow`).

    The image feature of a segment is the float32 mean over its frames. An event map is made from the whole picture and
    then cropped.

    Args:
        encoder: The encoder.
        frames: S arrays, uint8 (16, 256, 340, 3) RGB.
        maps: Event maps, float32 (S, 256, 340).
        settings: The keys `crops` (C numbers), `frames_per_segment`, `keyframes` and `threshold` of `DEFAULTS`.

    Returns:
        Image and event features, float32 (S, C, D) each, on the CPU, and the number of encoded frames per segment.
    """
    indices = list(settings["crops"])
    choices = [choose_frames(torch.from_numpy(segment), settings) for segment in frames]
    cut = [crops(choice.of(segment), indices) for choice, segment in zip(choices, frames, strict=True)]
    pixels = torch.from_numpy(cut[0] if len(cut) == 1 else np.concatenate(cut))
    encoded = [len(choice.indices) for choice in choices]
    rows = encoder.encode_image(pixels.flatten(0, 1)).view(-1, len(indices), encoder.dim).split(encoded)
    # Segments are averaged one by one. A sum over several could have another order and differ in its last bit.
    image = torch.stack([choice.mean(segment) for choice, segment in zip(choices, rows, strict=True)])
    event = encoder.encode_event(torch.from_numpy(crops(maps, indices)).flatten(0, 1))
    return image.cpu(), event.view(len(frames), len(indices), encoder.dim).cpu(), encoded


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
