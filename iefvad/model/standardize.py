"""Features before the encoders: centred, scaled, and where asked for repaired and projected.

Source: `docs/specification.md#network`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iefvad.model.repair import Repair


class Standardize(nn.Module):
    """(x − centre) / scale per dimension, then where asked for a projection. All are taken from training data.

    With `repair`, dimensions at their mean are predicted from the others before the projection.

    The projection has orthogonal directions, those in which the training features vary most, and one factor that makes
    the mean square of its values 1. So it keeps the ratios of their variances (no whitening).
    """

    centre: Tensor
    scale: Tensor
    basis: Tensor | None

    def __init__(self, dim: int, projection: int | None, *, repair: bool = False) -> None:
        super().__init__()
        self.repair = Repair(dim) if repair else None
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("basis", None if projection is None else torch.eye(dim, projection))

    def fit(self, features: Tensor) -> None:
        """Take all from features (N, D). A constant dimension is centred and hardly scaled."""
        self.centre.copy_(features.mean(0))
        self.scale.copy_(features.std(0, correction=0) + 0.05)
        if self.repair is not None:
            self.repair.fit((features - self.centre) / self.scale)
        if self.basis is not None:
            self.basis.copy_(_principal_directions((features - self.centre) / self.scale, self.basis.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D or P)."""
        return self.with_doubt(x)[0]

    def with_doubt(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(..., D) → the same, and the doubt of `Repair`, (..., 1); None without repair."""
        standardized, doubt = (x - self.centre) / self.scale, None
        if self.repair is not None:
            standardized, doubt = self.repair(standardized)
        return (standardized if self.basis is None else standardized @ self.basis), doubt


def _principal_directions(features: Tensor, number: int) -> Tensor:
    """Return the first principal directions of centred features (N, D), scaled as `Standardize` says; (D, number).

    Directions in which the features do not vary, as where N is below `number`, are zero.
    """
    values = features.double()
    variances, directions = torch.linalg.eigh(values.T @ values)  # in ascending order
    directions = torch.where(variances > 1e-9 * variances[-1], directions, 0.0).flip(1)[:, :number]
    # The sign of a direction is arbitrary. Its largest element is made positive, so that it depends on the data alone.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    size = (values @ directions).square().mean().sqrt()
    return (directions / size.clamp(min=1e-6)).to(features.dtype)
