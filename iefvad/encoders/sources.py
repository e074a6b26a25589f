"""From the names that people know to a configuration and a weights file: pretrained tags, the hub, folders, files.

`find_source` resolves `--image-model` and `--image-weights`. It fetches what the user named, as safetensors, into the
cache of `huggingface_hub`, and nothing else. Whether a model has QuickGELU is read from what describes the weights: the
tag's own configuration, the configuration beside the file, or marks in the file.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iefvad.encoders.choices import QuickGelu
from iefvad.encoders.described import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    Files,
    HubFiles,
    Layout,
    clip_config,
    describe,
    open_clip_config,
    open_clip_file,
    open_files,
    parse,
    tag_names,
    weights_file,
)
from iefvad.encoders.lite import LITE, LITE_CONFIG, LITE_PREPROCESS, lite_weights
from iefvad.encoders.weights import is_transformers, says_quickgelu
from iefvad.utils.errors import UserError
from iefvad.utils.text import few

_SCHEMES = ("local-dir:", "hf-hub:", "timm:")

CLIP_PREPROCESS: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
"""OpenAI's statistics of the pixels. Every CLIP model that states none was trained with them."""


@dataclass(frozen=True)
class Source:
    """All that determines a tower, except device and number type.

    Attributes:
        name: Name of the model, which a store records.
        layout: Names of the tensors in the file.
        config: open_clip's model_cfg, or `architecture` and `model_args` of timm.
        preprocess: `mean`, `std` and for timm `size`, as far as they are known.
        path: The safetensors file. None if the weights are random.
        seed: Seed of random weights.
        weights: What a store records to find the weights again. None if the model's name says it.
        origin: Repository, revision, file and sha256 of what came from the hub.
        hashed: What determines the features beside the tensors.
    """

    name: str
    layout: Layout
    config: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    seed: int | None = None
    weights: str | None = None
    origin: dict[str, str] | None = None
    hashed: Any = None


def describes_itself(name: object) -> bool:
    """Return whether a name stands for a configuration with weights: `local-dir:`, `hf-hub:` and `timm:`."""
    return str(name).startswith(_SCHEMES)


def with_scheme(name: str, model: str | None = None) -> str:
    """Write a plain folder as `local-dir:FOLDER`. Any other name stays, and so does one that open_clip knows.

    Args:
        name: The model, or the weights.
        model: The model that the weights are for, or None if `name` is a model.
    """
    if describes_itself(name) or not Path(name).is_dir():
        return name
    if len(Path(name).parts) == 1:  # a word, which may be a name
        import open_clip

        known = open_clip.list_models() if model is None else open_clip.list_pretrained_tags_by_model(model)
        if name in ("descriptor", "random-vit", LITE, *known):
            return name
    return f"local-dir:{name}"


def same_encoder(one: object, other: object) -> bool:
    """Return whether two recorded names can be the same encoder, if their hashes agree.

    A model that describes itself may have moved, such as from the hub to a folder. Its hash covers its configuration.
    """
    return one == other or (describes_itself(one) and describes_itself(other))


def find_source(
    model: str, weights: str | None, stream: str, quick_gelu: QuickGelu = "auto", *, recorded: bool = False
) -> Source:
    """Find the configuration and the weights that the names stand for. Fetches them if they are on the hub.

    Args:
        model: As `image_model` of `iefvad.encoders.encoder.build_encoder`, without `descriptor` and `random-vit`.
        weights: As `image_weights` there.
        stream: `image` or `event`. Messages name the options of this stream.
        quick_gelu: Whether the weights were trained with QuickGELU, for weights that do not say it.
        recorded: The names are from a store. Its name of an open_clip model says whether it has QuickGELU.

    Raises:
        UserError: The names do not describe a usable encoder, or something cannot be fetched.
    """
    if quick_gelu not in ("auto", "yes", "no"):
        raise UserError(f"--quick-gelu must be auto, yes or no, not {quick_gelu}.")
    random = re.fullmatch(r"random:(\d+)", weights or "")
    seed = int(random[1]) if random else None
    if describes_itself(weights):
        assert weights is not None
        if model in ("descriptor", LITE) or describes_itself(model):
            model, weights = weights, None  # the weights bring their own configuration
    if model == LITE:
        return _lite(weights, seed)
    if describes_itself(model):
        return _self_described(model, weights, seed, stream, quick_gelu)
    return _named(model, weights, seed, stream, quick_gelu, recorded=recorded)


