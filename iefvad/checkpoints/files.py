"""A saved network in files: one .safetensors with everything in its header, or a folder with config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.config import ModelConfig, saved_values
from iefvad.model.networks import AnyConfig, AnyNetwork
from iefvad.utils.devices import meta_device
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text
from iefvad.utils.tensors import differences, read_tensors, write_tensors

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
        try:
            with meta_device():
                model = cls(self.config, backend=backend)
        except ValueError as error:
            raise UserError(f"{self.path} contains an impossible configuration: {error}.") from None
        if differing := differences(model.state_dict(), self.tensors):
            raise UserError(f"{self.path} does not contain the weights that its configuration describes: {differing}.")
        weights = {name: value.to(torch.float32, copy=True) for name, value in self.tensors.items()}
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
        content = json.loads(metadata["iefvad"])
        config, provenance = content["config"], content["extra"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} has a damaged header: fetch or make the file again.") from None
    return Saved(_model_config(config, path), tensors, path, provenance)


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
        document = json.loads(config.read_text())
        if document.pop("model_type") != "iefvad":
            raise KeyError("model_type")
        provenance = document.pop("provenance", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{config} is not the configuration of an IEF-VAD model, or is damaged.") from None
    return Saved(_model_config(document, config), read_tensors(weights)[0], weights, provenance, config.parent)


def _model_config(values: Any, path: Path) -> AnyConfig:
    """Make a configuration from JSON values of a file; that of a baseline names its method as "model".

    Raises:
        UserError: names are unknown or values impossible.
    """
    parser = ArgumentParser(exit_on_error=False)
    config = BaselineConfig if isinstance(values, dict) and "model" in values else ModelConfig
    parser.add_class_arguments(config)
    try:
        return config(**parser.parse_object(values).as_dict())
    except (ArgumentError, ValueError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} contains a configuration that this version does not know: {reason}.") from None
