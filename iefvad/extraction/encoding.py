"""Fills the encoder's batches across videos, and puts each video together again from its rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from iefvad.encoders.encoder import Encoder
from iefvad.extraction.frame_choice import Choice, choose_frames
from iefvad.extraction.stream import DEFAULTS, density, event_maps
from iefvad.video import CROP, WIDTH, crop_boxes

Key = TypeVar("Key", bound=Hashable)

_CHUNK = 64  # segments whose features share one allocation
_IN_FLIGHT = 16  # segments on the GPU whose encoding is not finished: 4 MB each


def event_batch(encoder: Encoder) -> int:
    """Return the number of event maps per pass. A CPU gains nothing from large batches, so it is smaller there."""
    return encoder.batch if encoder.device.type == "cuda" else max(1, encoder.batch // 4)


class _Batch:
    """Rows of any number of videos, encoded in passes of one size. The last pass is filled with zeros.

    All passes have the same size, because matrix products of another size may be summed in another order.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], rows: Tensor) -> None:
        self._encode, self._rows = encode, rows
        self._filled = 0
        self._parts: list[tuple[Tensor, Callable[[], None] | None]] = []

    def add(self, rows: Tensor, out: Tensor, done: Callable[[], None] | None) -> None:
        """Queue rows (n, ...) for encoding into `out` (n, D), and call `done` (if given) when they are encoded."""
        while len(rows):
            count = min(len(rows), len(self._rows) - self._filled)
            self._rows[self._filled : self._filled + count] = rows[:count]
            self._filled += count
            self._parts.append((out[:count], done if count == len(rows) else None))
            rows, out = rows[count:], out[count:]
            if self._filled == len(self._rows):
                self._run()

    def flush(self) -> None:
        """Encode the rows that wait."""
        if self._filled:
            self._rows[self._filled :] = 0
            self._run()

    def _run(self) -> None:
        encoded = self._encode(self._rows)
        parts, self._parts, self._filled = self._parts, [], 0
        start = 0
        for out, done in parts:
            out.copy_(encoded[start : start + len(out)])
            start += len(out)
            if done is not None:
                done()


@dataclass
class Encoded(Generic[Key]):
    """Features of a whole video.

    Attributes:
        key: The video's key.
        image: float32 (C, T, D), on the encoder's device.
        event: float32 (C, T, D), on the encoder's device.
        density: T event densities.
    """

    key: Key
    image: Tensor
    event: Tensor
    density: list[float]