# Models by the names of open_clip.


def _named(
    model: str, weights: str | None, seed: int | None, stream: str, quick_gelu: QuickGelu, *, recorded: bool
) -> Source:

    config = _named_config(model)
    if weights is None:
        raise UserError(_needs_weights(model, stream))
    if seed is not None:
        if quick_gelu == "yes":
            model, config = _with_quickgelu(model, config, f"--quick-gelu {quick_gelu}", stream)
        return Source(model, "open_clip", config, _usual_preprocess(model), seed=seed, weights=weights)
    tag = _tag_config(model, weights) or _tag_of_repository(model, weights)
    origin: dict[str, str] | None = None
    layout: Layout = "open_clip"
    said: bool | None
    if tag is not None:
        what = weights if describes_itself(weights) else f"the tag {weights}"
        files = _tag_files(model, weights, tag, stream)
        said, preprocess = bool(tag["quick_gelu"]), tag
        path = files.path(open_clip_file(files, stream, str(tag["hf_hub"]).split("/")[2:]))
        weights, origin = files.spelled(), files.origin(path)
    elif describes_itself(weights):
        files = open_files(weights, stream)
        found = describe(files, "open_clip", stream)
        if found.layout == "timm":
            raise UserError(
                f"{weights} is a model of timm, not one of open_clip: drop --{stream}-model, for it brings its own."
            )
        path, layout = files.path(weights_file(found, files, stream)), found.layout
        said, what, preprocess = bool(found.config.get("quick_gelu", False)), weights, found.preprocess
        weights, origin = files.spelled(), files.origin(path)
    else:
        path = _existing(weights, model, stream)
        layout = "transformers" if is_transformers(path) else layout
        said, what, preprocess = _said_by(path), str(path), _usual_preprocess(model)
        weights = str(path.resolve())
    if _activation(model, config, said, what, stream, quick_gelu, recorded=recorded):
        model, config = _with_quickgelu(model, config, what, stream)
    preprocess = {key: list(preprocess[key]) for key in ("mean", "std") if key in preprocess}
    hashed = None if preprocess in ({}, CLIP_PREPROCESS) else preprocess
    return Source(model, layout, config, preprocess, path, None, weights, origin, hashed)


def _named_config(model: str) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(model)
    if config is None:
        near = difflib.get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.4)
        raise UserError(
            f"there is no encoder {model}: use descriptor, random-vit, {LITE}, hf-hub:OWNER/NAME, timm:NAME,"
            f" local-dir:FOLDER or an open_clip model such as {', '.join(near or ('ViT-B-32', 'ViT-L-14-quickgelu'))}"
            " (`iefvad encoders` lists them)."
        )
    return config


def _needs_weights(model: str, stream: str) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    fetched = f"a pretrained tag, which is fetched ({few(tags)}), " if tags else ""
    return (
        f"{model} needs weights: give --{stream}-weights with {fetched}hf-hub:OWNER/NAME, or FILE.safetensors; a .pt"
        f" file is converted by `iefvad convert`. To try the path without weights give --{stream}-weights random:0."
    )


