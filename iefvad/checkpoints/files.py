"""A trained network in files: one .safetensors with everything in its header, or a folder with config.json."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from iefvad.errors import UserError
from iefvad.files import write_text, write_with
from iefvad.model import IEFVAD, ModelConfig
from iefvad.weights import differences, refuse_pickled

WEIGHTS, CONFIG, CALIBRATION = "model.safetensors", "config.json", "calibration.json"
"""Files of a saved folder, as on the Hugging Face hub; the last one where its threshold was calibrated."""


def save_model(path: Path, model: IEFVAD, extra: dict[str, Any] | None = None) -> None:
    """Write weights as safetensors with the model's configuration and provenance in the header.

    `extra` (JSON values) adds to the provenance. The same model gives the same bytes.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    header = {"config": dataclasses.asdict(model.config), "extra": model.provenance | (extra or {})}
    # One entry alone: safetensors writes several in an order that changes from process to process.
    metadata = {"iefvad": json.dumps(header, sort_keys=True)}
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_model(
    path: Path, *, backend: str = "auto", device: str | torch.device = "cpu"
) -> tuple[IEFVAD, dict[str, Any]]:
    """Read a model that `save_model` wrote, in evaluation mode, and its provenance (`model.provenance` itself).

    Raises UserError for a missing, damaged or foreign file, naming tensors that are missing, unexpected or misshapen.
    """
    tensors, metadata = read_tensors(path)
    if "iefvad" not in metadata:
        raise UserError(
            f"{path} holds no IEF-VAD model of this package: convert a published one with `iefvad convert`."
        )
    try:
        header = json.loads(metadata["iefvad"])
        config, provenance = header["config"], header["extra"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} has a damaged header: fetch or make the file again.") from None
    model = build_model(model_config(config, path), tensors, path, backend=backend, device=device)
    model.provenance = provenance
    return model, provenance


def save_folder(folder: Path, model: IEFVAD) -> None:
    """Write what `load_folder` reads: the weights, then config.json with configuration and provenance.

    Of the encoders' weight files it keeps the names alone: the folder is made to be shared, their paths are not.
    """
    provenance = dict(model.provenance)
    if isinstance(encoder := provenance.get("encoder"), dict):
        files = {name: encoder[name] for name in ("image_weights", "event_weights") if name in encoder}
        provenance["encoder"] = encoder | {name: re.split(r"[\\/]", path)[-1] for name, path in files.items()}
    save_model(folder / WEIGHTS, model, provenance)
    document = {"model_type": "iefvad", **dataclasses.asdict(model.config), "provenance": provenance}
    write_text(folder / CONFIG, json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")


def load_folder(config: Path, weights: Path, *, backend: str = "auto", device: str | torch.device = "cpu") -> IEFVAD:
    """Read the two files of `save_folder`, in evaluation mode; what config.json says goes before the weights' header.

    Raises UserError for a missing, damaged or foreign file, naming tensors that are missing, unexpected or misshapen.
    """
    try:
        document = json.loads(config.read_text())
        if document.pop("model_type") != "iefvad":
            raise KeyError("model_type")
        provenance = document.pop("provenance", {})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{config} is not the configuration of an IEF-VAD model, or is damaged.") from None
    model = build_model(
        model_config(document, config), read_tensors(weights)[0], weights, backend=backend, device=device
    )
    model.provenance = provenance
    return model


def model_config(values: Any, path: Path) -> ModelConfig:
    """A `ModelConfig` from JSON values that `path` holds. Raises UserError for unknown names and impossible values."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ModelConfig)
    try:
        return ModelConfig(**parser.parse_object(values).as_dict())
    except (ArgumentError, ValueError, TypeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} holds a configuration that this version does not know: {reason}.") from None


def build_model(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    path: Path,
    *,
    backend: str = "auto",
    device: str | torch.device = "cpu",
) -> IEFVAD:
    """A network of these weights (made float32), in evaluation mode; draws no random number.

    Raises UserError that names tensors of `path` that are missing, unexpected or of another shape.
    """
    try:
        with torch.device("meta"):
            model = IEFVAD(config, backend=backend)
    except ValueError as error:
        raise UserError(f"{path} holds an impossible configuration: {error}.") from None
    if differing := differences(model.state_dict(), tensors):
        raise UserError(f"{path} does not hold the weights that its configuration describes: {differing}.")
    model.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in tensors.items()}, assign=True)
    return model.to(device).eval()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the header's metadata of a safetensors file. Raises UserError where it cannot be read."""
    refuse_pickled(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"there is no file {path}.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}).") from None
