"""Masking augmentation: in training, one modality of some clips is damaged (`docs/specification.md#masking`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from iefvad.data.batches import Batch
from iefvad.model.config import MODALITIES
from iefvad.scoring.robustness import LEFT
from iefvad.training.settings import Damage


@dataclass(frozen=True)
class Mask:
    """What is damaged in a batch of B clips; on the CPU.

    Attributes:
        streams: int64 (B,), number of the damaged modality of each clip; −1: none.
        dimensions: Bool (B, D), dimensions that become the mean of the training features.
        steps: Bool (B, T), time steps that are scaled.
        share: Where processes share the batch, factor of means over the damaged positions of a part, as in `Share`.
    """

    streams: Tensor
    dimensions: Tensor
    steps: Tensor
    share: float = 1.0

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int, int],
        *,
        clips: float,
        ratio: float,
        damage: Damage,
        generator: torch.Generator,
    ) -> Mask:
        """Draw the damage of a whole batch.

        Args:
            shape: (B, T, D).
            clips: Probability that a clip is damaged.
            ratio: Maximum fraction of its dimensions or time steps; each clip draws its own between 0 and this.
            damage: "features": dimensions; "segments": time steps; "both": each clip draws one of the two.
            generator: Source of randomness.
        """
        batch, segments, dim = shape
        # Everything is drawn whatever the settings are, so that one setting does not change what another one draws.
        streams = torch.randint(len(MODALITIES), (batch,), generator=generator)
        hit, kind, fraction = torch.rand(3, batch, 1, generator=generator)
        dimensions = torch.rand(batch, dim, generator=generator) < ratio * fraction
        steps = torch.rand(batch, segments, generator=generator) < ratio * fraction
        whole = torch.full((batch, 1), damage == "segments") if damage != "both" else kind < 0.5
        return cls(torch.where(hit.squeeze(1) < clips, streams, -1), dimensions & ~whole, steps & whole)

    def part(self, lengths: Tensor, rank: int, world: int) -> Mask:
        """Return the damage of the clips that belong to process `rank` of `world`; `lengths` (B,) are those of all."""
        if world == 1:
            return self
        counts = lengths * (self.streams >= 0)
        share = world * int(counts[rank::world].sum()) / max(int(counts.sum()), 1)
        return Mask(self.streams[rank::world], self.dimensions[rank::world], self.steps[rank::world], share)

    @property
    def clips(self) -> Tensor:
        """Positions of the damaged clips, int64."""
        return (self.streams >= 0).nonzero().squeeze(1)

    def apply(self, batch: Batch, centres: tuple[Tensor, Tensor]) -> Batch:
        """Return the damaged batch.

        Args:
            batch: The batch, on any device; it stays as it is.
            centres: For image and event what damaged dimensions become, (D,) or () each, on the device of the batch.
        """
        device = batch.image.device
        damaged = []
        for stream, (values, centre) in enumerate(zip((batch.image, batch.event), centres, strict=True)):
            mine = (self.streams == stream).unsqueeze(1)
            dimensions = (self.dimensions & mine).to(device, non_blocking=True).unsqueeze(1)
            steps = (self.steps & mine)[:, : values.shape[1]].to(device, non_blocking=True).unsqueeze(2)
            shrunk = torch.where(steps, centre + LEFT * (values - centre), values)
            damaged.append(torch.where(dimensions, centre, shrunk))
        return dataclasses.replace(batch, image=damaged[0], event=damaged[1])
