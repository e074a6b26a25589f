"""Settings of a training run: the options, how presets, methods and protocols complete them, the YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from iefvad.model.baselines.config import TWO_STREAMS
from iefvad.model.config import (
    DEEPEST,
    LONGEST_CHUNK,
    LONGEST_PADDED,
    MODALITIES,
    WIDEST,
    FusionKind,
    Noise,
    RefinementKind,
    Temporal,
    Weights,
)
from iefvad.model.normality.config import Density
from iefvad.training.presets import PRESETS, defaults_of
from iefvad.training.tracking import check_trackers
from iefvad.utils.errors import UserError
from iefvad.utils.options import checked, option
from iefvad.utils.plain_yaml import read_yaml
from iefvad.utils.text import few
from iefvad.utils.values import COUNT, FRACTION, NATURAL, NOT_NEGATIVE, POSITIVE, SEED, Range, problems

Preset = Literal["synth", "own", "ucf-crime", "msad", "shanghaitech", "xd-violence"]
Method = Literal["ief", "paper", "released"]
Protocol = Literal["clean", "paper", "released"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
Damage = Literal["features", "segments", "both"]
Model = Literal["ief-vad", "concat", "cross-attention", "sultani", "rtfm", "ur-dmu", "mgfn", "vadclip"]
"""IEF-VAD and the baselines (`iefvad.model.baselines.config.BASELINES`)."""


@dataclass
class TrainConfig:
    """Options of `python -m iefvad.train`, as the user gives them. None: the preset or the method decides."""

    # Data.
    features: str | None = option(
        None, "feature store made by `iefvad extract`, or the folder that the lists' .npy paths are relative to"
    )
    train_list: str | None = option(None, "CSV `path,label` of the training videos [default: train.csv of the store]")
    test_list: str | None = option(None, "CSV `path,label` of the test videos [default: test.csv of the store]")
    annotations: str | None = option(
        None, "frame annotations of the test videos [default: annotations.txt of the store]"
    )
    gt: str | None = option(None, "gt.npy: 16 frame labels per segment, concatenated in the order of the test list")
    image_folder: str = option("rgb", "folder of the image features in a listed path")
    event_folder: str = option(
        "event", "folder that replaces --image-folder in a listed path to find the event features"
    )
    nan: Literal["error", "zero"] = option("error", "NaN or Inf in features: report an error, or replace them by 0")
    verify: bool = option(True, "compare stored features with their checksums when they are read first")
    synth_seed: int = option(0, "seed of the embedded benchmark's videos", SEED)
    cache: str | None = option(None, "folder of the embedded benchmark [default: $IEFVAD_CACHE or ~/.cache/iefvad]")

    # Method.
    model: Model = option("ief-vad", "network: IEF-VAD, or a baseline on the same features (docs/baselines.md)")
    normal_only: bool = option(
        False,
        "make a detector from the normal training videos alone, without training a network: it finds what is unusual"
        " (docs/normal.md)",
    )
    density: Density = option(
        "knn",
        "with --normal-only: what is unusual. knn: far from its nearest normal segments; gaussian: far from their mean"
        " by the Mahalanobis distance",
    )
    preset: Preset | None = option(
        None,
        "defaults for a data set [default: synth without data, own for a feature store, ucf-crime for lists of .npy"
        " files]",
    )
    protocol: Protocol = option(
        "clean",
        "how to train, choose and test. clean: epoch chosen on held-out videos, then trained on all; paper: the words"
        " of the paper; released: as the released code does",
    )
    method: Method | None = option(
        None,
        "ief: learned process noise; paper: process noise 0; released: the released code [default: the protocol's; ief"
        " for clean]",
    )
    modality: Literal["all", "fusion", "image", "event"] | None = option(
        None,
        "streams to train on; all: one model each for fusion, image and event [default: all for synth, else fusion]",
    )
    compare: bool | None = option(
        None,
        "also train the other two methods, and learned process noise fixed at its start, as more rows of the table"
        " [default: true for synth, else false]",
    )
    fixed_noise: float | None = option(
        0.4, "process noise of the row beside learned noise, with --compare true", NOT_NEGATIVE
    )
    fused: bool = option(
        True, "use the fused kernels where they serve; --no-fused: the eager reference operators", switch=True
    )
    noise: Noise | None = option(None, "noise model of the fusion")
    nu: float | Literal["learned"] | None = option(None, "degrees of freedom of the Student-t, or learned", POSITIVE)
    covariance_rank: int = option(
        0,
        "rank of the correlations between dimensions in each stream's covariance, for the fusion of both streams; 0:"
        " covariances are diagonal",
        Range(0, WIDEST),
    )
    temporal: Temporal | None = option(None, "recursion over the segments")
    process_noise: float | Literal["learned"] | None = option(
        None, "process noise q of the recursion, or learned", NOT_NEGATIVE
    )
    refine_steps: int | None = option(None, "refinement steps N", Range(0, DEEPEST))
    attenuation: float = option(0.5, "fraction of the predicted residual that a refinement step subtracts")
    eps: float = option(1e-8, "added to variances before they are inverted", POSITIVE)
    layers: int = option(2, "self-attention layers per modality", Range(1, DEEPEST))
    heads: int = option(8, "attention heads", Range(1, WIDEST))
    dropout: float = option(
        0.1, "dropout of the attention weights in training; each process draws its own masks", Range(0, below=1)
    )
    window: int | None = option(
        None, "self-attention stays within windows of this number of segments; 0: no windows", NATURAL
    )
    standardize: bool | None = option(
        None, "centre and scale each feature by its mean and deviation over the training videos"
    )
    projection: int | None = option(
        None,
        "width of the network: standardised features are projected onto this number of principal directions of the"
        " training features; 0: as wide as the features",
        NATURAL,
    )
    identity_start: bool | None = option(
        None, "attention layers start as the identity, so that at first each segment is seen alone"
    )
    zero_start: bool | None = option(
        None, "classifier and refinement start at zero, so that training begins as that of a linear model"
    )
    image_part: float | None = option(
        None,
        "fraction of the network's dimensions that the image stream carries at first, the event stream the others; 0:"
        " both streams weigh the same everywhere at first",
        Range(0, below=1),
    )
    density_prior: float | None = option(
        None,
        "weight of the standardised event density in the logits before training; it is also one more feature. 0: none",
        NOT_NEGATIVE,
    )
    members: int | None = option(
        None, "number of networks, trained side by side, whose logits are averaged", Range(1, DEEPEST)
    )
    surprise: bool = option(
        False, "variances also grow where features do not fit the correlations of the training features"
    )
    repair: bool = option(
        False, "dimensions at their training mean count as masked: the others predict them, and variances grow"
    )
    fusion: FusionKind = option(
        "precision",
        "before the precision fusion. gated: a gate adds to the log-precisions; cross-attention: each stream attends to"
        " the other, whose precisions weigh the keys; networks of one stream have neither",
    )
    refinement: RefinementKind = option(
        "plain",
        "shared: one block serves all steps; guided: the step of each dimension follows the variance of the state",
    )
    mil: Literal["topk", "segment"] | None = option(
        None,
        "score of a video in training: mean of its highest segments, or of its best run of about 16 segments",
    )

    # Optimisation.
    lr: float | None = option(None, "learning rate of AdamW", POSITIVE)
    scalar_lr: float = option(
        0.1,
        "learning rate of learned process noise, nu, loss weights, --surprise and the factors of --covariance-rank,"
        " which have no weight decay; --factor lowers it too",
        NOT_NEGATIVE,
    )
    weight_decay: float = option(0.01, "weight decay of AdamW", NOT_NEGATIVE)
    epochs: int | None = option(None, "passes over the training videos", Range(1, 1_000_000))
    until_loss: float | Literal["auto"] | None = option(
        None,
        "training ends after the first epoch whose classification loss is at most this. 0: at the last epoch. auto: 1.4"
        " divided by the root of the number of training videos, but at least 0.2 and at most 0.4",
        NOT_NEGATIVE,
    )
    min_steps: int | None = option(
        None,
        "minimum number of optimiser steps: with few videos there are more epochs, and milestones move along",
        NATURAL,
    )
    milestones: list[int] | None = option(
        None, "epochs after which the learning rate is multiplied by --factor", NATURAL
    )
    factor: float | None = option(None, "factor of the learning rate at each milestone", NOT_NEGATIVE)
    batch: int | None = option(None, "videos per batch of each kind, normal and abnormal; with --mixed, in all", COUNT)
    mixed: bool | None = option(None, "draw batches from all videos together, instead of half normal and half abnormal")
    lambda_reg: float | None = option(None, "weight of the regularisation terms", NOT_NEGATIVE)
    lambda_kl: float | None = option(None, "weight of the KL terms", NOT_NEGATIVE)
    lambda_cos: float | None = option(None, "weight of the cosine term within the regularisation", NOT_NEGATIVE)
    lambda_norm: float | None = option(None, "weight of the norm term within the regularisation", NOT_NEGATIVE)
    loss_weights: Weights = option(
        "fixed", "fixed: the --lambda options; learned: they are where the learned weights of the loss terms start"
    )
    mask_clips: float = option(0.0, "probability that one modality of a training clip is damaged; 0: none", FRACTION)
    mask_ratio: float = option(0.8, "maximum damaged fraction of a clip's dimensions or time steps", FRACTION)
    mask_damage: Damage = option(
        "features",
        "what --mask-clips damages. features: dimensions become the training mean; segments: time steps shrink to"
        " 0.01 of their distance from it; both: one of the two per clip",
    )
    lambda_mask: float = option(
        0.0, "weight of the divergence of the beliefs on damaged clips from those on the clean clips", NOT_NEGATIVE
    )
    max_segments: int | None = option(
        None,
        "longer training videos are averaged to this number of bins; in testing, the length of a chunk",
        Range(1, LONGEST_CHUNK),
    )
    precision: Literal["float32", "bfloat16"] = option(
        "float32", "arithmetic of the training; bfloat16: under autocast"
    )
    cuda_graph: bool = option(
        False,
        "capture training steps in CUDA graphs, for small batches; batches are padded to a few lengths. On the CPU the"
        " padded steps run one by one",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; under torchrun each process has its own GPU")

    # Protocol.
    seeds: list[int] = option(
        [0],
        "random seeds, also as 0..9 or 0-9; with several, one model is trained per seed, and mean and deviation are"
        " reported",
        SEED,
    )
    validation: float | None = option(
        None,
        "fraction of the training videos that is held out to choose the epoch"
        " [default: 0.2 for clean, else 0; 0 for own]",
        Range(0, below=1),
    )
    select: Literal["validation", "last", "test"] | None = option(
        None,
        "epoch that is kept: best on held-out videos, the last, or best on the test set (as the released code)"
        " [default: that of the protocol; last for own]",
    )
    select_metric: Literal["auc", "ap"] | None = option(
        None, "metric that chooses [default: that of the data set, ap for xd-violence, else auc]"
    )
    select_every: int | None = option(
        None,
        "also choose within epochs, each time this number of videos was trained on; 0: at the end of each epoch",
        NATURAL,
    )
    reload_best: bool | None = option(None, "go on from the best weights so far after each epoch, as the released code")
    refit: bool | None = option(
        None,
        "after --select validation, train again on all training videos up to the chosen epoch [default: true for clean,"
        " but not for synth, which is to be quick]",
    )
    test_crops: Literal["5", "0", "all"] | None = option(
        None, "crop that is tested. 5: mirrored centre, 0: centre, all: mean of all"
    )
    robustness: Literal["features", "segments"] | None = option(
        None,
        "what `iefvad evaluate` damages in one modality. features: dimensions become 0; segments: whole time steps are"
        " scaled by 0.01",
    )
    explicit: list[str] | None = option(None, argparse.SUPPRESS)

    # Run folder.
    out: str | None = option(None, "run folder [default: runs/PRESET]")
    resume: bool = option(False, "continue the interrupted run in --out")
    log: list[Tracker] = option(
        [],
        "also report losses and metrics to experiment trackers while training: any of tensorboard, wandb and mlflow;"
        " their packages must be installed",
    )


@dataclass
class Settings(TrainConfig):
    """Settings of a training run with every choice made; `resolve` makes them, config.yaml holds them."""

    preset: Preset = field(kw_only=True)
    method: Method = field(kw_only=True)
    modality: Literal["all", "fusion", "image", "event"] = field(kw_only=True)
    compare: bool = field(kw_only=True)
    noise: Noise = field(kw_only=True)
    nu: float | Literal["learned"] = field(kw_only=True)
    temporal: Temporal = field(kw_only=True)
    process_noise: float | Literal["learned"] = field(kw_only=True)
    refine_steps: int = field(kw_only=True)
    window: int = field(kw_only=True)
    standardize: bool = field(kw_only=True)
    projection: int = field(default=0, kw_only=True)  # runs of earlier versions do not have it
    identity_start: bool = field(kw_only=True)
    zero_start: bool = field(default=False, kw_only=True)
    image_part: float = field(default=0.0, kw_only=True)
    density_prior: float = field(default=0.0, kw_only=True)
    members: int = field(default=1, kw_only=True)
    lr: float = field(kw_only=True)
    epochs: int = field(kw_only=True)
    min_steps: int = field(default=0, kw_only=True)
    until_loss: float | Literal["auto"] = field(default=0.0, kw_only=True)
    milestones: list[int] = field(kw_only=True)
    factor: float = field(kw_only=True)
    batch: int = field(kw_only=True)
    mixed: bool = field(kw_only=True)
    lambda_reg: float = field(kw_only=True)
    lambda_kl: float = field(kw_only=True)
    lambda_cos: float = field(kw_only=True)
    lambda_norm: float = field(kw_only=True)
    max_segments: int = field(kw_only=True)
    mil: Literal["topk", "segment"] = field(kw_only=True)
    validation: float = field(kw_only=True)
    select: Literal["validation", "last", "test"] = field(kw_only=True)
    select_metric: Literal["auc", "ap"] = field(kw_only=True)
    select_every: int = field(kw_only=True)
    reload_best: bool = field(kw_only=True)
    refit: bool = field(kw_only=True)
    test_crops: Literal["5", "0", "all"] = field(kw_only=True)
    robustness: Literal["features", "segments"] = field(kw_only=True)
    explicit: list[str] = field(default_factory=list, kw_only=True)  # choices of the user, which win in all rows

    @property
    def run_dir(self) -> Path:
        """Folder that the run writes to."""
        return Path(self.out) if self.out else Path("runs") / ("normal" if self.normal_only else self.preset)


def resolve(config: TrainConfig) -> Settings:
    """Fill every `None` from the protocol, the method and the preset. What was set explicitly always wins.

    Raises:
        UserError: values are out of range or cannot work together.
    """
    own_data = config.features is not None or config.train_list is not None
    preset = config.preset or _preset_of(config)
    defaults = defaults_of(preset, config.protocol, config.method)
    every = not own_data and config.model == "ief-vad"
    defaults |= {"modality": "all" if every else "fusion", "compare": every and not config.normal_only}
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    if config.normal_only or config.model != "ief-vad":
        defaults["density_prior"] = 0.0
    if config.normal_only:
        defaults["refit"] = False
        _check_normal_only(defaults | {"method": defaults_of(preset, config.protocol)["method"]}, given)
    elif config.model != "ief-vad":
        _check_baseline(config, defaults | {"method": defaults_of(preset, config.protocol)["method"]}, given)
    if "refit" not in given:
        select, validation = (given.get(name, defaults[name]) for name in ("select", "validation"))
        defaults["refit"] = defaults["refit"] and select == "validation" and validation > 0
    chosen = [name for name in defaults if name in given]
    if config.explicit is not None or all(name in given for name in PRESETS[preset]):
        # A config.yaml: it has all settings, and only some of them are the user's choice.
        chosen = [name for name in chosen if name in (config.explicit or ()) or given[name] != defaults[name]]
    settings = Settings(**defaults | given | {"preset": preset, "explicit": chosen, "fixed_noise": config.fixed_noise})
    _check(settings)
    return settings


def _preset_of(config: TrainConfig) -> Preset:
    """Return the preset of data without one: `own` for a feature store, the field's for the field's lists of files."""
    if config.features is None and config.train_list is None:
        return "synth"
    if config.train_list is not None and not is_any_store(config.features):
        return "ucf-crime"
    return "own"


def is_any_store(path: str | None) -> bool:
    """Whether a folder is a feature store or a packed one."""
    return path is not None and any((Path(path) / name).exists() for name in ("store.json", "packed.json"))


BEYOND = ("surprise", "repair", "fusion", "refinement", "loss_weights", "mask_clips", "lambda_mask")
"""Settings beyond the paper that are off by default and that the released variant does not have."""


def unused_by(model: str) -> list[str]:
    """Return the settings that have no meaning for a baseline."""
    unused = [
        "method", "compare", "noise", "nu", "temporal", "process_noise", "refine_steps", "attenuation", "eps",
        "covariance_rank", "lambda_reg", "lambda_kl", "lambda_cos", "lambda_norm", "mask_ratio", "mask_damage", *BEYOND,
    ]  # fmt: skip
    if model not in TWO_STREAMS:
        unused += ["mil", "layers", "heads", "dropout", "window", "identity_start"]
    return unused


def _check_baseline(config: TrainConfig, defaults: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse choices that a baseline does not have, rather than train without them."""
    unused = unused_by(config.model)
    plain = {item.name: item.default for item in dataclasses.fields(TrainConfig)} | defaults
    for name in unused:
        if name in given and given[name] != plain[name]:
            raise UserError(f"--{name.replace('_', '-')} has no meaning for --model {config.model}: leave it out.")
    if config.model in TWO_STREAMS and given.get("modality", "fusion") != "fusion":
        raise UserError(f"--model {config.model} fuses both streams: leave --modality out.")


