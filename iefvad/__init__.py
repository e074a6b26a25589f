"""Video anomaly detection by uncertainty-weighted fusion of image and event streams (IEF-VAD, arXiv 2505.02393).

    from iefvad import IEFVAD, detect
    model = IEFVAD.from_pretrained("runs/mine")

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iefvad.compat import load_official
    from iefvad.detection import detect
    from iefvad.errors import UserError
    from iefvad.model import IEFVAD, ModelConfig
    from iefvad.pretrained import load_pretrained

__version__ = "0.1.0"
__all__ = ["IEFVAD", "ModelConfig", "UserError", "__version__", "detect", "load_official", "load_pretrained"]

_HOMES = {
    "IEFVAD": "iefvad.model",
    "ModelConfig": "iefvad.model",
    "UserError": "iefvad.errors",
    "load_official": "iefvad.compat",
    "load_pretrained": "iefvad.pretrained",
}


def __getattr__(name: str) -> Any:
    if name == "detect":
        # The module of the command, which can be called: importing it binds this very name, whoever does it first.
        return importlib.import_module("iefvad.detect")
    if name not in _HOMES:
        raise AttributeError(f"module 'iefvad' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
