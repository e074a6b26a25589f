"""Training clips and the batches that an epoch draws from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from iefvad.features.packed import PackedReader
from iefvad.features.videos import Video, resample
from iefvad.model.config import MODALITIES
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import to_half

_MEMORY_FRACTION = 0.6
"""Fraction of a device's free memory that the clips may use. The rest is for training."""


@dataclass
class Batch:
    """A batch of B clips.

    Attributes:
        image: Image features, float32 (B, T, D), zero after each clip's length.
        event: Event features, float32 (B, T, D), zero after each clip's length.
        lengths: Numbers of segments, int64 (B,). They stay on the CPU, where it is decided what is computed.
        labels: float32 (B,), 1 for abnormal videos.
    """

    image: Tensor
    event: Tensor
    lengths: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        image, event, labels = (value.to(device, non_blocking=True) for value in (self.image, self.event, self.labels))
        return Batch(image, event, self.lengths, labels)


class Clips:
    """Every crop of every training video as a clip (`docs/specification.md#data-conventions`).

    Clips are rows of one float16 table (2, R, D), 0 = image and 1 = event, and a batch is one gather from it. If all
    videos come from one packed store, the table is the memory-mapped file of that store. Otherwise the table is filled
    when clips are used. If it would need more than `memory` bytes, there is no table, and each clip is read every
    time. Values are always rounded to float16, so that a batch has the same bits in all three cases.

    Args:
        videos: Training videos.
        max_segments: Longer clips are averaged to this number of bins.
        memory: Maximum size of the table in bytes.

    Attributes:
        items: (position of the video, crop) of each of the N clips.
        labels: float32 (N,), 1 for abnormal videos.
        lengths: Number of segments of each clip, int64 (N,).
        dim: Width D of the features.
        device: Device that batches are made on.

    Raises:
        UserError: There are no videos, a video has no segments, or a packed store was averaged to another number of
            bins. When clips are read: features are beyond float16.
    """

    def __init__(self, videos: Sequence[Video], *, max_segments: int, memory: int = 8 << 30) -> None:
        self.videos = videos
        self.max_segments = max_segments
        self.device = torch.device("cpu")
        self.items = [(index, crop) for index, video in enumerate(videos) for crop in video.crops]
        if not self.items:
            raise UserError("there is no training video: check the training list.")
        if empty := [video.name for video in videos if video.segments == 0]:
            raise UserError(f"{empty[0]} has no segments: take it out of the training list.")
        self.labels = torch.tensor([float(bool(videos[index].classes)) for index, _ in self.items])
        self.lengths = torch.tensor([min(videos[index].segments, max_segments) for index, _ in self.items])
        self._starts = torch.cumsum(self.lengths, 0) - self.lengths
        self._missing: set[int] = set()  # clips that the table does not hold yet, or whose checksums were not compared
        self._scratch = _Buffer(torch.float16)
        self._mapped = False
        packed = self._packed()
        if packed is not None:
            table, self._starts = packed
            self.dim = table.shape[2]
            self._table: Tensor | None = table
            self._missing = set(range(len(self)))
            self._mapped = True
            return
        self.dim = videos[0].features(videos[0].crops[0])[0].shape[1]
        rows = int(self.lengths.sum()) + 1
        if 2 * rows * self.dim * 2 <= memory:
            self._table = torch.zeros(2, rows, self.dim, dtype=torch.float16)
            self._missing = set(range(len(self)))
        else:
            self._table = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Return image and event features of a clip, float32 (T, D) each, on the device of the table."""
        position = range(len(self))[position]
        if self._table is None:
            image, event = self._read(position)
            return image.float(), event.float()
        self._fill([position])
        start, length = int(self._starts[position]), int(self.lengths[position])
        image, event = self._table[:, start : start + length].float()
        return image, event

    def to(self, device: torch.device | str) -> Clips:
        """Make batches on a device, and return this object.

        The table moves to a GPU if it fits into 60% of its free memory; then clips that are missing are read now.
        Otherwise `batches` copies each batch through pinned memory.
        """
        self.device = torch.device(device)
        if self.device.type == "cuda" and self._table is not None and not self._table.is_cuda:
            free, _ = torch.cuda.mem_get_info(self.device)
            if self._table.nbytes <= _MEMORY_FRACTION * free:
                self._fill(range(len(self)))
                self._table = self._table.to(self.device)
        return self

    def features(self, modality: str) -> Tensor:
        """Return all segments of all clips of one modality, float32 (sum of T, D), on the device of the table."""
        stream = MODALITIES.index(modality)
        if self._table is None:
            return torch.cat([self[position][stream] for position in range(len(self))])
        self._fill(range(len(self)))
        shifts = torch.repeat_interleave(self._starts - (torch.cumsum(self.lengths, 0) - self.lengths), self.lengths)
        rows = torch.arange(int(self.lengths.sum())) + shifts
        return self._table[stream].index_select(0, rows.to(self._table.device)).float()

    def batch(self, positions: Sequence[int], *, pad_to: int | None = None) -> Batch:
        """Make one batch.

        Args:
            positions: Numbers of the clips.
            pad_to: Minimum T of the batch. Otherwise T is the length of the longest clip.
        """
        chosen = torch.as_tensor(positions, dtype=torch.int64)
        return self._finish(self._half(chosen, pad_to, self._scratch), chosen)

    def batches(self, order: Iterable[Sequence[int]], *, pad_to: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch, made as by `batch`.

        If clips are read from disk or copied to a GPU, the next batch is made while the current one is used. Batches
        share memory: do not use a batch after the next one was asked for.

        Args:
            order: Numbers of the clips of each batch.
            pad_to: Minimum T of each batch.
        """
        if self._table is not None and self._table.is_cuda:
            for positions in order:
                yield self.batch(positions, pad_to=pad_to)
            return
        staged = self.device.type == "cuda"
        slots = [_Slot(staged), _Slot(staged)]
        remaining = iter(order)

        def prepare(slot: _Slot) -> tuple[Tensor, Tensor] | None:
            positions = next(remaining, None)
            if positions is None:
                return None
            chosen = torch.as_tensor(positions, dtype=torch.int64)
            slot.wait()
            half = self._half(chosen, pad_to, slot.half)
            if staged:
                return half, chosen
            return slot.single.like(half).copy_(half), chosen

        if not staged and self._table is not None:
            # On the CPU, a second thread with its own team of OpenMP threads would only take cores from training.
            while (ready := prepare(slots[0])) is not None:
                yield self._finish(*ready)
            return
        with ThreadPoolExecutor(max_workers=1) as pool:
            pending = pool.submit(prepare, slots[0])
            while (ready := pending.result()) is not None:
                values, chosen = ready
                batch = self._finish(values, chosen)
                slots[0].sent(self.device)
                slots.reverse()
                pending = pool.submit(prepare, slots[0])
                yield batch

    def _packed(self) -> tuple[Tensor, Tensor] | None:
        """The table of the one packed store of all videos and each clip's first row, or None if there is none."""
        readers = [video.reader for video in self.videos]
        if not all(isinstance(reader, PackedReader) for reader in readers):
            return None
        packed = [reader for reader in readers if isinstance(reader, PackedReader)]
        first = packed[0]
        for reader in packed:
            if reader.averaged and reader.store.max_segments != self.max_segments:
                stored = reader.store.max_segments
                raise UserError(
                    f"{reader.store.root} contains training videos averaged to {stored} bins, not {self.max_segments}:"
                    f" pass --max-segments {stored}, or import again with --max-segments {self.max_segments}."
                )
        one = all(reader.store is first.store and reader.split == first.split for reader in packed)
        if not one or any(video.segments > self.max_segments for video in self.videos):
            return None
        starts = [packed[index].span(crop)[0] for index, crop in self.items]
        return first.store.features[first.split], torch.tensor(starts)

    def _read(self, position: int) -> tuple[Tensor, Tensor]:
        index, crop = self.items[position]
        video = self.videos[index]
        names = video.reader.where(crop) if video.reader else (video.name, video.name)
        image, event = (
            to_half(resample(features, self.max_segments), f"{name}: features")
            for features, name in zip(video.features(crop), names, strict=True)
        )
        return image, event

    def _fill(self, positions: Iterable[int]) -> None:
        if not self._missing:
            return
        assert self._table is not None
        for position in self._missing.intersection(positions):
            if self._mapped:
                index, crop = self.items[position]
                reader = self.videos[index].reader
                assert isinstance(reader, PackedReader)
                reader.check_bytes(crop)
                self._missing.discard(position)
                continue
            start, length = int(self._starts[position]), int(self.lengths[position])
            image, event = self._read(position)
            self._table[0, start : start + length] = image
            self._table[1, start : start + length] = event
            self._missing.discard(position)

    def _half(self, chosen: Tensor, pad_to: int | None, buffer: _Buffer) -> Tensor:
        """The chosen clips, (2, B, T, D) float16, in `buffer` or on the table's device."""
        lengths = self.lengths[chosen]
        width = max(pad_to or 0, *lengths.tolist())
        shape = (2, len(chosen), width, self.dim)
        if self._table is None:
            half = buffer.view(shape).zero_()
            for row, position in enumerate(chosen.tolist()):
                half[0, row, : lengths[row]], half[1, row, : lengths[row]] = self._read(position)
            return half
        self._fill(chosen.tolist())
        rows = self._table.shape[1]
        steps = torch.arange(width)
        index = torch.where(steps < lengths[:, None], self._starts[chosen][:, None] + steps, rows - 1)
        index = torch.stack([index, index + rows]).flatten()
        flat = self._table.view(2 * rows, self.dim)
        if flat.is_cuda:
            return flat.index_select(0, index.to(flat.device, non_blocking=True)).view(shape)
        half = buffer.view(shape)
        torch.index_select(flat, 0, index, out=half.view(-1, self.dim))
        return half

    def _finish(self, values: Tensor, chosen: Tensor) -> Batch:
        image, event = values.to(self.device, non_blocking=True).float()
        labels = self.labels[chosen].to(self.device, non_blocking=True)
        return Batch(image, event, self.lengths[chosen], labels)


