"""Sizes and choices of one network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from iefvad.model.inputs import check_projection
from iefvad.utils.values import COUNT, NOT_NEGATIVE, POSITIVE, Range, problems, within

MODALITIES = ("image", "event")

WIDEST, DEEPEST = 65_536, 1024
"""Maximum of widths, and of numbers of layers, steps and networks. They are far above what serves, and far below what
would fill a machine before anything is computed."""
LONGEST_CHUNK, LONGEST_PADDED = 1 << 20, 4096
"""Maximum number of segments that the attention sees at once, and of those that every sequence is padded to."""

Noise = Literal["student-t", "gaussian"]
Temporal = Literal["kalman", "robust-kalman", "none"]
Weights = Literal["fixed", "learned"]
FusionKind = Literal["precision", "gated", "cross-attention"]
RefinementKind = Literal["plain", "shared", "guided"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one network (`docs/specification.md#network`).

    Attributes:
        dim: Width D of the features.
        hidden: Inner width of the refinement; the width of the network where None.
        layers: Self-attention layers per modality.
        heads: Attention heads; they divide the width of the network.
        dropout: Dropout of the attention weights in training.
        window: Self-attention stays within consecutive windows of this number of segments; None: no windows.
        standardize: Features are centred and scaled per dimension by buffers that `set_statistics` fills.
        projection: Width P of the network: standardised features are projected onto their first P principal
            directions, which `set_statistics` finds; None: the network is as wide as the features.
        members: Number of networks of this form whose logits are averaged; each has its own weights and loss.
        modality: The streams of the network.
        noise: Noise model of the fusion.
        nu: Degrees of freedom of the Student-t.
        covariance_rank: Rank r of the low-rank part of each modality's covariance; 0: covariances are diagonal.
        temporal: The recursion over the segments.
        process_noise: Process noise q of the recursion.
        refine_steps: Refinement steps N.
        attenuation: Fraction of the predicted residual that a refinement step subtracts.
        eps: Added to variances before they are inverted.
        surprise: Log-variances grow where features do not fit the correlations of the training features, which
            `set_statistics` finds.
        repair: Dimensions at their mean over the training features count as masked. They are predicted from the
            others, and the variance of the prediction is added to the variances of the stream.
        density_prior: Weight of the standardised event density in the logits, before anything is learned. The last
            dimension of both streams is then the density (`iefvad.features.density`). 0: the features do not have it.
        fusion: What precedes the precision fusion. "gated": a gate from means, log-variances and disagreement adds to
            the log-precisions. "cross-attention": each stream attends to the other, whose precisions weigh the keys.
        refinement: "shared": one block serves all steps. "guided": the step of each dimension follows the variance of
            the filtered state.
        loss_weights: "learned": the weights of the loss terms are parameters.
        released: The released code's variant: padding takes part in attention, and the fusion weights are
            (nu+1)/nu·exp(-logvar) divided by their sum + eps.

    Raises:
        ValueError: a value is of another type or out of its range, `heads` does not divide the width of the network,
            `projection` exceeds `dim`, `projection`, `surprise` or `repair` comes without `standardize`, `released`
            comes with what the released code does not have, or `covariance_rank` belongs to a network without the
            fusion.
    """

    dim: int = within(768, Range(1, WIDEST))
    hidden: int | None = within(None, Range(1, 4 * WIDEST))
    layers: int = within(2, Range(0, DEEPEST))
    heads: int = within(8, Range(1, WIDEST))
    dropout: float = within(0.1, Range(0, below=1))
    window: int | None = within(None, COUNT)
    standardize: bool = False
    projection: int | None = within(None, Range(1, WIDEST))
    members: int = within(1, Range(1, DEEPEST))
    modality: Literal["fusion", "image", "event"] = "fusion"
    noise: Noise = "student-t"
    nu: float | Literal["learned"] = within(8.0, POSITIVE)
    covariance_rank: int = within(0, Range(0, WIDEST))
    temporal: Temporal = "kalman"
    process_noise: float | Literal["learned"] = within("learned", NOT_NEGATIVE)
    refine_steps: int = within(10, Range(0, DEEPEST))
    attenuation: float = 0.5
    eps: float = within(1e-8, NOT_NEGATIVE)
    surprise: bool = False
    repair: bool = False
    density_prior: float = within(0.0, NOT_NEGATIVE)
    fusion: FusionKind = "precision"
    refinement: RefinementKind = "plain"
    loss_weights: Weights = "fixed"
    released: bool = False

    def __post_init__(self) -> None:
        for name, problem in problems(vars(self), ModelConfig):
            raise ValueError(f"{name} {problem}")
        check_projection(self.projection, self.dim, standardize=self.standardize)
        if self.width % self.heads:
            what = "feature width" if self.projection is None else "projection"
            raise ValueError(f"heads = {self.heads} does not divide the {what} {self.width}")
        if self.surprise and not self.standardize:
            raise ValueError("surprise needs standardize = True")
        if self.repair and not self.standardize:
            raise ValueError("repair needs standardize = True")
        if self.density_prior and not self.standardize:
            raise ValueError("density_prior needs standardize = True")
        if self.covariance_rank and (self.released or self.modality != "fusion"):
            what = (
                "the released variant has fusion weights of its own" if self.released else "one modality has no fusion"
            )
            raise ValueError(f"covariance_rank = {self.covariance_rank} needs the fusion, and {what}")
        if self.fusion != "precision" and self.modality != "fusion":
            raise ValueError(f"fusion = {self.fusion!r} needs both modalities")
        plain = (self.fusion, self.refinement, self.loss_weights) == ("precision", "plain", "fixed")
        if self.released and (self.surprise or self.repair or not plain):
            raise ValueError(
                "the released variant has no surprise, repair, learned loss weights, other fusion or other refinement"
            )

    @property
    def width(self) -> int:
        """Width of the network between the features and the scores."""
        return self.dim if self.projection is None else self.projection


_LATER = ("covariance_rank", "surprise", "repair", "density_prior", "fusion", "refinement", "loss_weights")
"""Fields that version 0.1 did not have."""


def saved_values(config: Any) -> dict[str, Any]:
    """Return a network's configuration as it is saved: JSON values by name.

    A field that came later is left out at its default. So files and fingerprints of a network that does not use it
    stay what they were.

    Args:
        config: A `ModelConfig` or the configuration of a baseline.
    """
    defaults = {item.name: item.default for item in dataclasses.fields(config)}
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in _LATER or value != defaults[name]}
