"""The towers that an encoder consists of: networks of open_clip and timm, and the fixed descriptor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iefvad.encoders import descriptor
from iefvad.encoders.choices import QuickGelu
from iefvad.encoders.sources import CLIP_PREPROCESS, Source, describes_itself, find_source, with_scheme
from iefvad.encoders.timm_models import fold_batch_norms, read_timm, timm_tower, width_of
from iefvad.encoders.weights import check_names, read_transformers, read_visual
from iefvad.utils.devices import meta_device
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import hash_tensors
from iefvad.utils.text import few

# A ViT that is small enough for a CPU, as a model configuration of open_clip.
_RANDOM_VIT: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 112, "layers": 2, "width": 256, "head_width": 64, "patch_size": 14},
}
_RANDOM_VIT_SEED = 0


class Tower(Protocol):
    """The network (or descriptor) of one stream.

    Attributes:
        dim: Width D of the features.
        name: Name of the model. With `weights_hash` it identifies what the tower computes.
        weights_hash: Hash of the weights.
        description: One sentence for people.
        weights: What finds the weights again: a path, or a name on the hub. None if the model's name says it.
        origin: Repository, revision, file and sha256 of weights from the hub, or None.
    """

    dim: int
    name: str
    weights_hash: str
    description: str
    weights: str | None
    origin: dict[str, str] | None

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
    origin: dict[str, str] | None = None
    description = "fixed descriptor of colour, edges and event density (no pretrained weights)"
    _portion = 16  # number of frames whose planes fit into a core's cache

    def __init__(self) -> None:
        self.weights_hash = hashlib.sha256(f"descriptor {descriptor.VERSION}".encode()).hexdigest()

    def images(self, frames: Tensor) -> Tensor:
        return torch.cat([descriptor.describe_images(part) for part in torch.split(frames, self._portion)])

    def events(self, maps: Tensor) -> Tensor:
        return torch.cat([descriptor.describe_events(part) for part in torch.split(maps, self._portion)])


@dataclass
class _NetworkTower:
    """A visual tower of open_clip or timm with its normalisation.

    `size` is the (height, width) of its input, and `portion` the number of rows that it takes at a time (None: all).
    """

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
    origin: dict[str, str] | None = None

    portion: int | None = None

    def images(self, frames: Tensor) -> Tensor:
        return torch.cat([self._image_rows(part) for part in torch.split(frames, self.portion or len(frames))])

    def events(self, maps: Tensor) -> Tensor:
        return torch.cat([self._event_rows(part) for part in torch.split(maps, self.portion or len(maps))])

    def _image_rows(self, frames: Tensor) -> Tensor:
        pixels = self._fit(frames.permute(0, 3, 1, 2).to(torch.float32).div_(255))
        return self._run(pixels.sub_(self.mean).div_(self.std))

    def _event_rows(self, maps: Tensor) -> Tensor:
        return self._run(self._fit(maps.to(torch.float32)[:, None]).expand(-1, 3, -1, -1))

    def _fit(self, pixels: Tensor) -> Tensor:
        if tuple(pixels.shape[2:]) == self.size:
            return pixels
        return F.interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)

    def _run(self, pixels: Tensor) -> Tensor:
        out = self.module(pixels.to(self.dtype))
        features: Tensor = out[0] if isinstance(out, tuple) else out
        return features


def build_tower(
    model: str,
    weights: str | Path | None,
    stream: str,
    device: torch.device,
    dtype: torch.dtype,
    quick_gelu: QuickGelu = "auto",
    *,
    recorded: bool = False,
) -> Tower:
    """Build the tower of one stream.

    Args:
        model: As `image_model` of `iefvad.encoders.encoder.build_encoder`.
        weights: As `image_weights` there.
        stream: `image` or `event`. Messages name the options of this stream.
        device: Device of the tower.
        dtype: Number type of the computation.
        quick_gelu: As in `build_encoder`.
        recorded: As in `build_encoder`.

    Raises:
        UserError: The model and the weights do not describe a usable tower, or cannot be fetched.
    """
    named = None if weights is None else with_scheme(str(weights), model)
    model = with_scheme(model)
    if named is not None and (model == "random-vit" or (model == "descriptor" and not describes_itself(named))):
        raise UserError(
            f"--{stream}-model {model} takes no weights: drop --{stream}-weights or name {_models_with(named)}."
        )
    if model == "descriptor" and named is None:
        return _DescriptorTower()
    if model == "random-vit":
        seed = _RANDOM_VIT_SEED
        source = Source(model, "open_clip", _RANDOM_VIT, seed=seed)
    else:
        source = find_source(model, named, stream, quick_gelu, recorded=recorded)
    return network_tower(source, device, dtype)


def _models_with(weights: str) -> str:
    """Return which models take these weights, for a message."""
    import open_clip

    models = open_clip.list_pretrained_models_by_tag(weights)
    return f"one of open_clip's models with this tag ({few(models, 4)})" if models else "an open_clip model"


def network_tower(source: Source, device: torch.device, dtype: torch.dtype) -> _NetworkTower:
    """Build the network that a source describes, with its weights."""
    if source.layout == "timm":
        module = _load(source, lambda: timm_tower(source.config, source.name), lazy=False)
        size = source.preprocess.get("size", 224)
        kind = "timm"
    else:
        # timm towers have buffers outside their state dict, which a module on the meta device would lose.
        lazy = source.path is not None and "timm_model_name" not in source.config["vision_cfg"]
        module = _load(source, lambda: _open_clip_tower(source.config, dtype), lazy=lazy)
        size = source.config["vision_cfg"].get("image_size", 224)
        kind = "open_clip"
    weights_hash = hash_tensors(module.state_dict())
    if source.hashed is not None:  # a folder may move, but its description of the model may not change
        text = json.dumps(source.hashed, sort_keys=True)
        weights_hash = hashlib.sha256(f"{weights_hash} {text}".encode()).hexdigest()
    size = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    module = module.eval().requires_grad_(False)
    dim = int(source.config["embed_dim"]) if kind == "open_clip" else width_of(module, size)
    folded = kind == "timm" and fold_batch_norms(module)
    if kind == "timm":
        module.to(dtype)
    elif dtype != torch.float32:
        _lower_precision(module, dtype)
    module = module.to(device)
    if folded:
        module = module.to(memory_format=torch.channels_last)
    return _NetworkTower(
        module=module,
        dim=dim,
        size=size,
        mean=_channels(source.preprocess.get("mean", CLIP_PREPROCESS["mean"]), device),
        std=_channels(source.preprocess.get("std", CLIP_PREPROCESS["std"]), device),
        dtype=dtype,
        name=source.name,
        weights_hash=weights_hash,
        description=_description(source, kind),
        weights=source.weights,
        origin=source.origin,
        # As many pictures as a core's cache has room for: 1.2 to 1.6 times as fast as 16.
        portion=(4 if dtype == torch.float32 else 8) if folded and device.type == "cpu" else None,
    )


def _description(source: Source, kind: str) -> str:
    name = source.name if source.name.startswith("timm:") else f"{kind} {source.name}"
    if source.path is None:
        return f"{name}, random weights of seed {source.seed}"
    if source.origin is not None:
        return f"{name}, {source.origin['file']} of {source.origin['repository']}"
    return f"{name}, weights of {source.path.name}"


def _load(source: Source, build: Callable[[], nn.Module], *, lazy: bool) -> nn.Module:
    """Build the module with the weights of the source. `lazy` spares the memory of weights that are replaced."""
    if source.path is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(source.seed or 0)
            return build()
    if source.layout == "timm":
        module = build()
        tensors = read_timm(source.path, module)
    else:
        transformers = source.layout == "transformers"
        try:
            tensors = read_transformers(source.path) if transformers else read_visual(source.path).tensors
        except RuntimeError as error:  # of tensors that cannot be joined
            raise UserError(f"{source.path} does not fit the visual tower of {source.name} ({error}).") from error
        with meta_device() if lazy else torch.device("cpu"):
            module = build()
    expected = module.state_dict()
    check_names(expected, tensors, source.path, source.name, source.layout)
    for name, value in tensors.items():
        if value.is_floating_point() != expected[name].is_floating_point():
            raise UserError(f"{source.path} has {name} as {value.dtype}: fetch or convert it again.")
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise UserError(f"{source.path} contains NaN or infinity in {name}: fetch or convert it again.")
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    module.load_state_dict(tensors, strict=True, assign=lazy)
    return module


def _open_clip_tower(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """Build only the visual tower. The text tower, often a third of the memory, is not needed."""
    from open_clip.model import _build_vision_tower

    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    try:
        tower: nn.Module = _build_vision_tower(
            config["embed_dim"], vision, bool(config.get("quick_gelu", False)), dtype
        )
    except (TypeError, ValueError, ArithmeticError, AssertionError, LookupError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"the installed open_clip does not know the model's vision_cfg ({reason}): check it, or install a newer"
            " open_clip."
        ) from error
    return tower


def _lower_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert in place. LayerNorm weights and embeddings stay float32, as open_clip's layers expect."""
    from open_clip.model import convert_weights_to_lp

    if hasattr(module, "trunk"):  # timm
        module.to(dtype)
    else:
        convert_weights_to_lp(module, dtype)


def _channels(values: Any, device: torch.device) -> Tensor:
    return torch.tensor([float(value) for value in values], device=device).view(1, 3, 1, 1)
