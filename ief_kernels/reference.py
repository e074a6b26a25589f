"""One plain eager function per operator: the specification in code, with which every backend is compared.

The formulas are those of ``docs/specification.md``.
"""

from __future__ import annotations

from .event_synthesis.reference import event_synthesis
from .kalman_scan.reference import kalman_scan
from .precision_fusion.reference import fusion_and_terms, fusion_terms, precision_fusion
from .refinement.reference import refine

__all__ = [
    "event_synthesis",
    "fusion_and_terms",
    "fusion_terms",
    "kalman_scan",
    "precision_fusion",
    "refine",
]
