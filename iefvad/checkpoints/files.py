"""A saved network in files: one .safetensors with everything in its header, or a folder with config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.config import LONGEST_CHUNK, LONGEST_PADDED, WIDEST, ModelConfig, saved_values
from iefvad.model.networks import AnyConfig, AnyNetwork
from iefvad.model.normality.config import NormalityConfig
from iefvad.utils.devices import meta_device
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text
from iefvad.utils.plain_json import parse_json, read_object
from iefvad.utils.tensors import differences, read_tensors, write_tensors
from iefvad.utils.text import few
from iefvad.utils.values import FRACTION, NATURAL, NOT_NEGATIVE, SEED, Range, problems, within

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Files of a saved folder, as on the Hugging Face hub."""

Built = TypeVar("Built", bound=nn.Module)


@dataclass
class Saved:
    """A network as files describe it.

    Attributes:
        config: Sizes and choices of the network.
        tensors: Its weights by name, of any floating-point type.
        path: The file of the weights, for messages.
        provenance: What is known of the trained model, JSON values.
        folder: Where the files of the model are, where they are a folder.
    """

    config: AnyConfig
    tensors: dict[str, Tensor]
    path: Path
    provenance: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def build(self, cls: Callable[..., Built], *, backend: str = "auto", device: str | torch.device = "cpu") -> Built:
        """Make the network, float32, in evaluation mode. Draws no random number.

        Raises:
            UserError: the configuration is impossible, or tensors are missing, unexpected or of another shape; the
                message names them.
        """
        members = getattr(self.config, "members", 1)
        if self.config.layers * members > len(self.tensors):  # before millions of modules are made
            raise UserError(
                f"{self.path} does not contain the weights that its configuration describes: {self.config.layers}"
                f" layers and {members} member(s), but {len(self.tensors)} tensors."
            )
        try:
            with meta_device():
                model = cls(self.config, backend=backend)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path} contains an impossible configuration: {reason}.") from None
        if odd := sorted(name for name, value in self.tensors.items() if not value.is_floating_point()):
            raise UserError(f"{self.path} contains weights that are not floating-point numbers: {few(odd)}.")
        if differing := differences(model.state_dict(), self.tensors):
            raise UserError(f"{self.path} does not contain the weights that its configuration describes: {differing}.")
        weights = {name: value.to(torch.float32, copy=True) for name, value in self.tensors.items()}
        if odd := sorted(name for name, value in weights.items() if not torch.isfinite(value).all()):
            raise UserError(f"{self.path} contains NaN or infinity in {few(odd)}: restore it, or train again.")
        model.load_state_dict(weights, assign=True)
        return model.to(device).eval()


def save_model(path: Path, network: AnyNetwork, provenance: Mapping[str, Any] | None = None) -> None:
    """Write weights as safetensors, with the configuration and the provenance in the header.

    Args:
        path: The file.
        network: The network.
        provenance: What is known of the trained model, JSON values. The same values give the same bytes.

    Raises:
        UserError: the file cannot be written.
    """
    content = {"config": saved_values(network.config), "extra": dict(provenance or {})}
    write_tensors(path, network.state_dict(), {"iefvad": json.dumps(content, sort_keys=True)})


def read_model(path: Path) -> Saved:
    """Read a file that `save_model` wrote.

    Raises:
        UserError: the file is missing, damaged or contains no model of this package.
    """
    return parse_model(path, *read_tensors(path))


