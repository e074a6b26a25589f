"""Options of a training that have no effect because of others: they are refused, and not ignored.

Only what the user wrote is looked at, on the command line or in a file for `--config`. Defaults never contradict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path

from iefvad.model.config import MODALITIES
from iefvad.training.presets import METHODS, PRESETS, PROTOCOLS
from iefvad.training.protocols import of_method
from iefvad.training.settings import Settings, unused_by
from iefvad.utils.option_errors import require_effect

Reasons = dict[str, str]
"""Name of an option → why it has no effect, as the end of a sentence, with the remedy."""

_OUT = "leave it out"


def require_effects(given: Collection[str], every: Iterable[Settings]) -> None:
    """Check that each option that the user wrote has an effect in at least one training.

    Args:
        given: Names of the options that the user wrote.
        every: Settings of the trainings.

    Raises:
        UserError: an option has none; the message names it and the option that is the reason.
    """
    found = [without_effect(settings, given) for settings in every]
    first = found[0] if found else {}
    require_effect(given, {name: why for name, why in first.items() if all(name in other for other in found)})


def without_effect(settings: Settings, given: Collection[str] = ()) -> Reasons:
    """Return the options that change nothing in a run with these settings."""
    networks = [settings]
    if settings.compare and "compare" in given:  # who asks for the other rows may write options for them
        networks += [dataclasses.replace(settings, **of_method(settings, other)) for other in METHODS]
    reasons = [_of_network(network, given) for network in networks]
    found = {name: why for name, why in reasons[0].items() if all(name in other for other in reasons)}
    return _of_data(settings) | found | _of_run(settings, given)


def _of_data(settings: Settings) -> Reasons:
    found: Reasons = {}
    if settings.features is None and settings.train_list is None:
        own = ("test_list", "annotations", "image_folder", "event_folder", "nan", "verify")
        return dict.fromkeys(own, "on the embedded benchmark: name your own data with --features or --train-list")
    for name in ("synth_seed", "cache"):
        found[name] = f"on your own data, only on the embedded benchmark: {_OUT}"
    if settings.gt is not None:
        found["annotations"] = "beside --gt, which also has the truth of the test videos: give one of them"
    return found | of_store(settings.features)


def of_store(features: str | None) -> Reasons:
    """Return the options of data that have no meaning for what is in a folder of features."""
    if features is not None and any((Path(features) / name).is_file() for name in ("store.json", "packed.json")):
        folders = f"with {features}, which is a store and has no such folders: {_OUT}"
        found = dict.fromkeys(("image_folder", "event_folder"), folders)
        if (Path(features) / "packed.json").is_file():
            found["nan"] = f"with {features}, which was checked when it was packed: {_OUT}"
        return found
    return {"verify": f"on .npy files, which have no checksums: {_OUT}"}


def _of_network(settings: Settings, given: Collection[str]) -> Reasons:
    """Options that a network does not have."""
    if settings.model != "ief-vad":
        unused = [*unused_by(settings.model), "fixed_noise", "scalar_lr", "zero_start", "image_part", "members"]
        return dict.fromkeys(unused, f"with --model {settings.model}: {_OUT}")
    found: Reasons = {}
    if settings.temporal == "none":
        remedy = "add --temporal kalman, or leave it out"
        found["process_noise"] = f"{_because('temporal', settings, given)}: {remedy}"
    if settings.noise == "gaussian":
        found["nu"] = f"{_because('noise', settings, given)}: gaussian noise has no degrees of freedom, so {_OUT}"
    if settings.modality in MODALITIES:
        for name in ("lambda_reg", "lambda_cos", "lambda_norm", "image_part", "robustness"):
            found[name] = f"with --modality {settings.modality}, only with both streams: {_OUT}"
    elif settings.lambda_reg == 0:
        for name in ("lambda_cos", "lambda_norm"):
            found[name] = f"with --lambda-reg 0, which leaves all regularisation out: {_OUT}"
    if settings.refine_steps == 0:
        for name in ("attenuation", "refinement"):
            found[name] = f"{_because('refine_steps', settings, given)}: there is no refinement, so {_OUT}"
    learned = [settings.temporal != "none" and settings.process_noise == "learned", settings.nu == "learned"]
    learned += [settings.loss_weights == "learned", settings.surprise, settings.covariance_rank > 0]
    if not any(learned):
        found["scalar_lr"] = f"where nothing of what it is for is learned: {_OUT}, or add --process-noise learned"
    return found


def _of_run(settings: Settings, given: Collection[str]) -> Reasons:
    """Options of the optimisation and the protocol."""
    found: Reasons = {}
    if settings.model == "ief-vad":
        if not settings.compare:
            found["fixed_noise"] = "without --compare true: add it, or leave --fixed-noise out"
        elif settings.temporal == "none" or settings.process_noise != "learned":
            name = "temporal" if settings.temporal == "none" else "process_noise"
            found["fixed_noise"] = f"{_because(name, settings, given)}: it stands beside learned noise, so {_OUT}"
    if settings.mask_clips == 0:
        for name in ("mask_ratio", "mask_damage"):
            found[name] = f"without --mask-clips: add --mask-clips 0.5, or {_OUT}"
    if settings.lambda_mask and settings.mask_clips:
        found["cuda_graph"] = f"with --lambda-mask, whose steps are not captured: {_OUT}"
    if settings.select == "last":
        for name in ("select_metric", "select_every", "reload_best"):
            found[name] = f"{_because('select', settings, given)}: no epoch is chosen, so {_OUT}"
    if settings.min_steps == 0 and all(milestone >= settings.epochs for milestone in settings.milestones):
        for name in ("milestones", "factor"):
            found[name] = f"{_because('epochs', settings, given)}: no milestone is before the end, so {_OUT}"
    return found


def _because(name: str, settings: Settings, given: Collection[str]) -> str:
    """Name the option that is the reason, and what set it where the user did not."""
    text = f"with --{name.replace('_', '-')} {getattr(settings, name)}"
    if name in given:
        return text
    for option, table in (("method", METHODS), ("preset", PRESETS), ("protocol", PROTOCOLS)):
        chosen = getattr(settings, option)
        if name in table[chosen]:
            return f"{text}, which --{option} {chosen} sets"
    return text
