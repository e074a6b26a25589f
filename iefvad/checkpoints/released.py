"""Load checkpoints of the published code into this project's network (SPEC §3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from iefvad.errors import UserError
from iefvad.model import IEFVAD, ModelConfig
from iefvad.weights import differences, few

CHUNK = 256
"""Segments that the published code scores at a time; shorter pieces are padded to it, and the padding attended."""

_BLOCK = re.compile(r"temporal\.refinement_blocks\.(\d+)\.")
_LAYER = re.compile(r"temporal\.(?:image|event)_(?:attn_layers|norms)\.(\d+)\.")


def is_official(names: Mapping[str, object]) -> bool:
    """Whether tensors of these names are of a released IEF-VAD model (`temporal.*`, with or without `module.`)."""
    return any(name.removeprefix("module.").startswith("temporal.") for name in names)


def load_official(
    state_dict: Mapping[str, Tensor],
    *,
    noise: Literal["student-t", "gaussian"] = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
    backend: str = "auto",
) -> IEFVAD:
    """The published model as an `IEFVAD` of the variant `released`: same outputs to 1e-5.

    Widths, the number of layers and of refinement steps are read from the tensors; a leading `module.` is stripped.
    ν, the attenuation and the number of heads are not in a checkpoint and default to the paper's.
    Raises UserError for missing or unexpected tensors or shapes, naming them, and for heads that do not fit.
    """
    source = {key.removeprefix("module."): value for key, value in state_dict.items()}
    config = official_config(source, noise=noise, nu=nu, attenuation=attenuation, heads=heads)
    with torch.device("meta"):  # the values come from the checkpoint, so none are drawn
        model = IEFVAD(config, backend=backend)
    weights = {}
    for ours, published in _names(config).items():
        parts = [source[name].to(torch.float32, copy=True) for name in published]
        if ours.startswith("refinement."):
            parts = [torch.stack(parts) if parts else torch.zeros(model.state_dict()[ours].shape)]
        weights[ours] = parts[0]
    model.load_state_dict(weights, assign=True)
    model.provenance = {"method": "released", "chunk": CHUNK, "test_crops": "5"}
    return model.eval()


def official_config(
    source: Mapping[str, Tensor],
    *,
    noise: Literal["student-t", "gaussian"] = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
) -> ModelConfig:
    """Configuration of the published network whose tensors these are, `module.` stripped; raises as `load_official`."""
    head = source.get("temporal.classifier.weight")
    if not isinstance(head, Tensor) or head.dim() != 2 or not is_official(source):
        raise UserError(
            "this is not a checkpoint of the published IEF-VAD: `temporal.classifier.weight` is missing"
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
        with torch.device("meta"):
            ours = IEFVAD(config).state_dict()
    except ValueError as error:
        raise UserError(f"{error}: give the value that the checkpoint was trained with.") from None
    expected: dict[str, Tensor] = {}
    for name, published in _names(config).items():
        shape = ours[name][0] if name.startswith("refinement.") and published else ours[name]
        expected |= dict.fromkeys(published, shape)
    if differing := differences(expected, source):
        raise UserError(
            f"the checkpoint is not a published IEF-VAD of width {dim}, {config.layers} layers and {steps} refinement"
            f" steps: {differing}."
        )
    return config


def _count(source: Mapping[str, Tensor], pattern: re.Pattern[str]) -> int:
    """One more than the highest index, so that a gap shows as a missing tensor; never more than there are tensors."""
    highest = max((int(match[1]) for name in source if (match := pattern.match(name))), default=-1)
    return min(highest + 1, len(source))


def _names(config: ModelConfig) -> dict[str, list[str]]:
    """This project's tensor names → the published ones: one each, or one a step for the stacked refinement."""
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
