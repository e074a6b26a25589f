"""Repair: masked dimensions are replaced by what the others predict, and the uncertainty of that is told.

Source: `docs/specification.md#repair`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MISSING = 0.05
"""A dimension counts as masked within this distance of its mean, in standard deviations. Chance puts 4% there."""

FACTORS = 32
"""Maximum number of common factors."""


class Repair(nn.Module):
    """Conditional mean and variance of masked dimensions, under a factor model of the training features.

    The covariance of standardised features is U·Uᵀ + Ψ, with a diagonal Ψ. A masked dimension is one at its mean.

    Args:
        dim: D.
    """

    loadings: Tensor
    noise: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("loadings", torch.zeros(dim, min(FACTORS, max(dim // 2, 1))))
        self.register_buffer("noise", torch.ones(dim))

    def fit(self, features: Tensor) -> None:
        """Take the factors from standardised training features (N, D): their first principal directions."""
        values = features.double()
        covariance = values.T @ values / len(values)
        variances, directions = torch.linalg.eigh(covariance)  # in ascending order
        number = self.loadings.shape[1]
        loadings = directions[:, -number:] * variances[-number:].clamp(min=0).sqrt()
        rest = covariance.diagonal() - loadings.square().sum(1)
        self.loadings.copy_(loadings)
        # Some variance of its own keeps each dimension from being predicted without error.
        self.noise.copy_(torch.maximum(rest, 0.01 * covariance.diagonal()).clamp(min=1e-6))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Repair features.

        Args:
            z: Standardised features, (..., D).

        Returns:
            The features, (..., D), of which masked dimensions are predicted; and the doubt, (..., 1): variance of the
            predicted dimensions given the others, as a fraction of the variance of all dimensions.
        """
        with torch.autocast(z.device.type, enabled=False):
            masked = z.abs() <= MISSING
            loadings = self.loadings
            precision = torch.where(masked, 0.0, 1 / self.noise)
            pairs = (loadings.unsqueeze(2) * loadings.unsqueeze(1)).flatten(1)  # of factors
            seen = (precision @ pairs).unflatten(-1, (loadings.shape[1], -1))
            # NaN of the padding must not enter a factorisation; at valid positions it stays in z.
            known = (precision * z.nan_to_num() @ loadings).unsqueeze(-1)
            system = seen + torch.eye(loadings.shape[1], dtype=z.dtype, device=z.device)
            factor, _ = torch.linalg.cholesky_ex(system)  # without the check, which would wait for the device
            predicted = torch.cholesky_solve(known, factor).squeeze(-1) @ loadings.T
            variances = (torch.cholesky_inverse(factor).flatten(-2) @ pairs.T) + self.noise
            everything = loadings.square().sum() + self.noise.sum()
            doubt = torch.where(masked, variances, 0.0).sum(-1, keepdim=True) / everything
            return torch.where(masked, predicted, z), doubt
