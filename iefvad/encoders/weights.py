"""Reads the weights of a visual tower from a safetensors file, with any of the usual names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from iefvad.utils.errors import UserError
from iefvad.utils.tensors import differences, open_tensors, refuse_pickled

_PREFIXES = ("module.", "encoder_k.")
# Scalars that only OpenAI's state dicts have beside the tensors.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")


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


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Compare names and shapes of tensors.

    Args:
        expected: Tensors of the model.
        found: Tensors of the file.
        path: The file, for the message.
        model: Name of the model, for the message.

    Raises:
        UserError: Names or shapes differ. The message names a few of them.
    """
    if differing := differences(expected, found):
        raise UserError(
            f"{path} does not fit the visual tower of {model}: {differing}. Choose the model that the weights"
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
