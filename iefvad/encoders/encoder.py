"""Encoders of frames and event maps: networks of open_clip and timm, or encoders that need no weights.

`build_encoder` makes an `Encoder`, which extraction and detection use. Only weights that were named are fetched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iefvad.encoders.choices import Precision, QuickGelu
from iefvad.encoders.lite import LITE
from iefvad.encoders.sources import describes_itself
from iefvad.encoders.towers import Tower, build_tower
from iefvad.utils.devices import resolve_device
from iefvad.utils.errors import UserError


class Encoder:
    """Encodes frames and event maps into features of one width.

    Args:
        image: Tower of the frames.
        event: Tower of the event maps. It may be the same object.
        device: Device of the towers.
        batch: Maximum number of rows per pass.

    Attributes:
        dim: Width D of the features.
        description: One sentence for people.
        settings: Names and hashes of the encoders. A feature store records them to recognise the same encoder.
        weights: Paths of the weights or their names on the hub, and where those from the hub came from.
        device: Device of the computation and of the results.
        batch: Maximum number of rows per pass.

    Raises:
        UserError: The towers have different widths, or `batch` is below 1.
    """

    def __init__(self, image: Tower, event: Tower, device: torch.device, batch: int) -> None:
        if image.dim != event.dim:
            raise UserError(
                f"the image encoder gives {image.dim} features and the event encoder {event.dim}: choose two models of"
                " the same width."
            )
        if batch < 1:
            raise UserError(f"--batch must be at least 1, not {batch}.")
        self._image, self._event = image, event
        self.batch = batch
        self.device = device
        self.dim = image.dim
        self.description = image.description
        if event.description != image.description:
            self.description = f"image: {image.description}; event: {event.description}"
        self.settings: dict[str, Any] = {
            "image_encoder": image.name,
            "image_weights_hash": image.weights_hash,
            "event_encoder": event.name,
            "event_weights_hash": event.weights_hash,
            "dim": self.dim,
        }
        self.weights: dict[str, Any] = {}
        for stream, tower in (("image", image), *([] if event is image else [("event", event)])):
            if tower.weights:
                self.weights[f"{stream}_weights"] = tower.weights
            if tower.origin:
                self.weights[f"{stream}_weights_origin"] = tower.origin

    @torch.inference_mode()
    def encode_image(self, frames: Tensor) -> Tensor:
        """Encode frames. Scaling and CLIP's normalisation are included.

        Frames are encoded in portions of nearly equal size, at most `batch`. The sizes depend only on n.

        Args:
            frames: uint8 (n, 224, 224, 3) RGB.

        Returns:
            float32 (n, D), on `device`.

        Raises:
            ValueError: The shape or dtype is different.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be uint8 (n, H, W, 3), not {frames.dtype} {tuple(frames.shape)}")
        parts = [
            self._image.images(frames[part].to(self.device)).float() for part in _portions(len(frames), self.batch)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device)

    @torch.inference_mode()
    def encode_event(self, maps: Tensor) -> Tensor:
        """Encode event maps (`docs/specification.md#data-flow`).

        A CLIP tower gets a map repeated to three channels, not normalised by mean and standard deviation.

        Args:
            maps: float32 (n, 224, 224) in [0, 1].

        Returns:
            float32 (n, D), on `device`.

        Raises:
            ValueError: The shape or dtype is different.
        """
        if maps.ndim != 3 or not maps.is_floating_point():
            raise ValueError(f"maps must be floating point (n, H, W), not {maps.dtype} {tuple(maps.shape)}")
        parts = [self._event.events(maps[part].to(self.device)).float() for part in _portions(len(maps), self.batch)]
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device)


def build_encoder(
    *,
    image_model: str = "descriptor",
    image_weights: str | Path | None = None,
    event_model: str | None = None,
    event_weights: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch: int = 64,
    quick_gelu: QuickGelu = "auto",
    recorded: bool = False,
) -> Encoder:
    """Build an encoder from the names of models and weights. What is named and on the hub is fetched into its cache.

    Args:
        image_model: `descriptor` (fixed descriptor), `random-vit` (small open_clip ViT of a fixed seed),
            `efficientnet-lite0` (ImageNet weights of a Python package), the name of an open_clip model, or a model that
            brings its weights: `hf-hub:OWNER/NAME`, `timm:NAME`, `local-dir:FOLDER`.
        image_weights: A safetensors file, a pretrained tag of the open_clip model, `random:SEED`, or a model that
            brings its weights. `@REVISION` after a name on the hub fixes the revision.
        event_model: Model of the event stream. None is the image model.
        event_weights: Weights of the event stream. None, with the image model, is the image weights, loaded once.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: Number type of the computation. `auto` is bfloat16 on a GPU and float32 on a CPU.
        batch: Maximum number of rows per pass.
        quick_gelu: Whether weights were trained with QuickGELU, where neither they nor their configuration say it.
        recorded: The names are from a store's record, in which the name of a model says whether it has QuickGELU.

    Raises:
        UserError: The arguments do not describe a usable encoder, or something cannot be fetched.
    """
    image_model = image_model.strip()
    # Weights that bring their own model need no event model: `descriptor` then only stands for "not named".
    event_model = (event_model or image_model).strip()
    light = image_model == event_model == "descriptor" and image_weights is None and event_weights is None
    where = resolve_device(device, cpu_only=light)
    dtype = choose_dtype(precision, where)
    image = build_tower(image_model, image_weights, "image", where, dtype, quick_gelu, recorded=recorded)
    if event_model == image_model and (event_weights is None or str(event_weights) == str(image_weights)):
        event = image
    elif event_weights is None and not _has_weights(event_model):
        raise UserError(
            f"--event-model {event_model} differs from the image model, so it needs its own weights: give"
            " --event-weights with a pretrained tag or FILE.safetensors."
        )
    else:
        event = build_tower(event_model, event_weights, "event", where, dtype, quick_gelu, recorded=recorded)
    return Encoder(image, event, where, batch)


def _has_weights(model: str) -> bool:
    return model in ("descriptor", "random-vit", LITE) or describes_itself(model)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number type that `precision` means on a device.

    Raises:
        UserError: There is no such precision.
    """
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if precision not in kinds:
        raise UserError(f"--precision {precision} is not known: use auto, float32, bfloat16 or float16.")
    return kinds[precision]


def _portions(count: int, limit: int) -> Iterator[slice]:
    """Slices of nearly equal length, at most `limit`. A small rest would waste a pass of the model."""
    parts = math.ceil(count / limit)
    for part in range(parts):
        yield slice(part * count // parts, (part + 1) * count // parts)
