"""What can be chosen of the measurement of robustness. Options need these values, and not the networks."""

from typing import Literal

Damage = Literal["features", "segments"]
Mask = Literal["mean", "zero"]

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Fractions of a modality that are damaged (paper, Appendix H)."""

DRAWS = 5
"""Number of draws where nothing else is said. Enough for a deviation, and few enough for every evaluation."""
