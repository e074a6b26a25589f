"""Settings of `iefvad evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.model.config import WIDEST, Noise
from iefvad.scoring.choices import DRAWS, RATIOS, Damage, Mask
from iefvad.training.contradictions import of_store
from iefvad.utils.options import option
from iefvad.utils.values import POSITIVE, Range


@dataclass
class EvaluateConfig:
    """Options of `python -m iefvad.evaluate`. None: as the run was trained."""

    features: str | None = option(
        None, "evaluate on this feature store, or on .npy files below this folder, instead of the run's"
    )
    test_list: str | None = option(None, "CSV `path,label` of the test videos")
    annotations: str | None = option(None, "frame annotations of the test videos")
    gt: str | None = option(None, "gt.npy of the test videos, in the order of the test list")
    event_folder: str | None = option(None, "folder that replaces `rgb` in a listed path to find the event features")
    image_folder: str | None = option(None, "folder of the image features in a listed path [default: rgb]")
    verify: bool = option(True, "compare stored features with their checksums when they are read first")
    test_crops: Literal["5", "0", "all"] | None = option(
        None, "crop that is tested. 5: mirrored centre, 0: centre, all: mean of all"
    )
    robustness: bool | Damage = option(
        True,
        "also measure with one modality damaged (Appendix H of the paper). features: a fraction of its dimensions is"
        " masked; segments: a fraction of its time steps is scaled by 0.01; true: as the protocol says; false: no",
    )
    draws: int = option(
        DRAWS,
        "number of times that dimensions or time steps are drawn for --robustness; 20 for a study",
        Range(1, 10_000),
    )
    ratios: list[float] = option(list(RATIOS), "fractions that are damaged for --robustness", Range(above=0, most=1))
    mask: Mask | None = option(
        None,
        "what masked dimensions become: mean of the training features, or zero [default: mean if the network"
        " standardises its features]",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    out: str | None = option(
        None, "folder for metrics.json, scores.csv and report.html [default: the run's or model's folder]"
    )
    noise: Noise | None = option(None, "noise model of a released checkpoint [default: student-t]")
    nu: float | None = option(None, "degrees of freedom of a released checkpoint's Student-t [default: 8]", POSITIVE)
    attenuation: float | None = option(None, "attenuation of a released checkpoint's refinement [default: 0.5]")
    heads: int | None = option(None, "attention heads of a released checkpoint [default: 8]", Range(1, WIDEST))


def without_effect(config: EvaluateConfig) -> dict[str, str]:
    """Return the options that change nothing beside the others, and why."""
    found: dict[str, str] = {} if config.features is None else of_store(config.features)
    if config.gt is not None:
        found["annotations"] = "beside --gt, which also has the truth of the test videos: give one of them"
    if config.robustness is False:
        found |= dict.fromkeys(("draws", "ratios", "mask"), "with --robustness false: leave one of them out")
    if config.noise == "gaussian":
        found["nu"] = "with --noise gaussian, which has no degrees of freedom: leave it out"
    return found
