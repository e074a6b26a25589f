"""One plain eager function per operator: the specification in code, with which every backend is compared.

The formulas are those of ``docs/specification.md``.
"""

from __future__ import annotations

from .event_synthesis.reference import event_synthesis
from .kalman_scan.reference import kalman_scan
from .low_rank_fusion.reference import low_rank_fusion, low_rank_kl
from .precision_fusion.reference import fusion_and_terms, fusion_terms, precision_fusion
from .refinement.reference import refine

__all__ = [
    "event_synthesis",
    "fusion_and_terms",
    "fusion_terms",
    "kalman_scan",
    "low_rank_fusion",
    "low_rank_kl",
    "precision_fusion",
    "refine",
]
