"""Sizes and choices of one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MODALITIES = ("image", "event")

Noise = Literal["student-t", "gaussian"]
Temporal = Literal["kalman", "robust-kalman", "none"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one network (`docs/specification.md#network`).

    Attributes:
        dim: Width D of the features.
        hidden: Inner width of the refinement; `dim` where None.
        layers: Self-attention layers per modality.
        heads: Attention heads; they divide `dim`.
        dropout: Dropout of the attention weights in training.
        window: Self-attention stays within consecutive windows of this number of segments; None: no windows.
        standardize: Features are centred and scaled per dimension by buffers that `set_statistics` fills.
        modality: The streams of the network.
        noise: Noise model of the fusion.
        nu: Degrees of freedom of the Student-t.
        temporal: The recursion over the segments.
        process_noise: Process noise q of the recursion.
        refine_steps: Refinement steps N.
        attenuation: Fraction of the predicted residual that a refinement step subtracts.
        eps: Added to variances before they are inverted.
        released: The released code's variant: padding takes part in attention, and the fusion weights are
            (nu+1)/nu·exp(-logvar) divided by their sum + eps.

    Raises:
        ValueError: `heads` does not divide `dim`, or `window` is below 1.
    """

    dim: int = 768
    hidden: int | None = None
    layers: int = 2
    heads: int = 8
    dropout: float = 0.1
    window: int | None = None
    standardize: bool = False
    modality: Literal["fusion", "image", "event"] = "fusion"
    noise: Noise = "student-t"
    nu: float | Literal["learned"] = 8.0
    temporal: Temporal = "kalman"
    process_noise: float | Literal["learned"] = "learned"
    refine_steps: int = 10
    attenuation: float = 0.5
    eps: float = 1e-8
    released: bool = False

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide the feature width {self.dim}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")
