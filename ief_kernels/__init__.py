"""Operators of image-event fusion, each with a kernel pair (forward, backward) and a plain eager reference.

Every function takes ``backend="auto"``, ``"triton"``, ``"native"`` or ``"reference"``. ``explain`` says which one
``"auto"`` takes and why. ``ief_kernels.reference`` holds the specification in code.

An operator is a folder with these files:

    __init__.py        the public function: checks its arguments and chooses a backend
    reference.py       the formula in plain eager PyTorch, differentiable by autograd
    autograd.py        registers the operator with torch (forward, backward and their fakes), and the autograd Function
    native.py          the C++ kernels on the CPU
    triton_launch.py   launches the Triton kernels of triton_kernels.py

The rule of registration: ``autograd.py`` alone calls `register_operator`, and each backend's file alone calls
`dispatch.register_backend` for that backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .dispatch import BackendUnavailable, explain
from .event_synthesis import event_synthesis
from .kalman_scan import Scan, kalman_scan
from .low_rank_fusion import low_rank_fusion, low_rank_kl
from .modules import KalmanScan, LowRankFusion, PrecisionFusion, Refinement
from .precision_fusion import Fusion, Terms, fusion_and_terms, fusion_terms, precision_fusion
from .refinement import refine

from . import reference  # isort: skip  (after the operators it collects)

if TYPE_CHECKING:
    __version__: str

__all__ = [
    "BackendUnavailable",
    "Fusion",
    "KalmanScan",
    "LowRankFusion",
    "PrecisionFusion",
    "Refinement",
    "Scan",
    "Terms",
    "__version__",
    "event_synthesis",
    "explain",
    "fusion_and_terms",
    "fusion_terms",
    "kalman_scan",
    "low_rank_fusion",
    "low_rank_kl",
    "precision_fusion",
    "reference",
    "refine",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("iefvad")  # the distribution that both packages belong to
        except PackageNotFoundError:  # a checkout that is on the path, but not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
