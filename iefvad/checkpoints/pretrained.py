"""Trained networks from wherever they lie: a run, a saved folder, a file, the Hugging Face hub."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from iefvad.checkpoint import CALIBRATION, CONFIG, WEIGHTS, load_folder, load_model, read_tensors
from iefvad.compat import is_official, load_official
from iefvad.errors import UserError
from iefvad.model import IEFVAD
from iefvad.run import Run
from iefvad.weights import refuse_pickled

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    noise: Literal["student-t", "gaussian"] = "student-t",
    nu: float = 8.0,
    attenuation: float = 0.5,
    heads: int = 8,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> IEFVAD:
    """A trained model in evaluation mode, with its `provenance`.

    `source`: a run folder (its main checkpoint), a folder by `save_pretrained`, a .safetensors file (this package's,
    or a released IEF-VAD model after `iefvad convert`), or, where nothing of that name exists, `owner/name` on the
    Hugging Face hub. `noise`, `nu`, `attenuation`, `heads` are for released models, which do not record them, and
    `revision` to `local_files_only` for the hub. No pickled file is opened.
    Raises UserError for whatever cannot be loaded.
    """
    path = Path(source)
    if path.is_dir():
        model = _load_directory(path, backend, device)
        model.folder = path
        return model
    if path.is_file() or path.suffix == ".safetensors":
        released: dict[str, Any] = {"noise": noise, "nu": nu, "attenuation": attenuation, "heads": heads}
        return _load_file(path, backend, device, released)
    refuse_pickled(path)
    name = os.fspath(source)
    if not _HUB_ID.fullmatch(name):
        raise UserError(
            f"there is no model {name}: give a run folder, a folder by `save_pretrained`, a .safetensors file, or"
            " OWNER/NAME of a model on the Hugging Face hub."
        )
    config, weights = _download(
        name,
        {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        },
    )
    model = load_folder(config, weights, backend=backend, device=device)
    model.folder = config.parent
    return model


def is_released(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds a released IEF-VAD model, converted to safetensors. Raises UserError for unreadable ones."""
    return Path(path).is_file() and is_official(read_tensors(Path(path))[0])


def _load_directory(folder: Path, backend: str, device: str | torch.device) -> IEFVAD:
    if (folder / "config.yaml").is_file():
        run = Run.open(folder)
        checkpoint = run.checkpoint(run.variants[0])
        if not checkpoint.is_file():
            raise UserError(
                f"the run in {folder} has no {checkpoint.name} yet: continue it with"
                f" `python -m iefvad.train --config {folder / 'config.yaml'} --resume`."
            )
        model, provenance = load_model(checkpoint, backend=backend, device=device)
        model.provenance = {"test_crops": run.config.test_crops, "method": run.config.method} | provenance
        return model
    config, weights = folder / CONFIG, folder / WEIGHTS
    if config.is_file() and weights.is_file():
        return load_folder(config, weights, backend=backend, device=device)
    if weights.is_file():
        return load_model(weights, backend=backend, device=device)[0]
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):
        if (folder / name).is_file():
            refuse_pickled(folder / name)
    if config.is_file():
        raise UserError(f"the weights are missing: {folder} has {CONFIG} but no {WEIGHTS}.")
    raise UserError(
        f"{folder} holds no model: a run folder has config.yaml, and a folder by `save_pretrained` {CONFIG} and"
        f" {WEIGHTS}."
    )


def _load_file(path: Path, backend: str, device: str | torch.device, released: dict[str, Any]) -> IEFVAD:
    tensors, metadata = read_tensors(path)
    if "iefvad" in metadata:
        return load_model(path, backend=backend, device=device)[0]
    if is_official(tensors):
        try:
            return load_official(tensors, **released, backend=backend).to(device)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if any("visual." in name or "conv1." in name for name in tensors):
        raise UserError(
            f"{path} holds an encoder, not an IEF-VAD model: give it to `iefvad extract` as --image-weights or"
            " --event-weights."
        )
    raise UserError(f"{path} holds neither a model of this package nor a released IEF-VAD model.")


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
        if not options["local_files_only"] and not _answers(HfApi(token=options["token"]), name, options["revision"]):
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


def _answers(api: HfApi, name: str, revision: str | None) -> bool:
    """Whether the hub can be reached; a download would retry for half a minute before it gives up.

    Raises the hub's own errors, such as for a model that is not there.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api.model_info(name, revision=revision, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # the HTTP client's own, and that client differs between versions of huggingface_hub
        return False
    return True