class _Rows:
    """One tensor per segment of a video, in order, all of one shape.

    Many segments share one allocation. Separate small tensors between the large temporary buffers would fragment the
    heap, which would then grow by megabytes per segment.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._shape, self._device, self._dtype = (_CHUNK, *shape), device, dtype
        self._chunks: list[Tensor] = []
        self._count = 0
        self.done = 0

    def next(self) -> Tensor:
        """Return the tensor for the next segment. Whoever fills it adds one to `done`."""
        chunk, row = divmod(self._count, _CHUNK)
        if chunk == len(self._chunks):
            self._chunks.append(torch.empty(self._shape, device=self._device, dtype=self._dtype))
        self._count += 1
        return self._chunks[chunk][row]

    def stacked(self) -> Tensor:
        """Return all segments, (T, ...)."""
        return torch.cat(self._chunks)[: self._count]


@dataclass
class _Video:
    batches: tuple[_Batch, _Batch]
    image: _Rows
    event: _Rows
    density: _Rows
    last: Tensor | None = None  # the last frame of the last segment, for the events across the segments' edge
    ended: bool = False


class VideoEncoder(Generic[Key]):
    """Encodes segments of several videos at the same time, on the encoder's device.

    Videos share batches if a row of the encoder's output does not depend on its place in the batch, which is tried
    once. Otherwise each video has its own batches. In both cases a video's features do not depend on other videos.

    Args:
        encoder: The encoder.
        settings: Values for keys of `stream.DEFAULTS`.
        across: Whether videos share batches. None tries it when a second video comes.
    """

    def __init__(self, encoder: Encoder, settings: Mapping[str, Any], *, across: bool | None = None) -> None:
        self._encoder, self._settings = encoder, {**DEFAULTS, **settings}
        self._crops = list(self._settings["crops"])
        self._across = across
        self._shared: tuple[_Batch, _Batch] | None = None  # used by the first video only, until `across` is known
        self._opened = False
        self._videos: dict[Key, _Video] = {}
        self._copies = torch.cuda.Stream(encoder.device) if encoder.device.type == "cuda" else None
        self._in_flight: deque[torch.cuda.Event] = deque()

    @torch.inference_mode()
    def add(self, key: Key, segment: Tensor, before: Tensor | None = None) -> int:
        """Take the next segment of the video `key`.

        Args:
            key: Names the video.
            segment: uint8 (16, 256, 340, 3) on the CPU. It may be overwritten after the call.
            before: uint8 (256, 340, 3) on the CPU, the frame before the segment. It is only needed if the segment
                before was not added to the same video.

        Returns:
            Number of its frames that the image encoder sees.
        """
        video = self._videos.get(key) or self._open(key)
        frames, choice = self._upload(segment)
        events = event_maps(frames, self._settings, video.last if before is None else before.to(frames.device))
        if self._settings["carry"]:
            video.last = frames[-1].clone()
        video.density.next().copy_(density(events))
        video.density.done += 1
        count, dim = len(self._crops), self._encoder.dim
        image = torch.empty(count, len(choice.indices), dim, device=self._encoder.device)
        image_row, event_row = video.image.next(), video.event.next()

        def image_done() -> None:
            image_row.copy_(choice.mean(image.transpose(0, 1).contiguous()))
            video.image.done += 1

        def event_done() -> None:
            video.event.done += 1

        images, maps = video.batches
        for slot, (pictures, cut) in enumerate(
            zip(_windows(choice.of(frames), self._crops), _windows(events[None], self._crops), strict=True)
        ):
            last = slot == count - 1
            images.add(pictures, image[slot], image_done if last else None)
            maps.add(cut, event_row[slot : slot + 1], event_done if last else None)
        self._keep_pace()
        return len(choice.indices)

    @torch.inference_mode()
    def end(self, key: Key) -> None:
        """Declare that the video has no more segments."""
        video = self._videos[key]
        video.ended = True
        if self._across is False:
            self._flush_own(video)

    def drop(self, key: Key) -> None:
        """Forget a video that failed."""
        self._videos.pop(key, None)

    @torch.inference_mode()
    def flush(self) -> None:
        """Encode the rows that wait for a full batch."""
        for batch in self._shared or ():
            batch.flush()

    def complete(self) -> Iterator[Encoded[Key]]:
        """Yield each ended video once, when all of its segments are encoded."""
        for key, video in list(self._videos.items()):
            if video.ended and video.image.done == video.event.done == video.density.done:
                del self._videos[key]
                image, event = (rows.stacked().transpose(0, 1) for rows in (video.image, video.event))
                yield Encoded(key, image, event, video.density.stacked().tolist())

    def _open(self, key: Key) -> _Video:
        if self._shared is None:
            self._shared = self._batches()
        elif self._across is None:
            self._across = rows_stand_alone(self._encoder)
            if not self._across:
                for first in self._videos.values():
                    self._flush_own(first)
        first_or_shared = self._across or not self._opened
        self._opened = True
        device, shape = self._encoder.device, (len(self._crops), self._encoder.dim)
        video = self._videos[key] = _Video(
            self._shared if first_or_shared else self._batches(),
            image=_Rows(shape, device),
            event=_Rows(shape, device),
            density=_Rows((), device, torch.float64),
        )
        return video

    def _flush_own(self, video: _Video) -> None:
        if video.ended:
            for batch in video.batches:
                batch.flush()

    def _batches(self) -> tuple[_Batch, _Batch]:
        encoder = self._encoder
        images = torch.zeros(encoder.batch, CROP, CROP, 3, dtype=torch.uint8, device=encoder.device)
        maps = torch.zeros(event_batch(encoder), CROP, CROP, device=encoder.device)
        return _Batch(encoder.encode_image, images), _Batch(encoder.encode_event, maps)

    def _keep_pace(self) -> None:
        """Limit the number of segments that wait on the GPU, so that they do not fill its memory."""
        if self._copies is None:
            return
        self._in_flight.append(torch.cuda.current_stream(self._encoder.device).record_event())
        if len(self._in_flight) > _IN_FLIGHT:
            self._in_flight.popleft().synchronize()

    def _upload(self, segment: Tensor) -> tuple[Tensor, Choice]:
        """Return the segment on the encoder's device, and which of its frames are encoded."""
        if self._copies is None:
            return segment, choose_frames(segment, self._settings)
        # On a separate stream, so that waiting for the copy and for the choice does not mean waiting for the encoder.
        with torch.cuda.stream(self._copies):
            frames = segment.to(self._encoder.device, non_blocking=True)
            choice = choose_frames(frames, self._settings)
        self._copies.synchronize()
        frames.record_stream(torch.cuda.current_stream(self._encoder.device))
        return frames, choice


def _windows(images: Tensor, indices: list[int]) -> Iterator[Tensor]:
    """Yield crops of full-size images as views, (n, 256, 340[, 3]) → (n, 224, 224[, 3]).

    A mirrored crop is a window of the mirrored picture, which is made once for all crops.
    """
    boxes = crop_boxes()
    turned = images.flip(2) if any(boxes[index][2] for index in indices) else images
    for index in indices:
        top, left, mirrored = boxes[index]
        source, left = (turned, WIDTH - CROP - left) if mirrored else (images, left)
        yield source[:, top : top + CROP, left : left + CROP]


_STAND_ALONE: WeakKeyDictionary[Encoder, bool] = WeakKeyDictionary()


def rows_stand_alone(encoder: Encoder) -> bool:
    """Return whether a row of the output has the same bits at every place of a batch, on this machine.

    Tried once per encoder: batches of random frames and maps are compared with the same batches rolled.
    """
    known = _STAND_ALONE.get(encoder)
    if known is None:
        random = torch.Generator().manual_seed(0)
        frames = torch.randint(0, 256, (encoder.batch, CROP, CROP, 3), dtype=torch.uint8, generator=random)
        maps = torch.rand((event_batch(encoder), CROP, CROP), generator=random)
        known = _rolls(encoder.encode_image, frames) and _rolls(encoder.encode_event, maps)
        _STAND_ALONE[encoder] = known
    return known


def _rolls(encode: Callable[[Tensor], Tensor], rows: Tensor) -> bool:
    step = max(1, len(rows) // 3)
    return torch.equal(encode(rows).roll(step, 0), encode(rows.roll(step, 0)))
