"""Find a trained network where it lies: a run, a saved folder, a file, the Hugging Face hub."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from iefvad.checkpoints.calibration import CALIBRATION
from iefvad.checkpoints.files import CONFIG, WEIGHTS, Saved, parse_model, read_folder, read_model
from iefvad.checkpoints.released import is_released, read_released
from iefvad.model.config import Noise
from iefvad.utils.errors import UserError
from iefvad.utils.hub import REPOSITORY, answers
from iefvad.utils.tensors import read_tensors, refuse_pickled

RUN_CONFIG, RUN_CHECKPOINT = "config.yaml", "checkpoint.safetensors"
"""Files of a run folder: its settings, which mark it as one, and its main model."""


def find_pretrained(
    source: str | os.PathLike[str],
    *,
    noise: Noise = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Saved:
    """Read a trained network from a run folder, a saved folder, a file or the hub. Opens no pickled file.

    Args and errors: as `iefvad.checkpoints.hub.load_pretrained`.
    """
    path = Path(source)
    if path.is_dir():
        return _read_directory(path)
    if path.is_file() or path.suffix == ".safetensors":
        return _read_file(path, {"noise": noise, "nu": nu, "attenuation": attenuation, "heads": heads})
    refuse_pickled(path)
    name = os.fspath(source)
    if not REPOSITORY.fullmatch(name):
        raise UserError(
            f"there is no model {name}: give a run folder, a folder by `save_pretrained`, a .safetensors file, or"
            " OWNER/NAME of a model on the Hugging Face hub."
        )
    options = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "force_download": force_download,
        "local_files_only": local_files_only,
    }
    return read_folder(*_download(name, options))


def is_released_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a released IEF-VAD model, converted to safetensors.

    Raises:
        UserError: the file cannot be read.
    """
    return Path(path).is_file() and is_released(read_tensors(Path(path))[0])


def _read_directory(folder: Path) -> Saved:
    if (folder / RUN_CONFIG).is_file():
        checkpoint = folder / RUN_CHECKPOINT
        if not checkpoint.is_file():
            raise UserError(
                f"the run in {folder} has no {checkpoint.name} yet: continue it with"
                f" `python -m iefvad.train --config {folder / RUN_CONFIG} --resume`."
            )
        saved = read_model(checkpoint)
        saved.folder = folder
        return saved
    config, weights = folder / CONFIG, folder / WEIGHTS
    if config.is_file() and weights.is_file():
        return read_folder(config, weights)
    if weights.is_file():
        saved = read_model(weights)
        saved.folder = folder
        return saved
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):
        if (folder / name).is_file():
            refuse_pickled(folder / name)
    if config.is_file():
        raise UserError(f"the weights are missing: {folder} has {CONFIG} but no {WEIGHTS}.")
    raise UserError(
        f"{folder} contains no model: a run folder has {RUN_CONFIG}, and a folder by `save_pretrained` {CONFIG} and"
        f" {WEIGHTS}."
    )


def _read_file(path: Path, options: dict[str, Any]) -> Saved:
    tensors, metadata = read_tensors(path)
    if "iefvad" in metadata:
        return parse_model(path, tensors, metadata)
    if is_released(tensors):
        try:
            return read_released(tensors, **options, path=path)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if any("visual." in name or "conv1." in name for name in tensors):
        raise UserError(
            f"{path} contains an encoder, not an IEF-VAD model: give it to `iefvad extract` as --image-weights or"
            " --event-weights."
        )
    raise UserError(f"{path} contains neither a model of this package nor a released IEF-VAD model.")


def _download(name: str, options: dict[str, Any]) -> tuple[Path, Path]:
    """config.json and model.safetensors of a hub model, from the cache where the hub cannot be reached.

    Its calibration, where it has one, then lies beside them.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    remedy = f"and there is no file or folder {name} here"
    try:
        if not options["local_files_only"] and not answers(HfApi(token=options["token"]), name, options["revision"]):
            options = options | {"local_files_only": True, "force_download": False}
        config, weights = (Path(hf_hub_download(name, file, **options)) for file in (CONFIG, WEIGHTS))
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(name, CALIBRATION, **options)
        return config, weights
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name} is not in the cache of the Hugging Face hub, which cannot be reached or is switched off, {remedy}."
        ) from None
    except EntryNotFoundError:
        raise UserError(
            f"{name} on the Hugging Face hub holds no IEF-VAD model: {CONFIG} or {WEIGHTS} is missing."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the Hugging Face hub has no model {name}, or it is private and needs `token`, {remedy}."
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"{name} cannot be had from the Hugging Face hub ({str(error).splitlines()[0]}), {remedy}."
        ) from None
