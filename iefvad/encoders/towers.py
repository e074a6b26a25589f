"""The two kinds of towers that an encoder consists of: open_clip's visual towers and the fixed descriptor."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iefvad.encoders import descriptor
from iefvad.encoders.weights import check_names, read_visual
from iefvad.utils.devices import meta_device
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import hash_tensors

# OpenAI's statistics. Every CLIP model without its own preprocess_cfg was trained with them.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

# A ViT that is small enough for a CPU, as a model configuration of open_clip.
_RANDOM_VIT: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 112, "layers": 2, "width": 256, "head_width": 64, "patch_size": 14},
}
_RANDOM_VIT_SEED = 0
_SAFE_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


class Tower(Protocol):
    """The network (or descriptor) of one stream.

    Attributes:
        dim: Width D of the features.
        name: Name of the model. With `weights_hash` it identifies what the tower computes.
        weights_hash: Hash of the weights.
        description: One sentence for people.
        weights: Path of the weights, or None if there is no file.
    """

    dim: int
    name: str
    weights_hash: str
    description: str
    weights: str | None

    def images(self, frames: Tensor) -> Tensor:
        """Encode frames, uint8 (n, H, W, 3) RGB, to (n, D)."""
        ...

    def events(self, maps: Tensor) -> Tensor:
        """Encode event maps, floating point (n, H, W) in [0, 1], to (n, D)."""
        ...


class _DescriptorTower:
    """The fixed descriptor of `iefvad.encoders.descriptor`. Images and events have different features."""

    dim = descriptor.DIM
    name = "descriptor"
    weights: str | None = None
    description = "fixed descriptor of colour, edges and event density (no pretrained weights)"
    _portion = 16  # number of frames whose planes fit into a core's cache

    def __init__(self) -> None:
        self.weights_hash = hashlib.sha256(f"descriptor {descriptor.VERSION}".encode()).hexdigest()

    def images(self, frames: Tensor) -> Tensor:
        return torch.cat([descriptor.describe_images(part) for part in torch.split(frames, self._portion)])

    def events(self, maps: Tensor) -> Tensor:
        return torch.cat([descriptor.describe_events(part) for part in torch.split(maps, self._portion)])


@dataclass
class _ClipTower:
    """An open_clip visual tower with its normalisation. `size` is the (height, width) of its input."""

    module: nn.Module
    dim: int
    size: tuple[int, int]
    mean: Tensor
    std: Tensor
    dtype: torch.dtype
    name: str
    weights_hash: str
    description: str
    weights: str | None

    def images(self, frames: Tensor) -> Tensor:
        pixels = self._fit(frames.permute(0, 3, 1, 2).to(torch.float32) / 255)
        return self._run((pixels - self.mean) / self.std)

    def events(self, maps: Tensor) -> Tensor:
        return self._run(self._fit(maps.to(torch.float32)[:, None]).expand(-1, 3, -1, -1))

    def _fit(self, pixels: Tensor) -> Tensor:
        if tuple(pixels.shape[2:]) == self.size:
            return pixels
        return F.interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)

    def _run(self, pixels: Tensor) -> Tensor:
        out = self.module(pixels.to(self.dtype))
        features: Tensor = out[0] if isinstance(out, tuple) else out
        return features


def build_tower(model: str, weights: str | Path | None, stream: str, device: torch.device, dtype: torch.dtype) -> Tower:
    """Build the tower of one stream.

    Args:
        model: As `image_model` of `iefvad.encoders.encoder.build_encoder`.
        weights: As `image_weights` there.
        stream: `image` or `event`. Messages name the options of this stream.
        device: Device of the tower.
        dtype: Number type of the computation.

    Raises:
        UserError: The model and the weights do not describe a usable tower.
    """
    if model in ("descriptor", "random-vit") and weights is not None:
        raise UserError(
            f"--{stream}-model {model} takes no weights: drop --{stream}-weights or name an open_clip model."
        )
    if model == "descriptor":
        return _DescriptorTower()
    if model == "random-vit":
        tower = _clip_tower(model, _RANDOM_VIT, {}, f"random:{_RANDOM_VIT_SEED}", stream, device, dtype)
        tower.weights = None
        return tower
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        config, preprocess = _read_local_config(folder)
        name = f"local-dir:{folder.resolve()}"
        tower = _clip_tower(name, config, preprocess, weights or _local_weights(folder), stream, device, dtype)
        if weights is None:
            tower.weights = None
        return tower
    return _clip_tower(model, _named_config(model), {}, _required(weights, model, stream), stream, device, dtype)


def _clip_tower(
    name: str,
    config: dict[str, Any],
    preprocess: dict[str, Any],
    weights: str | Path,
    stream: str,
    device: torch.device,
    dtype: torch.dtype,
) -> _ClipTower:
    quickgelu = bool(config.get("quick_gelu", False))
    random = re.fullmatch(r"random:(\d+)", str(weights))
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random[1]))
            module = _open_clip_tower(config, dtype)
        source = f"random weights of seed {random[1]}"
    else:
        path = Path(weights)
        found = read_visual(path)
        if found.quickgelu and not quickgelu:
            remedy = f"give --{stream}-model {name}-quickgelu"
            if name.startswith("local-dir:"):
                remedy = 'put "quick_gelu": true into model_cfg of its open_clip_config.json'
            raise UserError(
                f"{path} was trained with QuickGELU and {name} has none, so the features would be wrong without any"
                f" error: {remedy}."
            )
        module = _load_tower(config, dtype, found.tensors, path, name)
        source = f"weights of {path.name}"
    weights_hash = hash_tensors(module.state_dict())
    if name.startswith("local-dir:"):  # the folder may move, but its description of the model may not change
        text = json.dumps([config, preprocess], sort_keys=True)
        weights_hash = hashlib.sha256(f"{weights_hash} {text}".encode()).hexdigest()
    size = config["vision_cfg"].get("image_size", 224)
    if dtype != torch.float32:
        _lower_precision(module, dtype)
    module = module.to(device).eval().requires_grad_(False)
    return _ClipTower(
        module=module,
        dim=int(config["embed_dim"]),
        size=(int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1])),
        mean=_channels(preprocess.get("mean", _MEAN), device),
        std=_channels(preprocess.get("std", _STD), device),
        dtype=dtype,
        name=name,
        weights_hash=weights_hash,
        description=f"open_clip {name}, {source}",
        weights=str(weights) if random else str(Path(weights).resolve()),
    )


def _open_clip_tower(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """Build only the visual tower. The text tower, often a third of the memory, is not needed."""
    from open_clip.model import _build_vision_tower

    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    try:
        tower: nn.Module = _build_vision_tower(
            config["embed_dim"], vision, bool(config.get("quick_gelu", False)), dtype
        )
    except TypeError as error:
        raise UserError(
            f"the installed open_clip does not know the model's vision_cfg ({error}): check it, or install a newer"
            " open_clip."
        ) from error
    return tower


def _load_tower(
    config: dict[str, Any], dtype: torch.dtype, tensors: dict[str, Tensor], path: Path, name: str
) -> nn.Module:
    # timm towers have buffers outside their state dict, which a module on the meta device would lose.
    lazy = "timm_model_name" not in config["vision_cfg"]
    with meta_device() if lazy else torch.device("cpu"):
        module = _open_clip_tower(config, dtype)
    check_names(module.state_dict(), tensors, path, name)
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    module.load_state_dict(tensors, strict=True, assign=lazy)
    return module


def _lower_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert in place. LayerNorm weights and embeddings stay float32, as open_clip's layers expect."""
    from open_clip.model import convert_weights_to_lp

    if hasattr(module, "trunk"):  # timm
        module.to(dtype)
    else:
        convert_weights_to_lp(module, dtype)


