"""Load checkpoints of the published code into this project's network (SPEC §3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from iefvad.errors import UserError
from iefvad.model import IEFVAD, ModelConfig

_BLOCK = re.compile(r"temporal\.refinement_blocks\.(\d+)\.([02])\.(weight|bias)$")
_LAYER = re.compile(r"temporal\.image_attn_layers\.(\d+)\.in_proj_weight$")


def load_official(
    state_dict: Mapping[str, Tensor],
    *,
    noise: Literal["student-t", "gaussian"] = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
) -> IEFVAD:
    """The published model as an `IEFVAD` of the variant `released`: same outputs to 1e-5.

    Widths, the number of layers and of refinement steps are read from the tensors; a leading `module.` is stripped.
    ν, the attenuation and the number of heads are not in a checkpoint and default to the paper's.
    Raises UserError for missing or unexpected tensors or shapes, naming them.
    """
    source = {key.removeprefix("module."): value for key, value in state_dict.items()}
    layers = len([key for key in source if _LAYER.match(key)])
    steps = len({match[1] for key in source if (match := _BLOCK.match(key))})
    if "temporal.classifier.weight" not in source or layers == 0:
        found = ", ".join(sorted(source)[:3])
        raise UserError(
            "this is not a checkpoint of the published IEF-VAD: `temporal.classifier.weight` is missing"
            f" (it has {found})."
        )
    dim = source["temporal.classifier.weight"].shape[1]
    hidden = source["temporal.refinement_blocks.0.0.weight"].shape[0] if steps else None
    config = ModelConfig(
        dim=dim,
        hidden=hidden,
        layers=layers,
        heads=heads,
        noise=noise,
        nu=nu,
        temporal="none",
        process_noise=0.0,
        refine_steps=steps,
        attenuation=attenuation,
        released=True,
    )
    model = IEFVAD(config)
    target = _translate(source, layers, steps)
    if steps == 0:
        target |= {name: value for name, value in model.state_dict().items() if name.startswith("refinement.")}
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in target.items()}
    if expected != given:
        wrong = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))
        raise UserError(
            f"the checkpoint does not fit a network of width {dim} and {layers} layers: {', '.join(wrong[:5])}."
        )
    model.load_state_dict(target)
    return model.eval()


def _translate(source: Mapping[str, Tensor], layers: int, steps: int) -> dict[str, Tensor]:
    """Published tensor names → this project's; what is left over is kept under its own name so that it is reported."""
    left = dict(source)
    result: dict[str, Tensor] = {}

    def take(old: str, new: str) -> None:
        if old in left:
            result[new] = left.pop(old).float()

    for name in ("image", "event"):
        for layer in range(layers):
            attention, ours = f"temporal.{name}_attn_layers.{layer}", f"encoders.{name}.layers.{layer}"
            for part in ("weight", "bias"):
                take(f"{attention}.in_proj_{part}", f"{ours}.in_proj.{part}")
                take(f"{attention}.out_proj.{part}", f"{ours}.out_proj.{part}")
                take(f"temporal.{name}_norms.{layer}.{part}", f"{ours}.norm.{part}")
        for part in ("weight", "bias"):
            take(f"temporal.whiten_{name}.{part}", f"encoders.{name}.whiten.{part}")
            for head in ("mu", "logvar"):
                take(f"temporal.{name}_{head}.{part}", f"encoders.{name}.{head}.{part}")
    for part in ("weight", "bias"):
        take(f"temporal.classifier.{part}", f"classifier.{part}")
    for index, matrix in (("0", "1"), ("2", "2")):
        for part, ours in (("weight", f"refinement.w{matrix}"), ("bias", f"refinement.b{matrix}")):
            keys = [f"temporal.refinement_blocks.{step}.{index}.{part}" for step in range(steps)]
            if keys and all(key in left for key in keys):
                result[ours] = torch.stack([left.pop(key).float() for key in keys])
    return result | left
