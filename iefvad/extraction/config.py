"""Settings of extraction, what a store keeps of them, and the report of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from iefvad.encoders.encoder import Encoder, Precision, build_encoder
from iefvad.extraction.stream import CROPS
from iefvad.utils.errors import UserError
from iefvad.utils.options import option
from iefvad.video import SEGMENT


@dataclass
class ExtractConfig:
    """Settings of `python -m iefvad.extract`."""

    # What is computed; the store keeps these and refuses others.
    crops: Literal[1, 5, 10] = option(1, "crops of each picture: the centre, that and the corners, those and mirrored")
    threshold: float = option(10.0, "change of brightness, in grey levels of 0 to 255, that counts as an event")
    clamp: int = option(10, "events at one pixel in one segment beyond this number count as this number")
    normalize: Literal["clamp", "segment"] = option(
        "clamp", "what event counts are divided by: --clamp, or the highest count in the segment"
    )
    tail: Literal["drop", "repeat"] = option(
        "drop", "a last segment of fewer than 16 frames: leave it out, or fill it with its last frame"
    )

    # Encoders.
    image_model: str = option(
        "descriptor",
        "descriptor or random-vit (both need no weights), an open_clip model such as ViT-L-14-quickgelu, or"
        " local-dir:FOLDER with open_clip_config.json and weights",
    )
    image_weights: str | None = option(None, "its weights, a .safetensors file; random:SEED tries the path without any")
    event_model: str | None = option(None, "model of the event stream [default: that of the images]")
    event_weights: str | None = option(None, "weights of the event stream [default: those of the images]")

    # How it is run; features do not depend on it, up to rounding.
    batch: int = option(0, "frames in one pass of the encoder, of whichever videos; 0: 64 on a GPU, 16 on a CPU")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: Precision = option(
        "auto",
        "arithmetic of the encoder; auto: bfloat16 on a GPU, float32 on a CPU (where bfloat16 is up to four times as"
        " fast if the CPU has it)",
    )
    workers: int = option(
        0,
        "processes that decode ahead of the encoder; with the descriptor on a CPU, which is as fast as decoding:"
        " threads that do both, a video each; 0: as many as pay",
    )
    on_truncated: Literal["error", "keep"] = option(
        "error", "a video that breaks off: list it as failed, or keep what there is"
    )
    quiet: bool = option(False, "show no progress bar")

    # Many machines.
    engine: Literal["local", "ray"] = option(
        "local", "local: this machine; ray: the same stages as a Ray Data pipeline, giving the same files"
    )
    ray_address: str | None = option(None, "address of a Ray cluster, such as ray://HOST:10001 [default: this machine]")
    ray_actors: int = option(0, "encoders at work on the cluster; 0: one a GPU, or one without any")


@dataclass
class ExtractReport:
    """What a call of `extract` did.

    Names done and skipped (already there), failed {name: reason}, each in the order of the videos; seconds in all,
    frames decoded, and the seconds for which the encoder waited for frames (0 where a thread does both).
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    frames: int = 0
    waited: float = 0.0


def check(config: ExtractConfig) -> None:
    """Raise UserError for a value out of its range."""
    if config.crops not in CROPS:
        raise UserError(f"--crops must be 1, 5 or 10, not {config.crops}.")
    if not config.threshold >= 0:
        raise UserError(f"--threshold must not be negative, not {config.threshold}.")
    if not 1 <= config.clamp <= 255:
        raise UserError(f"--clamp must lie between 1 and 255, not {config.clamp}.")
    for name in ("batch", "workers", "ray_actors"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} must not be negative, not {getattr(config, name)}.")
    if config.engine not in ("local", "ray"):
        raise UserError(f"--engine must be local or ray, not {config.engine}.")


def encoder_of(config: ExtractConfig, *, device: str | None = None) -> Encoder:
    """The encoder that the settings describe, on `device` instead of theirs if given. Raises UserError."""
    encoder = build_encoder(
        image_model=config.image_model,
        image_weights=config.image_weights,
        event_model=config.event_model,
        event_weights=config.event_weights,
        device=device or config.device,
        precision=config.precision,
        batch=config.batch or SEGMENT,
    )
    if not config.batch and encoder.device.type == "cuda":
        encoder.batch = 4 * SEGMENT
    return encoder


def store_settings(encoder: Encoder, config: ExtractConfig) -> dict[str, Any]:
    """What a store keeps of how its features were made: `encoder.settings`, where weights lay, crops and events."""
    return {
        **encoder.settings,
        **encoder.weights,
        "crops": CROPS[config.crops],
        "threshold": config.threshold,
        "clamp": config.clamp,
        "normalize": config.normalize,
        "tail": config.tail,
    }