def _usual_preprocess(model: str) -> dict[str, Any]:
    """Return mean and std on which all pretrained tags of an open_clip model agree, or nothing."""
    import open_clip

    tags = [open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    known = {json.dumps({key: tag[key] for key in ("mean", "std") if key in tag}) for tag in tags}
    return dict(json.loads(known.pop())) if len(known) == 1 else {}


def _activation(
    model: str,
    config: Mapping[str, Any],
    said: bool | None,
    what: str,
    stream: str,
    quick_gelu: QuickGelu,
    *,
    recorded: bool,
) -> bool:
    """Return whether the tower has QuickGELU: `said` by the weights, or chosen by the user, or not to be known."""
    named = bool(config.get("quick_gelu", False))
    if said is not None:
        if quick_gelu != "auto" and (quick_gelu == "yes") != said:
            raise _contradiction(what, said, f"--quick-gelu {quick_gelu}", f"drop --quick-gelu {quick_gelu}")
        if named and not said:
            raise _contradiction(what, said, model, f"give --{stream}-model {model.removesuffix('-quickgelu')}")
        return said
    if quick_gelu != "auto":
        if named and quick_gelu == "no":
            raise UserError(f"{model} has QuickGELU, and --quick-gelu no says that it has none: drop one of the two.")
        return quick_gelu == "yes"
    if named or recorded or not _has_quickgelu_variant(model):
        return named
    raise UserError(
        f"{what} does not say whether it was trained with QuickGELU, and with the wrong activation the features would"
        f" be wrong without any error: give --quick-gelu yes (weights of OpenAI, MetaCLIP and DFN, and event encoders"
        " trained from them) or --quick-gelu no (most others), or put the open_clip_config.json or config.json of the"
        " weights beside the file."
    )


def _contradiction(what: str, said: bool, choice: str, remedy: str) -> UserError:
    return UserError(
        f"{what} was trained {'with' if said else 'without'} QuickGELU, and {choice} says the contrary, so the features"
        f" would be wrong without any error: {remedy}."
    )


def _has_quickgelu_variant(model: str) -> bool:
    import open_clip

    return f"{model}-quickgelu" in open_clip.list_models()


def _with_quickgelu(model: str, config: dict[str, Any], what: str, stream: str) -> tuple[str, dict[str, Any]]:
    """Return the variant of an open_clip model with QuickGELU, whose name a store records."""
    if config.get("quick_gelu", False):
        return model, config
    if not _has_quickgelu_variant(model):
        raise UserError(
            f"{what} asks for QuickGELU, and open_clip has no model {model}-quickgelu: choose another --{stream}-model."
        )
    return f"{model}-quickgelu", _named_config(f"{model}-quickgelu")


def _existing(weights: str, model: str, stream: str) -> Path:
    """Return the path of a weights file. A word that is neither a file nor a tag is explained."""
    import open_clip

    path = Path(weights)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path  # reading it says what is wrong with it
    models = open_clip.list_pretrained_models_by_tag(weights)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if models:
        hint = f"the tag belongs to {few(models, 4)}"
    elif tags:
        near = difflib.get_close_matches(weights, tags, n=3, cutoff=0.3) or tags
        hint = f"its tags are such as {few(near)} (`iefvad encoders {model}` lists them)"
    else:
        hint = "it has no pretrained tags, so give FILE.safetensors or hf-hub:OWNER/NAME"
    raise UserError(
        f"--{stream}-weights {weights} does not exist: it is neither a file nor a pretrained tag of {model}; {hint}."
    )


def _said_by(path: Path) -> bool | None:
    """Return whether a file, or the configuration beside it, says that it has QuickGELU. None: neither says it."""
    marked = says_quickgelu(path)
    if marked is not None:
        return marked
    for name in (OPEN_CLIP_CONFIG, CONFIG):
        beside = path.parent / name
        if beside.is_file():
            try:
                content = parse(beside)
                config = open_clip_config(content, beside) if name == OPEN_CLIP_CONFIG else clip_config(content, beside)
            except UserError:
                continue  # it describes something else
            return bool(config.get("quick_gelu", False))
    return None


# Pretrained tags.


def _tag_config(model: str, tag: str) -> dict[str, Any] | None:
    """Return open_clip's configuration of a pretrained tag, which always has `quick_gelu`, or None for another word."""
    import open_clip

    config = open_clip.get_pretrained_cfg(model, tag)
    # Without an entry, open_clip means the activation of the model that the tag belongs to.
    return {"quick_gelu": bool(_named_config(model).get("quick_gelu", False)), **config} if config else None


def _tag_of_repository(model: str, weights: str) -> dict[str, Any] | None:
    """Return the configuration of the pretrained tag of a model that a repository belongs to, or None."""
    import open_clip

    repository = weights.removeprefix("hf-hub:").partition("@")[0]
    for name in (model, model.removesuffix("-quickgelu")) if weights.startswith("hf-hub:") else ():
        for tag in open_clip.list_pretrained_tags_by_model(name):
            if (known := tag_repository(name, tag)) is not None and known[0] == repository:
                return _tag_config(name, tag)
    return None


def _tag_files(model: str, weights: str, tag: Mapping[str, Any], stream: str) -> Files:
    if describes_itself(weights):
        return HubFiles(weights, stream, config=False)
    known = _repository_of(tag)
    if known is None:
        raise UserError(
            f"open_clip names no repository on the hub for {weights} of {model}: fetch its file yourself"
            f" ({tag.get('url') or 'see its page'}), convert it with `iefvad convert`, and give the result."
        )
    return HubFiles(f"hf-hub:{known[0]}", stream, what=f"{model} {weights}", config=False)


def tag_repository(model: str, tag: str) -> tuple[str, list[str]] | None:
    """Return the repository of a pretrained tag and the names that its weights may have, or None if it has none."""
    import open_clip

    return _repository_of(open_clip.get_pretrained_cfg(model, tag))


def _repository_of(tag: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    owner, name, file = [*str(tag.get("hf_hub", "")).split("/"), "", "", ""][:3]
    return (f"{owner}/{name}", tag_names(file)) if owner and name else None


# Models that describe themselves: a folder or a repository with a configuration and weights.


def _self_described(model: str, weights: str | None, seed: int | None, stream: str, quick_gelu: QuickGelu) -> Source:
    files = open_files(model, stream)
    found = describe(files, "timm" if model.startswith("timm:") else "open_clip", stream)
    origin = None
    path: Path | None
    if seed is not None:
        path = None
    elif weights is not None:
        path = Path(weights)
        weights = str(path.resolve())
    else:
        path = files.path(weights_file(found, files, stream))
        weights, origin = files.spelled(), files.origin(path)
    name = f"timm:{model.removeprefix('timm:').partition('@')[0]}" if model.startswith("timm:") else files.name
    if name.startswith("timm:") and origin is not None:
        weights = f"{name}@{origin['revision']}"
    if weights == name:
        weights = None  # the name finds them
    said = bool(found.config.get("quick_gelu", False))
    if found.layout != "timm":
        if quick_gelu != "auto" and (quick_gelu == "yes") != said:
            raise _contradiction(
                f"by its configuration {files.label}",
                said,
                f"--quick-gelu {quick_gelu}",
                f"drop --quick-gelu {quick_gelu}",
            )
        if path is not None and path.is_file() and not said and says_quickgelu(path):
            raise _contradiction(
                str(path), True, f"the configuration of {files.label}",
                'put "quick_gelu": true into model_cfg of its open_clip_config.json',
            )  # fmt: skip
    return Source(
        name,
        found.layout,
        found.config,
        found.preprocess,
        path,
        seed,
        weights,
        origin,
        [found.config, found.preprocess],
    )


def _lite(weights: str | None, seed: int | None) -> Source:
    path = None
    if seed is None:
        path = lite_weights() if weights is None else Path(weights)
    return Source(
        LITE, "timm", LITE_CONFIG, LITE_PREPROCESS, path, seed,
        str(Path(weights).resolve()) if weights is not None and seed is None else weights,
    )  # fmt: skip
