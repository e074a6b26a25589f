"""Encoders that describe themselves: a folder, or a repository on the hub, with a configuration and weights.

`describe` reads the configuration in the layout of open_clip, transformers (CLIP) or timm. `weights_file` says which
file has the weights. `Files` is a local folder, `HubFiles` a repository, of which only what is asked for is fetched.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iefvad.utils.errors import UserError
from iefvad.utils.hub import Repository, no_safetensors, open_repository
from iefvad.utils.plain_json import read_object
from iefvad.utils.values import Range, problem

Layout = Literal["open_clip", "transformers", "timm"]

OPEN_CLIP_CONFIG, CONFIG, _PREPROCESSOR = "open_clip_config.json", "config.json", "preprocessor_config.json"
_OPEN_CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_MODEL_NAME = "model.safetensors"

LARGEST_PICTURE, WIDEST = 4096, 65_536
"""Maximum side of the pictures that an encoder sees, and of its widths."""
SIZES, DEPTHS = Range(-1e9, 1e9), Range(0, 1024)
"""Ranges of the numbers of a configuration, and of those that are numbers of layers."""


@dataclass(frozen=True)
class Described:
    """What a configuration says.

    Attributes:
        layout: Names of the tensors in the weights file.
        config: open_clip's model_cfg, or `architecture` and `model_args` of timm.
        preprocess: `mean`, `std` and for timm `size` (height, width), as far as they are known.
    """

    layout: Layout
    config: dict[str, Any]
    preprocess: dict[str, Any]


class Files:
    """Files of a local folder.

    Attributes:
        name: Name of the folder or repository as a model, without revision.
        names: Names of the files.
    """

    def __init__(self, name: str) -> None:
        self.folder = Path(name.removeprefix("local-dir:"))
        self.name = f"local-dir:{self.folder.resolve()}"
        self.label = str(self.folder)
        self.names = frozenset(path.name for path in self.folder.glob("*") if path.is_file())

    def path(self, file: str) -> Path:
        """Return the path of a file, after fetching it if it is on the hub."""
        return self.folder / file

    def spelled(self) -> str:
        """Return what finds these files again."""
        return self.name

    def origin(self, path: Path) -> dict[str, str] | None:
        """Return where a file came from, if it came from the hub."""
        return None

    def no_weights(self, wanted: str, stream: str) -> UserError:
        """Return the error for missing weights."""
        several = sorted(name for name in self.names if name.endswith(".safetensors"))
        if several:
            return UserError(f"{self.label} contains several safetensors files: name one by --{stream}-weights.")
        return UserError(
            f"{self.label} contains no safetensors weights: fetch open_clip_model.safetensors into it, or convert a"
            " .bin or .pt file by `iefvad convert`."
        )


class HubFiles(Files):
    """Files of a repository on the Hugging Face hub."""

    def __init__(self, name: str, stream: str, what: str | None = None, *, config: bool = True) -> None:
        spelled, _, revision = name.removeprefix("hf-hub:").partition("@")
        remedy = f"give --{stream}-weights FILE.safetensors or local-dir:FOLDER with files that you have"
        known = [*_OPEN_CLIP_NAMES, _MODEL_NAME, "pytorch_model.safetensors"]
        known += [OPEN_CLIP_CONFIG, CONFIG, _PREPROCESSOR] * config
        try:
            self.repository: Repository = open_repository(spelled, revision or None, known, remedy)
        except UserError as error:
            raise UserError(f"{what}: {error}") if what else error from None
        self.name = f"hf-hub:{spelled}"
        self.label = spelled
        self.names = self.repository.names
        self.remedy = remedy

    def path(self, file: str) -> Path:
        """Return the path of a file in the cache, after fetching it if it is missing there."""
        return self.repository.fetch(file)

    def spelled(self) -> str:
        """Return what finds these files again: the name with the commit, once it is known."""
        return f"{self.name}@{self.repository.commit}" if self.repository.commit else self.name

    def origin(self, path: Path) -> dict[str, str] | None:
        """Return repository, revision, file and sha256."""
        return {
            "repository": self.label,
            "revision": str(self.repository.commit),
            "file": path.name,
            "sha256": _sha256(path),
        }

    def no_weights(self, wanted: str, stream: str) -> UserError:
        """Return the error for missing weights."""
        return no_safetensors(self.repository, wanted, self.remedy)


def open_files(name: str, stream: str) -> Files:
    """Open what a name with a scheme (`local-dir:`, `hf-hub:`, `timm:`) stands for. Asks the hub if it is there."""
    if name.startswith("local-dir:"):
        return Files(name)
    if name.startswith("timm:"):
        return HubFiles(f"hf-hub:{_timm_repository(name.removeprefix('timm:'))}", stream)
    return HubFiles(name, stream)


def _timm_repository(name: str) -> str:
    """Return the repository of a name of timm, such as `vit_base_patch16_224.augreg_in21k`, with its @REVISION."""
    import timm

    name, at, revision = name.partition("@")
    if "/" in name:
        return name + at + revision
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        raise UserError(
            f"timm has no model {architecture}: "
            + (f"use one such as {', '.join(near)}" if near else "check the name")
            + " (`iefvad encoders timm:WORD` lists them)."
        )
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that this version of timm does not know
        config = None
    repository = (config and config.hf_hub_id) or f"timm/{name}"
    if str(repository).endswith("/"):
        repository += name
    return str(repository) + at + revision


def describe(files: Files, prefer: str, stream: str) -> Described:
    """Read the configuration of a folder or repository, in the layout of open_clip, transformers or timm.

    Args:
        files: The folder or repository.
        prefer: `open_clip` or `timm`: whose configuration counts where both are there.
        stream: `image` or `event`, for messages.

    Raises:
        UserError: There is no configuration that can be read.
    """
    readable = OPEN_CLIP_CONFIG in files.names and (
        CONFIG not in files.names or any(name in files.names for name in _OPEN_CLIP_NAMES)
    )
    if readable and not (prefer == "timm" and CONFIG in files.names):
        path = files.path(OPEN_CLIP_CONFIG)
        content = parse(path)
        return Described("open_clip", open_clip_config(content, path), content.get("preprocess_cfg", {}))
    if CONFIG in files.names:
        path = files.path(CONFIG)
        content = parse(path)
        if "architecture" in content:
            return _timm_config(content, path)
        config = clip_config(content, path)
        return Described("transformers", config, _transformers_preprocess(files))
    if isinstance(files, HubFiles):
        raise UserError(
            f"{files.label} is not an encoder that can be read: it has neither {OPEN_CLIP_CONFIG} nor {CONFIG}."
        )
    raise UserError(
        f"{files.label} is not an open_clip model folder, nor one of transformers or timm: it has no readable"
        f" {OPEN_CLIP_CONFIG} or {CONFIG}."
    )


def weights_file(found: Described, files: Files, stream: str) -> str:
    """Return the name of the file with the weights.

    Raises:
        UserError: There is none that may be read.
    """
    if found.layout == "open_clip":
        return open_clip_file(files, stream, [])
    if _MODEL_NAME in files.names:
        return _MODEL_NAME
    raise files.no_weights(_MODEL_NAME, stream)


def open_clip_file(files: Files, stream: str, own: list[str]) -> str:
    """Return the name of the weights with open_clip's names. `own` is the file that a tag names, if it names one.

    Raises:
        UserError: There is none that may be read.
    """
    for name in tag_names(own[0] if own else ""):
        if name in files.names:
            return name
    if CONFIG not in files.names:  # with it, model.safetensors has the names of transformers or timm
        if _MODEL_NAME in files.names:
            return _MODEL_NAME
        others = [name for name in files.names if name.endswith(".safetensors")]
        if len(others) == 1:
            return others[0]
    raise files.no_weights(_OPEN_CLIP_NAMES[0], stream)


# Configurations.


def parse(path: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        UserError: The file cannot be read, or it is not a JSON object.
    """
    try:
        content = read_object(path, "fetch it again")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it again.") from None
    if found := _impossible(content):
        raise UserError(f"{path} does not describe a model: {found}. Fetch it again.")
    return content


