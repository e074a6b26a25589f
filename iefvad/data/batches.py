"""Training clips and the batches that an epoch draws from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iefvad.data.datasets import Video, pad_batch, resample
from iefvad.errors import UserError
from iefvad.model import MODALITIES


@dataclass
class Batch:
    """`image`, `event` (B, T, D) float32, zero behind each length; `lengths` (B,) int64; `labels` (B,) float32.

    A label is 1 for an abnormal video.
    """

    image: Tensor
    event: Tensor
    lengths: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(value.to(device, non_blocking=True) for value in vars(self).values()))


class Clips:
    """Every crop of every training video as a clip of at most `max_segments` segments (SPEC §4).

    Clips are kept in memory as float16 once read, as long as all of them fit in `memory` bytes.
    """

    def __init__(self, videos: Sequence[Video], *, max_segments: int, memory: int = 8 << 30) -> None:
        self.videos = videos
        self.max_segments = max_segments
        self.items = [(index, crop) for index, video in enumerate(videos) for crop in video.crops]
        self.labels = torch.tensor([float(bool(videos[index].classes)) for index, _ in self.items])
        if not self.items:
            raise UserError("there is no training video: check the training list.")
        dim = videos[0].features(videos[0].crops[0])[0].shape[1]
        size = sum(min(videos[index].segments, max_segments) for index, _ in self.items) * dim * 2 * 2
        self._cache: dict[int, tuple[Tensor, Tensor]] | None = {} if size <= memory else None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        """Image and event features of a clip, (T, D) float32 each."""
        if self._cache is not None and position in self._cache:
            image, event = self._cache[position]
            return image.float(), event.float()
        index, crop = self.items[position]
        image, event = (resample(features, self.max_segments) for features in self.videos[index].features(crop))
        if self._cache is not None:
            self._cache[position] = (image.half(), event.half())
            # What is kept is rounded to float16, so the first epoch must see the same numbers as the later ones.
            image, event = image.half().float(), event.half().float()
        return image, event

    def features(self, modality: str) -> Tensor:
        """All segments of all clips of one modality, (N, D) float32."""
        return torch.cat([self[position][MODALITIES.index(modality)] for position in range(len(self))])

    def batch(self, positions: Sequence[int], *, pad_to: int | None = None) -> Batch:
        """Collate clips; `pad_to` segments instead of the longest clip's."""
        pairs = [self[position] for position in positions]
        image, lengths = pad_batch([pair[0] for pair in pairs])
        event, _ = pad_batch([pair[1] for pair in pairs])
        if pad_to is not None:
            missing = (0, 0, 0, pad_to - image.shape[1])
            image, event = torch.nn.functional.pad(image, missing), torch.nn.functional.pad(event, missing)
        return Batch(image, event, lengths, self.labels[list(positions)])


def epoch_batches(labels: Tensor, batch: int, *, mixed: bool, generator: torch.Generator) -> Iterator[list[int]]:
    """Clip positions of each batch of one epoch.

    Half normal, half abnormal (`batch` of each) until the smaller kind is used up, or `batch` of all where `mixed`.
    A kind with fewer clips than `batch` gives what it has. Raises UserError where a kind is missing.
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


def split_validation(videos: Sequence[Video], share: float, seed: int) -> tuple[list[Video], list[Video]]:
    """Hold out a share of the videos, of each kind alike: (for training, held out).

    Every kind keeps at least one video for training.
    """
    generator = torch.Generator().manual_seed(seed)
    held: set[int] = set()
    for abnormal in (False, True):
        positions = [index for index, video in enumerate(videos) if bool(video.classes) == abnormal]
        count = min(round(len(positions) * share), len(positions) - 1) if positions else 0
        if share > 0 and len(positions) > 1:
            count = max(count, 1)
        order = torch.randperm(len(positions), generator=generator).tolist()
        held |= {positions[index] for index in order[:count]}
    return [v for i, v in enumerate(videos) if i not in held], [v for i, v in enumerate(videos) if i in held]