class _Buffer:
    """Memory that is reused for each batch, because new pages from the system cost more than the gather itself."""

    def __init__(self, dtype: torch.dtype, *, pinned: bool = False) -> None:
        self.dtype, self.pinned = dtype, pinned
        self._values: Tensor | None = None

    def view(self, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of this shape in the memory, which grows if necessary. Its values are undefined."""
        size = math.prod(shape)
        if self._values is None or self._values.numel() < size:
            self._values = torch.empty(size, dtype=self.dtype, pin_memory=self.pinned)
        return self._values[:size].view(shape)

    def like(self, values: Tensor) -> Tensor:
        """Return a tensor of the shape of `values`."""
        return self.view(tuple(values.shape))


class _Slot:
    """One of the two buffers that prefetched batches use alternately."""

    def __init__(self, staged: bool) -> None:
        self.half = _Buffer(torch.float16, pinned=staged)
        self.single = _Buffer(torch.float32)
        self._sent: torch.cuda.Event | None = None

    def sent(self, device: torch.device) -> None:
        """Note that the copy to the device has started."""
        if device.type == "cuda":
            self._sent = torch.cuda.Event()
            self._sent.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Wait until the copy to the device is finished."""
        if self._sent is not None:
            self._sent.synchronize()


def epoch_batches(labels: Tensor, batch: int, *, mixed: bool, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield the clip numbers of each batch of one epoch (`docs/specification.md#training`).

    Args:
        labels: (N,), 0 for normal and 1 for abnormal clips.
        batch: Number of clips of each kind per batch, or of all clips if `mixed`. A kind with fewer clips gives all it
            has.
        mixed: Draw from all clips. Otherwise each batch has `batch` normal and `batch` abnormal clips, and the epoch
            ends when the smaller kind has no more.
        generator: Source of randomness.

    Raises:
        UserError: A kind is missing and `mixed` is False.
    """
    if mixed:
        order = torch.randperm(len(labels), generator=generator).tolist()
        for start in range(0, max(len(order) - batch + 1, 1), batch):
            yield order[start : start + batch]
        return
    kinds = [torch.nonzero(labels == value).flatten() for value in (0, 1)]
    for name, positions in zip(("normal", "abnormal"), kinds, strict=True):
        if len(positions) == 0:
            raise UserError(
                f"the training list has no {name} video: both kinds are needed (labels are the last column)."
            )
    orders = [positions[torch.randperm(len(positions), generator=generator)].tolist() for positions in kinds]
    steps = max(1, min(len(order) // batch for order in orders))
    for step in range(steps):
        yield [position for order in orders for position in order[step * batch : (step + 1) * batch]]


def steps_per_epoch(labels: Tensor, batch: int, *, mixed: bool) -> int:
    """Return the number of batches of one epoch. Arguments and errors as `epoch_batches`."""
    return sum(1 for _ in epoch_batches(labels, batch, mixed=mixed, generator=torch.Generator()))


def split_validation(videos: Sequence[Video], fraction: float, seed: int) -> tuple[list[Video], list[Video]]:
    """Hold out videos for validation, the same fraction of normal and of abnormal ones.

    Args:
        videos: All training videos.
        fraction: Fraction to hold out. Above 0, at least one video of each kind is held out, and each kind keeps at
            least one for training.
        seed: Seed of the random choice.

    Returns:
        Videos for training, and videos held out.
    """
    generator = torch.Generator().manual_seed(seed)
    held: set[int] = set()
    for abnormal in (False, True):
        positions = [index for index, video in enumerate(videos) if bool(video.classes) == abnormal]
        count = min(round(len(positions) * fraction), len(positions) - 1) if positions else 0
        if fraction > 0 and len(positions) > 1:
            count = max(count, 1)
        order = torch.randperm(len(positions), generator=generator).tolist()
        held |= {positions[index] for index in order[:count]}
    return [v for i, v in enumerate(videos) if i not in held], [v for i, v in enumerate(videos) if i in held]