def parse_model(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Saved:
    """Interpret tensors and metadata that were read from a file of `save_model`. Raises as `read_model`."""
    if "iefvad" not in metadata:
        raise UserError(
            f"{path} contains no IEF-VAD model of this package: convert a released one with `iefvad convert`."
        )
    try:
        content = parse_json(metadata["iefvad"])
        config, provenance = content["config"], content["extra"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} has a damaged header: fetch or make the file again.") from None
    model = _model_config(config, path)
    return Saved(model, tensors, path, check_provenance(provenance, model, path))


def save_folder(folder: Path, network: AnyNetwork, provenance: Mapping[str, Any]) -> None:
    """Write what `read_folder` reads: the weights, and config.json with configuration and provenance.

    The folder is made to be shared: of the encoders' weight files it keeps the names and drops the paths.
    """
    provenance = dict(provenance)
    if isinstance(encoder := provenance.get("encoder"), dict):
        files = {name: encoder[name] for name in ("image_weights", "event_weights") if name in encoder}
        provenance["encoder"] = encoder | {name: re.split(r"[\\/]", path)[-1] for name, path in files.items()}
    save_model(folder / WEIGHTS, network, provenance)
    document = {"model_type": "iefvad", **saved_values(network.config), "provenance": provenance}
    write_text(folder / CONFIG, json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_folder(config: Path, weights: Path) -> Saved:
    """Read the two files of `save_folder`. config.json takes precedence over the header of the weights.

    Raises:
        UserError: a file is missing, damaged or of another kind.
    """
    try:
        document = read_object(config, "fetch or make it again")
    except FileNotFoundError:
        raise UserError(f"there is no file {config}.") from None
    if document.pop("model_type", None) != "iefvad":
        raise UserError(f"{config} is not the configuration of an IEF-VAD model, or is damaged.")
    provenance = document.pop("provenance", {})
    model = _model_config(document, config)
    provenance = check_provenance(provenance, model, config)
    return Saved(model, read_tensors(weights)[0], weights, provenance, config.parent)


@dataclass
class Provenance:
    """What files say of a trained model beside its network. All of it may be missing."""

    threshold: float | None = within(None, Range(0, 2))
    epoch: int | None = within(None, NATURAL)
    seed: int | None = within(None, SEED)
    encoder: dict[str, Any] | None = None
    chunk: int = within(256, Range(1, LONGEST_CHUNK))
    test_crops: Literal["5", "0", "all"] = "5"
    method: str = "unknown"
    protocol: str | None = None
    train_videos: int | None = within(None, NATURAL)
    held_out_videos: int | None = within(None, NATURAL)
    normal_only: dict[str, Any] | None = None
    rendered: bool = False
    familiar: dict[str, Any] | None = None


@dataclass
class NormalRecord:
    """What files say of the normal footage that a detector was made from.

    Attributes:
        videos: Number of normal videos.
        left_out: Number of training videos with anomalies, which were not used.
        segments: Number of segments of the normal videos.
        used: Number of segments that the densities were made from.
        hours: Length of the normal videos.
        groups: Number of groups of videos that were held out in turn.
        blocks: Whether these groups are blocks of a single video.
        flagged: Number of flagged intervals on the held-out footage.
        upper_bound: Upper 95% confidence bound of their number per hour.
        image_weight: Weight of the image stream in the fusion; None for one stream.
    """

    videos: int = within(0, NATURAL)
    left_out: int = within(0, NATURAL)
    segments: int = within(0, NATURAL)
    used: int = within(0, NATURAL)
    hours: float = within(1.0, Range(above=0, most=1e9))
    groups: int = within(0, NATURAL)
    blocks: bool = False
    flagged: int = within(0, NATURAL)
    upper_bound: float = within(0.0, NOT_NEGATIVE)
    image_weight: float | None = within(None, FRACTION)


@dataclass
class EncoderRecord:
    """What files say of the encoder of a model's features: what detection reads of it."""

    image_encoder: str = ""
    event_encoder: str = ""
    image_weights_hash: str | None = None
    event_weights_hash: str | None = None
    image_weights: str | None = None
    event_weights: str | None = None
    dim: int | None = within(None, Range(1, WIDEST))
    crops: list[int] | None = None
    threshold: float = within(10.0, NOT_NEGATIVE)
    clamp: int = within(10, Range(1, 255))
    normalize: Literal["clamp", "segment"] = "clamp"
    carry: bool = True
    tail: Literal["drop", "repeat"] = "drop"
    frames_per_segment: int = within(16, Range(1, 16))
    keyframes: float | None = within(None, FRACTION)
    corrupt: str | None = None


def check_provenance(values: Any, config: AnyConfig, path: Path) -> dict[str, Any]:
    """Return what a file says of a trained model, after a look at its types and ranges.

    Args:
        values: JSON values.
        config: The network.
        path: The file, for messages.

    Raises:
        UserError: a value is impossible.
    """
    wrong = list(problems(values, Provenance)) if isinstance(values, dict) else [("provenance", "must be an object")]
    encoder = values.get("encoder") if not wrong else None
    if encoder:
        wrong += [(f"encoder.{name}", text) for name, text in problems(encoder, EncoderRecord)]
    if not wrong and (record := values.get("normal_only")):
        wrong += [(f"normal_only.{name}", text) for name, text in problems(record, NormalRecord)]
    if not wrong and config.released and values.get("chunk", 1) > LONGEST_PADDED:
        wrong.append(("chunk", f"must be at most {LONGEST_PADDED} for the released network, not {values['chunk']}"))
    if wrong:
        raise UserError(f"{path} is damaged: {wrong[0][0]} {wrong[0][1]}. Restore it, or make it again.")
    return dict(values)


def _model_config(values: Any, path: Path) -> AnyConfig:
    """Make a configuration from JSON values of a file; that of a baseline names its method as "model".

    That of a detector made from normal footage names its "normality".

    Raises:
        UserError: names are unknown or values impossible.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"{path} has a damaged header: its configuration is not an object. Fetch or make the file again."
        )
    parser = ArgumentParser(exit_on_error=False)
    config: type[AnyConfig] = ModelConfig
    if "model" in values:
        config = BaselineConfig
    elif "normality" in values:
        config = NormalityConfig
    parser.add_class_arguments(config)
    try:
        return config(**parser.parse_object(values).as_dict())
    except (ArgumentError, ValueError, TypeError, ZeroDivisionError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} contains a configuration that this version does not know: {reason}.") from None
