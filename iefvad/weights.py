"""CLIP weight files: reading the visual tower from safetensors, and converting pickled checkpoints to it once."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from iefvad.errors import UserError
from iefvad.files import write_bytes

PICKLED = frozenset((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"))
"""Suffixes of files that PyTorch pickles; only `convert_checkpoint` reads them."""

_WRAPPERS = ("checkpoint", "state_dict", "model")
_PREFIXES = ("module.", "encoder_k.")
# Scalars that OpenAI's own state dicts carry beside the tensors.
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class VisualWeights:
    """Tensors of one visual tower, named as in open_clip's tower itself (without `visual.`).

    `quickgelu` is True where the file shows that its weights were trained with QuickGELU (OpenAI's, and every event
    encoder trained from them); False means that the file does not say.
    """

    tensors: dict[str, Tensor]
    quickgelu: bool


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` did: tensors kept and left out, and whether they belong to a QuickGELU model."""

    kept: int
    dropped: int
    quickgelu: bool


def read_visual(path: Path) -> VisualWeights:
    """Read the visual tower from a safetensors file.

    Accepts OpenAI's and open_clip's naming (`visual.*`, text tensors beside them are not read), a tower alone, and the
    prefixes `module.` and `encoder_k.`. Raises UserError for a missing file, a pickled one and one without tensors.
    """
    if path.suffix.lower() in PICKLED:
        raise UserError(
            f"{path} is a pickled file, which can run code when it is read: convert it once by"
            f" `iefvad convert {path} {path.with_suffix('.safetensors')}` and give the result."
        )
    if not path.is_file():
        raise UserError(f"the weights file {path} does not exist: check the path.")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            wanted, quickgelu = _visual_names(list(file.keys()))
            tensors = {name: file.get_tensor(key) for key, name in wanted.items()}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is truncated ({error}): fetch it again.") from error
    if not tensors:
        raise UserError(f"{path} holds no tensors: give the weights of a CLIP model or of its visual tower.")
    return VisualWeights(tensors, quickgelu or metadata.get("activation") == "quickgelu")


def convert_checkpoint(src: str | Path, dst: str | Path) -> Conversion:
    """Convert a pickled checkpoint to safetensors, running none of its code.

    Reads `src` by `torch.load(weights_only=True)`; takes the tensors out of `checkpoint`, `state_dict` or `model`;
    strips `module.` and `encoder_k.` (SPEC §4: event encoders as published; other encoders of such a file are left
    out); keeps the visual tower as `visual.*`, or the whole of a released IEF-VAD model (`temporal.*`); writes `dst`.
    Raises UserError if `src` cannot be read so or holds neither, or if `dst` does not end in .safetensors.
    """
    src, dst = Path(src), Path(dst)
    if dst.suffix != ".safetensors":
        raise UserError(f"the converted file must end in .safetensors, and {dst} does not.")
    tensors = _load_pickled(src)
    if any(_strip(name).startswith("temporal.") for name in tensors):
        kept, quickgelu = {_strip(name): value for name, value in tensors.items()}, False
    else:
        wanted, quickgelu = _visual_names(list(tensors))
        kept = {f"visual.{name}": tensors[key] for key, name in wanted.items()}
        if not any(name.startswith(("visual.conv1.", "visual.trunk.")) for name in kept):
            raise UserError(
                f"{src} holds neither a CLIP visual tower nor a released IEF-VAD model: its tensors are"
                f" {_few(sorted(tensors))}."
            )
    metadata = {"activation": "quickgelu"} if quickgelu else {}
    write_bytes(dst, safetensors.torch.save({name: value.contiguous() for name, value in kept.items()}, metadata))
    return Conversion(len(kept), len(tensors) - len(kept), quickgelu)


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Compare names and shapes of tensors; raises UserError that names a few of those that differ."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    reshaped = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in sorted(expected.items())
        if name in found and found[name].shape != value.shape
    ]
    parts = [
        f"{what}: {_few(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if parts:
        raise UserError(
            f"{path} does not fit the visual tower of {model}: {'; '.join(parts)}. Choose the model that the weights"
            " belong to (OpenAI's weights and published event encoders: a name that ends in -quickgelu, such as"
            " ViT-L-14-quickgelu)."
        )


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, shapes and float32 values, in order of names: equal for equal weights in any file."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().data if value.numel() else b"")
    return digest.hexdigest()


def _visual_names(names: list[str]) -> tuple[dict[str, str], bool]:
    """Which names make the visual tower: {name in the file: name in the tower}, and whether it is a QuickGELU one."""
    momentum = [name for name in names if _strip(name, "module.").startswith("encoder_k.")]
    stripped = {name: _strip(name) for name in momentum or names}
    quickgelu = bool(momentum) or any(mark in stripped.values() for mark in _OPENAI_MARKS)
    if any(name.startswith("visual.") for name in stripped.values()):
        wanted = {key: name.removeprefix("visual.") for key, name in stripped.items() if name.startswith("visual.")}
    else:
        wanted = stripped
    return wanted, quickgelu


def _strip(name: str, *prefixes: str) -> str:
    for prefix in prefixes or _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _load_pickled(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist: check the path.")
    value: Any
    try:
        if path.suffix == ".safetensors":
            value = safetensors.torch.load_file(str(path))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of, the errors below say
                value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and was not read, for it could run code: save its state dict alone where"
            " you trust it, and convert that."
        ) from error
    except (RuntimeError, EOFError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} is not a checkpoint of tensors (a TorchScript archive, truncated, or of another kind). OpenAI's"
            " CLIP is published as safetensors too: give its folder as `local-dir:FOLDER`."
        ) from error
    while isinstance(value, dict) and not any(isinstance(item, Tensor) for item in value.values()):
        inner = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    tensors = (
        {str(key): item for key, item in value.items() if isinstance(item, Tensor)} if isinstance(value, dict) else {}
    )
    if not tensors:
        raise UserError(f"{path} holds no named tensors: give a state dict.")
    return tensors


def _few(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
