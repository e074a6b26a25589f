"""Pickled checkpoints to safetensors, once, without running code from them."""

from __future__ import annotations

import errno
import math
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from iefvad.checkpoints.released import is_released, released_config
from iefvad.checkpoints.torchscript import is_torchscript, read_torchscript
from iefvad.encoders.weights import strip, visual_names
from iefvad.model.config import ModelConfig
from iefvad.utils.devices import meta_device
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable_file, rescued_file
from iefvad.utils.memory import is_shortage
from iefvad.utils.tensors import begins_as_pickle, differences, writable, write_tensors
from iefvad.utils.text import few, readable

_PACKED = 64 << 20
"""Maximum number of bytes that the entries of an archive may save by compression. Tensors are stored as they are."""
_WRAPPERS = ("checkpoint", "state_dict", "model_state_dict", "model")
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")
_TEXT = frozenset(
    ("transformer", "token_embedding", "positional_embedding", "text_projection", "ln_final", "logit_scale")
)


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` did.

    Attributes:
        kept: Number of tensors that it kept.
        dropped: Number of tensors that it left out.
        quickgelu: The encoder is a QuickGELU one.
        parts: Parts of the checkpoint that were left out, and their numbers of tensors.
        released: The network's configuration where the file is a released IEF-VAD model, else None. It has the paper's
            ν and attenuation and one head, because a checkpoint does not record them.
    """

    kept: int
    dropped: int
    quickgelu: bool
    parts: dict[str, int] = field(default_factory=dict)
    released: ModelConfig | None = None


def convert_checkpoint(src: str | Path, dst: str | Path) -> Conversion:
    """Convert a pickled checkpoint or a TorchScript archive to safetensors. Runs none of its code.

    It takes the tensors out of `checkpoint`, `state_dict` or `model`, and strips `module.` and `encoder_k.` (event
    encoders as published; other encoders of such a file are left out). It keeps the visual tower as `visual.*`, or the
    whole of a released IEF-VAD model (`temporal.*`).

    Args:
        src: The checkpoint.
        dst: The file to write; it ends in .safetensors.

    Raises:
        UserError: `src` cannot be read, contains neither of the two, or has missing or unexpected tensors; `dst` has
            another suffix or cannot be written.
    """
    src, dst = Path(src), Path(dst)
    if dst.suffix != ".safetensors":
        raise UserError(f"the converted file must end in .safetensors, and {dst} does not.")
    require_writable_file(dst)
    tensors = _load_tensors(src)
    config, quickgelu = None, False
    kept = {strip(name): value for name, value in tensors.items()}
    if is_released(kept):
        try:
            config = released_config(kept, heads=1)  # any number of heads has the same tensors
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
    rescued_file(lambda path: write_tensors(path, kept, metadata), dst, "the converted weights")
    parts = Counter("text" if (part := strip(name).split(".")[0]) in _TEXT else part for name in dropped)
    return Conversion(len(kept), len(dropped), quickgelu, dict(parts.most_common()), config)


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
    with meta_device():
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
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > path.stat().st_size + _PACKED:
                raise UserError(f"{path} would be {unpacked / 1e9:.1f} GB when it is unpacked, and was not read.")
            with zipfile.ZipFile(path) as archive:
                if (entry := archive.testzip()) is not None:  # torch does not compare checksums
                    raise UserError(
                        f"{path} is damaged: {readable(entry)} changed since it was written. Fetch it again."
                    )
        if path.suffix == ".safetensors" and not begins_as_pickle(path):
            value = safetensors.torch.load_file(str(path))
        elif is_torchscript(path):
            value = read_torchscript(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of, the errors below say
                value = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if not begins_as_pickle(path):
            raise _unreadable(path) from error
        raise UserError(
            f"{path} holds more than tensors and was not read, for it could run code: save its state dict alone where"
            " you trust it, and convert that."
        ) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged directory of an archive leads to a place before its start
            raise _unreadable(path) from error
        raise
    except Exception as error:  # a damaged pickle fails in torch.load in any way whatever
        if is_shortage(error):
            raise
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
    for name, item in tensors.items():
        if item.layout != torch.strided or item.device.type != "cpu" or item.is_quantized or not writable(item):
            raise UserError(f"{path} holds {readable(name)} in a form that is not kept: save it as a plain tensor.")
        if item.numel() * item.element_size() > item.untyped_storage().nbytes():  # repeated values, not stored ones
            raise UserError(
                f"{path} is damaged: {readable(name)} claims the shape {tuple(item.shape)}, for which it is too small."
            )
    return tensors


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"{path} is not a checkpoint of tensors (truncated, or of another kind): fetch it again. Many models are"
        " published as safetensors too: name one by `hf-hub:OWNER/NAME` or `local-dir:FOLDER`."
    )
