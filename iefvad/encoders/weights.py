"""Reads the weights of a visual tower from a safetensors file, with any of the usual names of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from iefvad.utils.errors import UserError
from iefvad.utils.tensors import differences, open_tensors, refuse_pickled

_PREFIXES = ("module.", "encoder_k.")
# Scalars that only OpenAI's state dicts have beside the tensors.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")
# Names of transformers → names of open_clip.
_TRANSFORMERS = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.patch_embedding.", "conv1."),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm.", "ln_pre."),
    ("post_layernorm.", "ln_post."),
    ("encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


@dataclass(frozen=True)
class VisualWeights:
    """Weights of one visual tower.

    Attributes:
        tensors: Tensors with the names of open_clip's visual tower (without `visual.`).
        quickgelu: True if the file shows that the weights were trained with QuickGELU (weights by OpenAI, and event
            encoders trained from them). False if the file does not tell.
    """

    tensors: dict[str, Tensor]
    quickgelu: bool


def read_visual(path: Path) -> VisualWeights:
    """Read the visual tower from a safetensors file.

    Accepts the names of OpenAI and open_clip (`visual.*`; text tensors are not read), a visual tower alone, and the
    prefixes `module.` and `encoder_k.`.

    Raises:
        UserError: The file is missing, pickled, damaged or contains no tensors.
    """
    if not path.is_file():
        refuse_pickled(path)
        raise UserError(f"the weights file {path} does not exist: check the path.")
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
        wanted, quickgelu = visual_names(list(file.keys()))
        tensors = {name: file.get_tensor(key) for key, name in wanted.items()}
    if not tensors:
        raise UserError(f"{path} contains no tensors: give the weights of a CLIP model or of its visual tower.")
    return VisualWeights(tensors, quickgelu or metadata.get("activation") == "quickgelu")


def says_quickgelu(path: Path) -> bool | None:
    """Return whether a safetensors file says by its marks that its weights were trained with QuickGELU.

    Returns:
        None if the file does not say it.

    Raises:
        UserError: The file is missing, pickled or damaged.
    """
    if not path.is_file():
        refuse_pickled(path)
        raise UserError(f"the weights file {path} does not exist: check the path.")
    with open_tensors(path) as file:
        activation = (file.metadata() or {}).get("activation")
        _, marked = visual_names(list(file.keys()))
    if activation in ("quickgelu", "gelu"):
        return bool(activation == "quickgelu")
    return True if marked else None


def read_transformers(path: Path) -> dict[str, Tensor]:
    """Read the visual tower of a CLIP model from a file with transformers' names of tensors.

    Returns:
        Tensors with the names of open_clip's visual tower.

    Raises:
        UserError: The file cannot be read, or has no such tower.
    """
    with open_tensors(path) as file:
        names = [name for name in file.keys() if name.startswith(("vision_model.", "visual_projection."))]  # noqa: SIM118
        found = {name: file.get_tensor(name) for name in names}
    if not any(name.startswith("vision_model.") for name in found) or "visual_projection.weight" not in found:
        raise UserError(
            f"{path} contains no CLIP model of transformers with its projection (vision_model.*,"
            " visual_projection.weight): check the folder."
        )
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        renamed = name.removeprefix("vision_model.")
        for old, new in _TRANSFORMERS:
            renamed = renamed.replace(old, new)
        if ".self_attn." in renamed and "_proj." in renamed and ".out_proj." not in renamed:
            continue  # joined below
        if renamed != "embeddings.position_ids":
            tensors[renamed.replace(".self_attn.", ".attn.")] = value
    tensors["proj"] = tensors.pop("visual_projection.weight").T
    layers = {name.split(".")[3] for name in found if name.startswith("vision_model.encoder.layers.")}
    for layer in layers:
        for kind in ("weight", "bias"):
            parts = [f"vision_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            if all(part in found for part in parts):
                joined = torch.cat([found[part] for part in parts])
                tensors[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = joined
    return tensors


def is_transformers(path: Path) -> bool:
    """Return whether a safetensors file has the names of tensors that transformers gives to CLIP models."""
    if not path.is_file():
        return False
    with open_tensors(path) as file:
        return any(name.startswith("vision_model.") for name in file.keys())  # noqa: SIM118


def check_names(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, model: str, layout: str = "open_clip"
) -> None:
    """Compare names and shapes of tensors.

    Args:
        expected: Tensors of the model.
        found: Tensors of the file.
        path: The file, for the message.
        model: Name of the model, for the message.
        layout: Whose names of tensors the file has, for the message.

    Raises:
        UserError: Names or shapes differ. The message names a few of them.
    """
    if differing := differences(expected, found):
        known = f"{path}, in the layout of transformers," if layout == "transformers" else str(path)
        raise UserError(
            f"{known} does not fit the visual tower of {model}: {differing}. Choose the model that the weights"
            " belong to (OpenAI's weights and published event encoders: a name that ends in -quickgelu, such as"
            " ViT-L-14-quickgelu)."
        )


def visual_names(names: list[str]) -> tuple[dict[str, str], bool]:
    """Return {name in the file: name in the visual tower}, and whether the names show QuickGELU."""
    momentum = [name for name in names if strip(name, "module.").startswith("encoder_k.")]
    stripped = {name: strip(name) for name in momentum or names}
    quickgelu = bool(momentum) or any(mark in stripped.values() for mark in _OPENAI_MARKS)
    if any(name.startswith("visual.") for name in stripped.values()):
        wanted = {key: name.removeprefix("visual.") for key, name in stripped.items() if name.startswith("visual.")}
    else:
        wanted = stripped
    return wanted, quickgelu


def strip(name: str, *prefixes: str) -> str:
    """Return the name without its prefixes `module.` and `encoder_k.`, or without the given prefixes."""
    for prefix in prefixes or _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def quickgelu_model(path: str | Path) -> str | None:
    """Find open_clip's QuickGELU model whose visual tower has the sizes of a converted ViT.

    Args:
        path: Safetensors file that `iefvad convert` wrote.

    Returns:
        The shortest fitting name; None where there is none. Other models with the same visual tower differ in their
        text encoder.
    """
    import open_clip  # here, because it is slow to import

    with open_tensors(Path(path)) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if not {"visual.conv1.weight", "visual.positional_embedding", "visual.proj"} <= shapes.keys():
        return None
    kernel, tokens, output = (shapes[f"visual.{name}"] for name in ("conv1.weight", "positional_embedding", "proj"))
    if (len(kernel), len(tokens), len(output)) != (4, 2, 2) or not tokens[0]:
        return None
    width, _, patch, _ = kernel
    sizes = {
        "width": width,
        "patch_size": patch,
        "image_size": patch * math.isqrt(shapes["visual.positional_embedding"][0] - 1),
        "layers": len([name for name in shapes if name.endswith(".attn.in_proj_weight")]),
    }
    fitting: list[str] = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        tower = config["vision_cfg"]
        same = isinstance(tower, dict) and all(tower.get(key) == value for key, value in sizes.items())
        if name.endswith("-quickgelu") and same and config["embed_dim"] == shapes["visual.proj"][1]:
            fitting.append(name)
    return min(fitting, key=len, default=None)
