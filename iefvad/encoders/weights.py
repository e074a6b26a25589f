"""Weight files: reading a visual tower from safetensors, and converting pickled checkpoints to safetensors once."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from iefvad.errors import UserError
from iefvad.files import write_bytes

if TYPE_CHECKING:
    from iefvad.model import ModelConfig

PICKLED = frozenset((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar"))
"""Suffixes of files that PyTorch pickles; only `iefvad convert` reads them."""

_WRAPPERS = ("checkpoint", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "encoder_k.")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_TEXT = frozenset(
    ("transformer", "token_embedding", "positional_embedding", "text_projection", "ln_final", "logit_scale")
)
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
    """What `convert_checkpoint` did: how many tensors it kept and left out (`parts`: of which parts of the checkpoint).

    `quickgelu`: the encoder is a QuickGELU one. `released`: the network's configuration (at the paper's ν, attenuation
    and heads, which a checkpoint does not record) where the file is a released IEF-VAD model, else None.
    """

    kept: int
    dropped: int
    quickgelu: bool
    parts: dict[str, int] = field(default_factory=dict)
    released: ModelConfig | None = None


def read_visual(path: Path) -> VisualWeights:
    """Read the visual tower from a safetensors file.

    Accepts OpenAI's and open_clip's naming (`visual.*`, text tensors beside them are not read), a tower alone, and the
    prefixes `module.` and `encoder_k.`. Raises UserError for a missing file, a pickled one and one without tensors.
    """
    refuse_pickled(path)
    if not path.is_file():
        raise UserError(f"the weights file {path} does not exist: check the path.")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            wanted, quickgelu = visual_names(list(file.keys()))
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
    Raises UserError if `src` cannot be read so, holds neither, or has missing or unexpected tensors, and if `dst` does
    not end in .safetensors.
    """
    src, dst = Path(src), Path(dst)
    if dst.suffix != ".safetensors":
        raise UserError(f"the converted file must end in .safetensors, and {dst} does not.")
    tensors = _load_tensors(src)
    config, quickgelu = None, False
    if any(strip(name).startswith("temporal.") for name in tensors):
        from iefvad.compat import official_config

        kept = {strip(name): value for name, value in tensors.items()}
        try:
            config = official_config(kept, heads=1)  # any number of heads has the same tensors
        except UserError as error:
            raise UserError(f"{src}: {error}") from None
        dropped: list[str] = []
    else:
        wanted, quickgelu = visual_names(list(tensors))
        kept = {f"visual.{name}": tensors[key] for key, name in wanted.items()}
        dropped = sorted(set(tensors) - set(wanted))
        if not any(name.startswith(("visual.conv1.", "visual.trunk.")) for name in kept):
            raise UserError(
                f"{src} holds neither a CLIP visual tower nor a released IEF-VAD model: its tensors are"
                f" {few(sorted(tensors))}."
            )
        if quickgelu:
            _check_openai_vit({wanted[key]: tensors[key] for key in wanted}, src)
    metadata = {"activation": "quickgelu"} if quickgelu else {}
    # A tensor that is a view of a larger one, or of one that others share, is written as what it shows.
    data = safetensors.torch.save({name: value.contiguous().clone() for name, value in kept.items()}, metadata)
    write_bytes(dst, data)
    parts = Counter("text" if (part := strip(name).split(".")[0]) in _TEXT else part for name in dropped)
    return Conversion(len(kept), len(dropped), quickgelu, dict(parts.most_common()), config)


def refuse_pickled(path: Path) -> None:
    """Raise UserError for a pickled file, known by its suffix or, if it is there, by how it begins."""
    if path.suffix.lower() in PICKLED or begins_as_pickle(path):
        converted = path.with_suffix(".safetensors")
        if converted == path:
            converted = path.with_name(f"{path.stem}_converted.safetensors")
        raise UserError(
            f"{path} is a pickled file, which can run code when it is read: convert it once by"
            f" `iefvad convert {path} {converted}` and give the result."
        )


def begins_as_pickle(path: Path) -> bool:
    """True for a zip archive (what `torch.save` writes) or a pickle of protocol 2 to 5, whatever the file is called."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Names and shapes that differ, the first few of each kind, such as `missing: a, b; unexpected: c`; else ""."""
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    reshaped = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in sorted(expected.items())
        if name in found and found[name].shape != value.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return "; ".join(f"{what}: {few(names)}" for what, names in kinds if names)


def check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Compare names and shapes of tensors; raises UserError that names a few of those that differ."""
    if differing := differences(expected, found):
        raise UserError(
            f"{path} does not fit the visual tower of {model}: {differing}. Choose the model that the weights"
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


def visual_names(names: list[str]) -> tuple[dict[str, str], bool]:
    """Which names make the visual tower: {name in the file: name in the tower}, and whether it is a QuickGELU one."""
    momentum = [name for name in names if strip(name, "module.").startswith("encoder_k.")]
    stripped = {name: strip(name) for name in momentum or names}
    quickgelu = bool(momentum) or any(mark in stripped.values() for mark in _OPENAI_MARKS)
    if any(name.startswith("visual.") for name in stripped.values()):
        wanted = {key: name.removeprefix("visual.") for key, name in stripped.items() if name.startswith("visual.")}
    else:
        wanted = stripped
    return wanted, quickgelu


def strip(name: str, *prefixes: str) -> str:
    """The name without `module.` and `encoder_k.` (or the given prefixes) before it."""
    for prefix in prefixes or _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _check_openai_vit(found: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError that names missing, unexpected and misshapen tensors of a ViT in OpenAI's layout (no ResNet)."""
    if "class_embedding" not in found:
        return
    from open_clip.transformer import VisionTransformer

    try:
        width, _, patch, _ = found["conv1.weight"].shape
        tokens, output = len(found["positional_embedding"]), found["proj"].shape[1]
    except (KeyError, ValueError, IndexError):
        raise UserError(
            f"{path} holds a damaged visual tower: conv1.weight, positional_embedding or proj is missing or misshapen."
        ) from None
    layers = {int(match[1]) for name in found if (match := _BLOCK.match(name))}
    with torch.device("meta"):
        tower = VisionTransformer(
            image_size=patch * math.isqrt(max(tokens - 1, 1)),
            patch_size=patch,
            width=width,
            layers=max(layers, default=-1) + 1,
            heads=1,
            mlp_ratio=4.0,
            output_dim=output,
        )
    if differing := differences(tower.state_dict(), found):
        raise UserError(f"the visual tower in {path} is not one of OpenAI's layout: {differing}.")


def _load_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"the checkpoint {path} does not exist: check the path.")
    value: Any
    try:
        if path.suffix == ".safetensors" and not begins_as_pickle(path):
            value = safetensors.torch.load_file(str(path))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of, the errors below say
                value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not begins_as_pickle(path):
            raise _unreadable(path) from error
        raise UserError(
            f"{path} holds more than tensors and was not read, for it could run code: save its state dict alone where"
            " you trust it, and convert that."
        ) from error
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle fails in torch.load in any way whatever
        raise _unreadable(path) from error
    while isinstance(value, dict):
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


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} is not a checkpoint of tensors (a TorchScript archive, truncated, or of another kind). OpenAI's"
        " CLIP is published as safetensors too: give its folder as `local-dir:FOLDER`."
    )


def few(names: list[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
