"""Released checkpoints of IEF-VAD: recognise them, and map them to this project's network.

Names and conventions: `docs/specification.md#released-checkpoints`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from iefvad.checkpoints.files import Saved
from iefvad.model.config import ModelConfig, Noise
from iefvad.model.network import Network
from iefvad.utils.devices import meta_device
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import differences
from iefvad.utils.text import few

CHUNK = 256
"""Segments that the released code scores at a time. It pads shorter pieces to it, and attends to the padding."""

_BLOCK = re.compile(r"temporal\.refinement_blocks\.(\d+)\.")
_LAYER = re.compile(r"temporal\.(?:image|event)_(?:attn_layers|norms)\.(\d+)\.")


def is_released(names: Mapping[str, object]) -> bool:
    """Whether tensors of these names are of a released IEF-VAD model (`temporal.*`, with or without `module.`)."""
    return any(name.removeprefix("module.").startswith("temporal.") for name in names)


def read_released(
    state_dict: Mapping[str, Tensor],
    *,
    noise: Noise = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
    path: Path = Path("state dict"),
) -> Saved:
    """Rename the tensors of a released checkpoint to this project's, and read the network's sizes from them.

    Widths, the number of layers and of refinement steps are read from the tensors; a leading `module.` is stripped.

    Args:
        state_dict: Tensors by their released names.
        noise: Noise model; not in a checkpoint, like the three that follow, which default to the paper's values.
        nu: Degrees of freedom ν of the Student-t.
        attenuation: Attenuation λ of the refinement.
        heads: Attention heads.
        path: The file that they come from, for messages.

    Raises:
        UserError: tensors are missing, unexpected or of another shape, named in the message, or the heads do not fit.
    """
    source = {key.removeprefix("module."): value for key, value in state_dict.items()}
    config = released_config(source, noise=noise, nu=nu, attenuation=attenuation, heads=heads)
    shapes = _shapes(config)
    weights = {}
    for ours, released in _names(config).items():
        parts = [source[name] for name in released]
        if ours.startswith("refinement."):
            parts = [torch.stack(parts) if parts else torch.zeros(shapes[ours].shape)]
        weights[ours] = parts[0]
    provenance = {"method": "released", "chunk": CHUNK, "test_crops": "5"}
    return Saved(config, weights, path, provenance)


def released_config(
    source: Mapping[str, Tensor],
    *,
    noise: Noise = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
) -> ModelConfig:
    """Configuration of the released network whose tensors these are, `module.` stripped; raises as `read_released`."""
    head = source.get("temporal.classifier.weight")
    if not isinstance(head, Tensor) or head.dim() != 2 or not is_released(source):
        raise UserError(
            "this is not a checkpoint of the released IEF-VAD: `temporal.classifier.weight` is missing"
            f" (it has {few(sorted(source))})."
        )
    first = source.get("temporal.refinement_blocks.0.0.weight")
    dim, steps = head.shape[1], _count(source, _BLOCK)
    hidden = first.shape[0] if first is not None and first.dim() == 2 else None
    try:
        config = ModelConfig(
            dim=dim,
            hidden=hidden,
            layers=_count(source, _LAYER),
            heads=heads,
            noise=noise,
            nu=nu,
            temporal="none",
            process_noise=0.0,
            refine_steps=steps,
            attenuation=attenuation,
            released=True,
        )
        ours = _shapes(config)
    except ValueError as error:
        raise UserError(f"{error}: give the value that the checkpoint was trained with.") from None
    expected: dict[str, Tensor] = {}
    for name, released in _names(config).items():
        shape = ours[name][0] if name.startswith("refinement.") and released else ours[name]
        expected |= dict.fromkeys(released, shape)
    if differing := differences(expected, source):
        raise UserError(
            f"the checkpoint is not a released IEF-VAD of width {dim}, {config.layers} layers and {steps} refinement"
            f" steps: {differing}."
        )
    return config


def _shapes(config: ModelConfig) -> dict[str, Tensor]:
    """Tensors on the meta device with the shapes of a network's weights. Raises ValueError for impossible sizes."""
    with meta_device():
        return Network(config).state_dict()


def _count(source: Mapping[str, Tensor], pattern: re.Pattern[str]) -> int:
    """One more than the highest index, so that a gap shows as a missing tensor; never more than there are tensors."""
    highest = max((int(match[1]) for name in source if (match := pattern.match(name))), default=-1)
    return min(highest + 1, len(source))


def _names(config: ModelConfig) -> dict[str, list[str]]:
    """This project's tensor names → the released ones: one each, or one per step for the stacked refinement."""
    result: dict[str, list[str]] = {}
    for part in ("weight", "bias"):
        for name in ("image", "event"):
            for layer in range(config.layers):
                attention, ours = f"temporal.{name}_attn_layers.{layer}", f"encoders.{name}.layers.{layer}"
                result[f"{ours}.in_proj.{part}"] = [f"{attention}.in_proj_{part}"]
                result[f"{ours}.out_proj.{part}"] = [f"{attention}.out_proj.{part}"]
                result[f"{ours}.norm.{part}"] = [f"temporal.{name}_norms.{layer}.{part}"]
            result[f"encoders.{name}.whiten.{part}"] = [f"temporal.whiten_{name}.{part}"]
            for head in ("mu", "logvar"):
                result[f"encoders.{name}.{head}.{part}"] = [f"temporal.{name}_{head}.{part}"]
        for index, number in ((0, 1), (2, 2)):
            blocks = [f"temporal.refinement_blocks.{step}.{index}.{part}" for step in range(config.refine_steps)]
            result[f"refinement.{part[0]}{number}"] = blocks
        result[f"classifier.{part}"] = [f"temporal.classifier.{part}"]
    return result
