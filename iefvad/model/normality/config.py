"""Sizes and choices of a detector that is made from normal footage alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.model.config import MODALITIES, WIDEST
from iefvad.utils.values import COUNT, Range, problems, within

Density = Literal["gaussian", "knn"]

CAVEAT = "Trained on normal footage only; it finds what is unusual, not what is an anomaly."
"""What every page of such a detector says."""

THRESHOLD = 0.5
"""Score that normal footage reaches once per hour in expectation (`docs/specification.md#normal-only`)."""

MOST_KNOTS = 4096
"""Maximum number of points of the calibration curve in a file. A new one has at most 256."""
MOST_ROWS = 4096
"""Maximum number of stored segments per stream. Each scored segment is compared with all of them: with 1,280 dimensions
that is 5 million products, a small part of what encoding its frames costs, and 21 MB per stream in the file."""


@dataclass(frozen=True)
class NormalityConfig:
    """Sizes and choices of a detector that is made from normal footage alone (`docs/specification.md#normal-only`).

    Attributes:
        normality: "gaussian": Mahalanobis distance with a shrunk covariance. "knn": mean distance to the nearest stored
            normal segments.
        dim: Width D of the features of one stream.
        modality: The streams.
        rows: Number of stored segments per stream; 0 for "gaussian".
        neighbours: Number of nearest stored segments whose distances are averaged.
        knots: Number of points of the calibration curve.

    Raises:
        ValueError: a value is of another type or out of its range.
    """

    normality: Density
    dim: int = within(768, Range(1, WIDEST))
    modality: Literal["fusion", "image", "event"] = "fusion"
    rows: int = within(0, Range(0, MOST_ROWS))
    neighbours: int = within(5, COUNT)
    knots: int = within(1, Range(1, MOST_KNOTS))

    def __post_init__(self) -> None:
        for name, problem in problems(vars(self), NormalityConfig):
            raise ValueError(f"{name} {problem}")
        if (self.normality == "knn") != (self.rows > 0):
            raise ValueError(f"rows = {self.rows} does not fit the normality {self.normality}")

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams."""
        return MODALITIES if self.modality == "fusion" else (self.modality,)

    @property
    def window(self) -> None:
        """Attention window: there is no attention, so every segment is scored alone."""
        return None

    @property
    def layers(self) -> int:
        """Number of attention layers."""
        return 0

    @property
    def released(self) -> bool:
        """Whether padding takes part, which is so in the released variant of IEF-VAD alone."""
        return False