def _named_config(model: str) -> dict[str, Any]:
    import open_clip

    if model.startswith("hf-hub:"):
        raise UserError(
            f"{model} would be downloaded, and this program downloads nothing: fetch the folder yourself and give"
            " `local-dir:FOLDER`."
        )
    config: dict[str, Any] | None = open_clip.get_model_config(model)
    if config is None:
        names = open_clip.list_models()
        near = difflib.get_close_matches(model, names, n=3, cutoff=0.4)
        raise UserError(
            f"there is no encoder {model}: use descriptor, random-vit, local-dir:FOLDER or an open_clip model such as"
            f" {', '.join(near or ('ViT-B-32', 'ViT-L-14-quickgelu'))}."
        )
    return config


def _required(weights: str | Path | None, model: str, stream: str) -> str | Path:
    if weights is None:
        raise UserError(
            f"{model} needs weights, and this program downloads nothing: fetch open_clip_model.safetensors of the model"
            f" (its page on huggingface.co) and give --{stream}-weights FILE.safetensors, or convert a .pt file by"
            f" `iefvad convert`. To try the path without weights give --{stream}-weights random:0."
        )
    return weights


def _read_local_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / "open_clip_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content.get("model_cfg", content)
        _ = config["embed_dim"], config["vision_cfg"]
    except OSError:
        raise UserError(
            f"{folder} is not an open_clip model folder: it has no readable open_clip_config.json."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe an open_clip model (embed_dim, vision_cfg): {error}.") from error
    return config, content.get("preprocess_cfg", {})


def _local_weights(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    for name in _SAFE_NAMES:
        if folder / name in files:
            return folder / name
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(f"{folder} contains several safetensors files: name one by --image-weights.")
    raise UserError(
        f"{folder} contains no safetensors weights: fetch open_clip_model.safetensors into it, or convert a .bin or"
        " .pt file by `iefvad convert`."
    )


def _channels(values: Any, device: torch.device) -> Tensor:
    return torch.tensor([float(value) for value in values], device=device).view(1, 3, 1, 1)
