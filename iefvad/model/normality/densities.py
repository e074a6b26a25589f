"""Densities of normal features. Each gives log(1 + squared distance per dimension): high is unusual.

Source: `docs/specification.md#normal-only`. All is computed in float64: distances of many dimensions are sums of large
numbers, and then scores do not depend on how many segments are scored together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iefvad.model.normality.config import NormalityConfig

FLOOR = 0.1
"""Fraction of the mean variance that is added to the variance of each dimension. A constant dimension then has a finite
scale: a change in it counts, but does not decide alone."""

SMALLEST = 1e-6
"""Lowest scale, where no dimension varies."""

LEAST_SHRINKAGE = 1e-3
"""Lowest shrinkage, so that the covariance can be inverted where dimensions repeat each other."""


class Density(nn.Module):
    """Base of the densities of one stream. Its buffers are made by `fit`, and saved in float32."""

    def fit(self, features: Tensor) -> None:
        """Take all buffers from normal features, (N, D) float64."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., D) → log(1 + squared distance per dimension), (...) float64.

        The logarithm has the variance of ratios for large distances. For small ones it has that of differences: a still
        picture, at distance 0 from others, does not make all others look unusual.
        """
        raise NotImplementedError


class Gaussian(Density):
    """Mahalanobis distance. The covariance of the standardised features is shrunk as by Ledoit and Wolf (2004).

    Args:
        dim: D.
    """

    centre: Tensor
    whiten: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("whiten", torch.eye(dim))

    def fit(self, features: Tensor) -> None:
        """Take centre and covariance from normal features."""
        centre, scale = centre_and_scale(features)
        covariance = shrunk_covariance((features - centre) / scale)
        # x'C⁻¹x = |L⁻¹x|² where C = LL'.
        inverse = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), torch.eye(len(covariance)).to(covariance), upper=False
        )
        self.centre.copy_(centre)
        self.whiten.copy_(inverse.T / scale.unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return log(1 + squared Mahalanobis distance per dimension)."""
        white = (x.double() - self.centre.double()) @ self.whiten.double()
        return white.square().mean(-1).clamp(min=0).log1p()


class Neighbours(Density):
    """Mean squared distance to the nearest of some stored normal segments, in standardised dimensions.

    Args:
        dim: D.
        rows: Number of stored segments.
        neighbours: Number of nearest ones that are averaged; all where fewer are stored.
    """

    centre: Tensor
    scale: Tensor
    bank: Tensor

    def __init__(self, dim: int, rows: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = min(neighbours, rows)
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("bank", torch.zeros(rows, dim))

    def fit(self, features: Tensor) -> None:
        """Store the segments; of more than fit, evenly spaced ones, so that every video keeps its part."""
        centre, scale = centre_and_scale(features)
        self.centre.copy_(centre)
        self.scale.copy_(scale)
        self.bank.copy_((evenly(features, len(self.bank)) - centre) / scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return log(1 + mean squared distance to the nearest segments, per dimension)."""
        z = ((x.double() - self.centre.double()) / self.scale.double()).reshape(-1, x.shape[-1])
        bank = self.bank.double()
        squares = z.square().sum(-1, keepdim=True) - 2 * (z @ bank.T) + bank.square().sum(-1)
        nearest = squares.topk(self.neighbours, largest=False).values.mean(-1)
        return (nearest / x.shape[-1]).clamp(min=0).log1p().reshape(x.shape[:-1])


def make_density(config: NormalityConfig) -> Density:
    """Make the density of one stream."""
    if config.normality == "knn":
        return Neighbours(config.dim, config.rows, config.neighbours)
    return Gaussian(config.dim)


def centre_and_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each dimension of (N, D). `FLOOR` of the mean variance is added to each variance."""
    variance = features.var(0, correction=0)
    return features.mean(0), (variance + FLOOR * variance.mean()).sqrt().clamp(min=SMALLEST)


def shrunk_covariance(z: Tensor) -> Tensor:
    """Return the covariance of centred (N, D), shrunk towards a multiple of the identity: (1 − s)S + s·tr(S)/D·I.

    The shrinkage s minimises the expected squared error (Ledoit and Wolf, 2004, A well-conditioned estimator for
    large-dimensional covariance matrices, section 3.3).
    """
    count, dim = z.shape
    sample = z.T @ z / count
    mean = sample.diagonal().mean()
    # Squared distances by the paper's norm |A|² = tr(AA')/D: of S from its target, and of S from the true covariance.
    spread = (sample.square().sum() - dim * mean.square()) / dim
    squares = z.square()
    error = ((squares.sum(1) ** 2).sum() / count - sample.square().sum()) / (count * dim)
    shrinkage = (error / spread).clamp(LEAST_SHRINKAGE, 1.0) if spread > 0 else torch.ones_like(mean)
    return (1 - shrinkage) * sample + shrinkage * mean * torch.eye(dim, dtype=z.dtype, device=z.device)


def evenly(rows: Tensor, count: int) -> Tensor:
    """Return `count` evenly spaced rows in their order; all where there are no more."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]