WITH_NORMAL_ONLY = (
    "features", "train_list", "test_list", "annotations", "gt", "image_folder", "event_folder", "nan", "verify",
    "synth_seed", "cache", "normal_only", "density", "preset", "modality", "fused", "test_crops", "device", "explicit",
    "out",
)  # fmt: skip
"""Settings that have a meaning with `normal_only`."""


def _check_normal_only(defaults: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse choices that only training a network has."""
    plain = {
        item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        for item in dataclasses.fields(TrainConfig)
    } | defaults
    for name, value in given.items():
        if name not in WITH_NORMAL_ONLY and value != plain[name]:
            raise UserError(
                f"--{name.replace('_', '-')} has no meaning with --normal-only, which trains no network: leave one of"
                " them out."
            )


def _check(config: Settings) -> None:
    checked(config)
    if config.density != "knn" and not config.normal_only:
        raise UserError(f"--density {config.density} needs --normal-only: add it, or leave --density out.")
    padded = "--method released pads" if config.method == "released" else "--mask-clips draws damage for"
    if (config.method == "released" or config.mask_clips) and config.max_segments > LONGEST_PADDED:
        raise UserError(
            f"{padded} every clip to --max-segments, which must then be at most {LONGEST_PADDED}, not"
            f" {config.max_segments}."
        )
    if config.lambda_mask and not config.mask_clips:
        raise UserError("--lambda-mask compares damaged clips with clean ones: add --mask-clips 0.5.")
    for name in ("surprise", "repair"):
        if getattr(config, name) and not config.standardize:
            raise UserError(f"--{name} is measured on standardised features: add --standardize true.")
    if config.fusion != "precision" and config.modality in MODALITIES:
        raise UserError(f"--fusion {config.fusion} needs both streams: leave --modality {config.modality} out.")
    if config.loss_weights == "learned":
        weights = {"lambda-kl": config.lambda_kl, "lambda-reg": config.lambda_reg}
        weights |= {"lambda-cos": config.lambda_cos, "lambda-norm": config.lambda_norm}
        if zero := [name for name, value in weights.items() if value == 0]:
            raise UserError(f"--loss-weights learned starts at the weights given: --{zero[0]} must be greater than 0.")
    if config.method == "released":
        plain = {item.name: item.default for item in dataclasses.fields(TrainConfig)}
        if chosen := [name for name in BEYOND if getattr(config, name) != plain[name]]:
            flag = chosen[0].replace("_", "-")
            raise UserError(f"--{flag} has no meaning for the released code: leave it out, or choose --method ief.")
    if config.density_prior and not (config.standardize and config.projection):
        raise UserError(
            "--density-prior needs standardised and projected features: add --standardize true --projection 128."
        )
    if config.projection and not config.standardize:
        raise UserError("--projection is taken from standardised features: add --standardize true.")
    if config.covariance_rank and config.method == "released":
        raise UserError(
            f"--covariance-rank {config.covariance_rank} changes the fusion, and --method released has fusion weights"
            " of its own: leave one of them out."
        )
    if config.covariance_rank and config.modality in ("image", "event"):
        raise UserError(
            f"--covariance-rank {config.covariance_rank} changes the fusion of both streams: leave --modality"
            f" {config.modality} out."
        )
    if config.nu == "learned" and config.noise == "gaussian":
        raise UserError("--nu learned needs --noise student-t: gaussian noise has no degrees of freedom.")
    if config.validation == 0 and config.select == "validation":
        raise UserError("--validation 0 holds no video out: add --select last, or hold some out.")
    if config.refit and config.select != "validation":
        raise UserError(
            f"--refit true trains up to the epoch that held-out videos chose: leave --select {config.select} out."
        )
    if not config.seeds:
        raise UserError("--seeds needs at least one number, for example --seeds 0 1 2.")
    check_trackers(config.log)
    if config.train_list is None and config.features is None and config.gt is not None:
        raise UserError("--gt needs the lists it belongs to: give --train-list and --test-list, or --features.")


def loss_to_reach(videos: int) -> float:
    """Return the classification loss at which training ends with `until_loss` "auto".

    The fewer the videos, the sooner a network only learns them by heart.
    """
    return min(max(1.4 / math.sqrt(max(videos, 1)), 0.2), 0.4)


def for_data(config: Settings, steps: int, videos: int) -> Settings:
    """Return the settings with as many epochs as `min_steps` asks for, and with the loss that ends the training.

    Milestones move in proportion.

    Args:
        config: Settings with every choice made.
        steps: Optimiser steps per epoch.
        videos: Number of training videos.
    """
    epochs = max(config.epochs, math.ceil(config.min_steps / steps))
    milestones = [round(milestone * epochs / config.epochs) for milestone in config.milestones]
    until = loss_to_reach(videos) if config.until_loss == "auto" else config.until_loss
    return dataclasses.replace(config, epochs=epochs, milestones=milestones, until_loss=until)


def save_config(path: Path, config: Settings) -> None:
    """Write the settings as YAML. `--config` accepts the file."""
    path.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def later_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a config.yaml lacks because its version had none, with what that version did."""
    values = _read(path)
    earlier: dict[str, Any] = {
        "scalar_lr": values.get("lr"),  # version 0.1 trained q and nu at the learning rate of the weights
        "protocol": "clean",
        "fixed_noise": None,
        "select_metric": "auc",
        "select_every": 0,
        "reload_best": False,
        "refit": False,
        "robustness": "features",
        "explicit": [],
    }
    return {name: value for name, value in earlier.items() if name not in values}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a run folder: it has no config.yaml.") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{path} is not a configuration: it contains no mapping of names.")
    return values


def load_config(path: Path) -> Settings:
    """Read the settings that `save_config` wrote.

    Raises:
        UserError: the file is missing or cannot be read, names are missing or unknown, or values are impossible.
    """
    values = _read(path) | later_settings(path)
    known = {item.name for item in dataclasses.fields(Settings)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{path} is not a configuration of this version: {few(unknown)} is unknown.")
    needed = {item.name for item in dataclasses.fields(Settings) if _needed(item)}
    if missing := sorted(needed - set(values)):
        raise UserError(f"{path} is not a configuration of this version: {few(missing)} is missing.")
    for name, problem in problems(values, Settings):
        raise UserError(f"{path} is damaged: {name} {problem}. Restore it, or train again.")
    settings = Settings(**values)
    try:
        _check(settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return settings


def _needed(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