def _impossible(value: Any, name: str = "") -> str | None:
    """Return what is wrong with the numbers of a configuration, at any depth, before a network is made of them."""
    if isinstance(value, dict):
        return next((found for key, item in value.items() if (found := _impossible(item, str(key)))), None)
    if isinstance(value, list):
        return next((found for item in value if (found := _impossible(item, name))), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    deep = any(word in name for word in ("layers", "depth", "blocks"))
    found = (DEPTHS if deep else SIZES).problem(value)
    return found and f"{name} {found}"


def open_clip_config(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the model_cfg of an open_clip configuration.

    Raises:
        UserError: It does not describe an open_clip model.
    """
    config = content.get("model_cfg", content)
    if not isinstance(config, dict) or "embed_dim" not in config or not isinstance(config.get("vision_cfg"), dict):
        raise UserError(f"{path} does not describe an open_clip model (embed_dim, vision_cfg).")
    _check_preprocess(content.get("preprocess_cfg", {}), path)
    checks: list[tuple[str, Any, Any]] = [("embed_dim", config["embed_dim"], int)]
    checks += [(name, config["vision_cfg"].get(name, 1), int) for name in ("width", "head_width")]
    checks += [(name, config["vision_cfg"].get(name, 1), int | list[int]) for name in ("layers", "patch_size")]
    checks += [("image_size", config["vision_cfg"].get("image_size", 224), int | list[int])]
    for name, value, hint in checks:
        if found := problem(value, hint, Range(1, LARGEST_PICTURE if name == "image_size" else WIDEST)):
            raise UserError(f"{path} does not describe an open_clip model: {name} {found}. Fetch it again.")
    return config


def _check_preprocess(values: Any, path: Path) -> None:
    """Refuse statistics of pixels and sizes of pictures that cannot be."""
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: its preprocessing is not an object. Fetch it again.")
    checks = [("mean", list[float], 3, Range(-1e3, 1e3)), ("std", list[float], 3, Range(above=0, most=1e3))]
    for name, hint, count, limits in [*checks, ("size", int | list[int], 2, Range(1, LARGEST_PICTURE))]:
        if name not in values:
            continue
        found = problem(values[name], hint, limits)
        if found is None and isinstance(values[name], list) and len(values[name]) != count:
            found = f"must have {count} numbers, not {len(values[name])}"
        if found:
            raise UserError(f"{path} is damaged: {name} {found}. Fetch it again.")


def clip_config(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return open_clip's configuration for one of transformers (CLIPModel, CLIPVisionModelWithProjection).

    Values that are absent are the defaults of transformers' CLIPVisionConfig, among them QuickGELU.

    Raises:
        UserError: It describes another kind of model, or an unknown activation.
    """
    kind = content.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise UserError(
            f"{path} describes a model of type {kind}, and only CLIP is read in transformers' layout: use a folder in"
            " open_clip's layout, or a model of timm."
        )
    vision = content.get("vision_config") or {} if kind == "clip" else content
    activation = vision.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise UserError(f"{path} has the activation {activation}; only quick_gelu and gelu are known.")
    if not isinstance(vision, dict):
        raise UserError(f"{path} does not describe a CLIP model: vision_config is not an object. Fetch it again.")
    for name in (
        "hidden_size", "num_attention_heads", "projection_dim", "num_hidden_layers", "intermediate_size", "image_size",
        "patch_size",
    ):  # fmt: skip
        limits = Range(1, LARGEST_PICTURE if name == "image_size" else WIDEST)
        for source in (vision, content):
            if name in source and (found := problem(source[name], int, limits)):
                raise UserError(f"{path} does not describe a CLIP model: {name} {found}. Fetch it again.")
    if found := problem(vision.get("layer_norm_eps", 1e-5), float, Range(above=0, most=1)):
        raise UserError(f"{path} does not describe a CLIP model: layer_norm_eps {found}. Fetch it again.")
    width, heads = int(vision.get("hidden_size", 768)), int(vision.get("num_attention_heads", 12))
    if width % heads:
        raise UserError(
            f"{path} does not describe a CLIP model: {heads} heads do not divide its width {width}. Fetch it again."
        )
    return {
        "embed_dim": int(content.get("projection_dim") or vision.get("projection_dim") or 512),
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.get("image_size", 224),
            "patch_size": vision.get("patch_size", 32),
            "layers": int(vision.get("num_hidden_layers", 12)),
            "width": width,
            "head_width": width // heads,
            "mlp_ratio": int(vision.get("intermediate_size", 3072)) / width,
            "norm_kwargs": {"eps": float(vision.get("layer_norm_eps", 1e-5))},
        },
    }


def _transformers_preprocess(files: Files) -> dict[str, Any]:
    if _PREPROCESSOR not in files.names:
        return {}
    path = files.path(_PREPROCESSOR)
    content = parse(path)
    kept = {key: content[f"image_{key}"] for key in ("mean", "std") if f"image_{key}" in content}
    _check_preprocess(kept, path)
    return kept


def _timm_config(content: dict[str, Any], path: Path) -> Described:
    preprocess = content.get("pretrained_cfg") or content
    config = {"architecture": content["architecture"], "model_args": content.get("model_args") or {}}
    size = preprocess.get("input_size", [3, 224, 224]) if isinstance(preprocess, dict) else None
    if not isinstance(config["architecture"], str) or not isinstance(config["model_args"], dict) or size is None:
        raise UserError(f"{path} does not describe a model of timm: fetch it again.")
    kept: dict[str, Any] = {key: preprocess[key] for key in ("mean", "std") if key in preprocess}
    kept["size"] = size[1:] if isinstance(size, list) else size
    _check_preprocess(kept, path)
    return Described("timm", config, kept)


def tag_names(file: str) -> list[str]:
    """Return the names that the weights of a tag may have, with that of its own file (or "") first."""
    own = [str(Path(file).with_suffix(".safetensors"))] if file else []
    return [*own, *_OPEN_CLIP_NAMES]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
