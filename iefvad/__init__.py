"""Video anomaly detection by uncertainty-weighted fusion of image and event streams (IEF-VAD, arXiv 2505.02393).

    from iefvad import IEFVAD, detect
    model = IEFVAD.from_pretrained("runs/mine")

Names are loaded when they are first used, so that importing the package costs next to nothing. A folder is one idea
and imports only folders above it: utils, model, video, encoders, checkpoints, features, extraction, data, scoring,
report, detection, training, evaluation, sweep, cli.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iefvad.checkpoints.hub import IEFVAD, load_pretrained, load_released
    from iefvad.detection.detect import detect
    from iefvad.model.config import ModelConfig
    from iefvad.utils.errors import UserError

    __version__: str

__all__ = ["IEFVAD", "ModelConfig", "UserError", "__version__", "detect", "load_pretrained", "load_released"]

_HOMES = {
    "IEFVAD": "iefvad.checkpoints.hub",
    "ModelConfig": "iefvad.model.config",
    "UserError": "iefvad.utils.errors",
    "detect": "iefvad.detection.detect",
    "load_pretrained": "iefvad.checkpoints.hub",
    "load_released": "iefvad.checkpoints.hub",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name == "load_official":
        warnings.warn("iefvad.load_official is now iefvad.load_released", DeprecationWarning, stacklevel=2)
        name = "load_released"
    if name not in _HOMES:
        raise AttributeError(f"module 'iefvad' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def _version() -> str:
    """Return the version of the installed package, which pyproject.toml states."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("iefvad")
    except PackageNotFoundError:  # a checkout that is on the path, but not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """The package, whose exported names no submodule hides.

    The import system makes each submodule an attribute of its package. `iefvad/detect.py`, which exists for
    `python -m iefvad.detect`, would so replace the function `detect` once somebody imports it.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, except an exported name to a submodule: that stays in `sys.modules` alone."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
