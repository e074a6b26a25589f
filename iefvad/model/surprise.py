"""Surprise: log-variances grow where features do not fit the correlations of the training features.

Source: `docs/specification.md#surprise`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE = 0.01
"""Fraction of the mean variance that is added to each variance, so that the covariance can be inverted."""

USUAL = 0.9
"""Fraction of the training features whose surprise is 0."""


class Surprise(nn.Module):
    """How badly each dimension is predicted by the others, and what the variances make of it.

    A linear head cannot see that half of its input was replaced by the mean: its output stays the same on average. The
    residuals of a linear prediction of each dimension from the others see it, because they grow where correlations are
    broken. All but `raw_surprise` is taken from training features.

    Args:
        dim: P, width of the standardised features.
    """

    predict: Tensor
    usual: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("predict", torch.eye(dim))
        self.register_buffer("usual", torch.zeros(()))
        # softplus gives 0.13: the classification decides by its gradient whether more is better.
        self.raw_surprise = nn.Parameter(torch.full((dim,), -2.0))

    def fit(self, features: Tensor) -> None:
        """Take residuals and their usual size from standardised training features (N, P)."""
        values = features.double()
        covariance = values.T @ values / len(values)
        ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-6)
        precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance), device=values.device).double())
        self.predict.copy_(precision / precision.diagonal().sqrt())
        self.usual.copy_(torch.quantile(self._size(features), USUAL))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised features (..., P) → what is added to the log-variances, (..., P), never negative."""
        surprise = (self._size(x) - self.usual).clamp(min=0)
        return F.softplus(self.raw_surprise) * surprise.unsqueeze(-1)

    def _size(self, x: Tensor) -> Tensor:
        """Logarithm of the mean squared residual, (..., P) → (...)."""
        return (x @ self.predict).square().mean(-1).clamp(min=1e-6).log()
