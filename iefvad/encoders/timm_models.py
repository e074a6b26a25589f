"""Networks of timm as encoders: their features before the classifier, and batch norms folded into convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from iefvad.utils.errors import UserError
from iefvad.utils.tensors import open_tensors


def timm_tower(config: dict[str, Any], name: str) -> nn.Module:
    """Build a network of timm without its classifier, with random weights.

    Args:
        config: `architecture` and `model_args`.
        name: Name of the model, for the message.

    Raises:
        UserError: timm cannot build it.
    """
    import timm

    try:
        module: nn.Module = timm.create_model(
            config["architecture"], pretrained=False, num_classes=0, **config.get("model_args", {})
        )
    except (RuntimeError, TypeError, ValueError, ArithmeticError, AssertionError, LookupError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"the installed timm cannot build {name} ({reason}): install a newer timm, or choose another model."
        ) from error
    return module


def read_timm(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """Read the tensors of a network of timm from a safetensors file, without those of its classifier.

    Raises:
        UserError: The file is missing, pickled or damaged.
    """
    named = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    expected = module.state_dict().keys()
    with open_tensors(path) as file:
        names = [
            name
            for name in file.keys()  # noqa: SIM118
            if name in expected or not name.startswith(tuple(f"{classifier}." for classifier in classifiers))
        ]
        return {name: file.get_tensor(name) for name in names}


@torch.inference_mode()
def width_of(module: nn.Module, size: tuple[int, int]) -> int:
    """Return the width of the features of a network, by encoding one picture.

    Raises:
        UserError: The network does not give one row per picture.
    """
    features = module(torch.zeros(1, 3, *size))
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UserError("the network does not give one row of features per picture: choose another model of timm.")
    return int(features.shape[1])


def fold_batch_norms(module: nn.Module) -> bool:
    """Fold the batch norms of an EfficientNet of timm into the convolutions before them, in place.

    The result is the same except for rounding. Networks of other kinds stay as they are, because the order of their
    layers does not tell which convolution a batch norm follows.

    Returns:
        Whether the network is an EfficientNet, in evaluation mode.
    """
    from timm.layers.norm_act import BatchNormAct2d
    from timm.models.efficientnet import EfficientNet

    if not isinstance(module, EfficientNet) or module.training:
        return False
    for parent in list(module.modules()):
        before: tuple[str, nn.Conv2d] | None = None
        for name, child in list(parent.named_children()):
            if before is not None and isinstance(child, BatchNormAct2d):
                setattr(parent, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(parent, name, nn.Sequential(child.drop, child.act))
            before = (name, child) if isinstance(child, nn.Conv2d) else None
    return True
