"""What the settings do to the data at hand, looked at before the first epoch."""

from __future__ import annotations

from collections.abc import Sequence

from iefvad.data.batches import split_validation
from iefvad.data.lists import form_of_lists
from iefvad.features.videos import Benchmark, Video
from iefvad.training.networks import model_config
from iefvad.training.run import Variant
from iefvad.training.settings import Settings
from iefvad.utils.errors import UserError


def check_effects(config: Settings, benchmark: Benchmark, variants: Sequence[Variant], world: int = 1) -> list[str]:
    """Look at what the settings do to the videos: the split, the batches, the choice of the epoch, the test.

    Args:
        config: Settings with every choice made.
        benchmark: The videos.
        variants: The networks that are trained.
        world: Number of processes that share a batch.

    Returns:
        Notes for those who read the results.

    Raises:
        UserError: with these videos the settings cannot train, choose or test anything.
    """
    if not benchmark.train:
        names = (video.name for video in benchmark.test)
        raise UserError(
            f"{benchmark.name} has no training videos: give --train-list, or {form_of_lists('STORE', names)}."
        )
    if not benchmark.test:
        raise UserError(f"{benchmark.name} has no test videos: give --test-list.")
    training, held_out = split_validation(benchmark.train, config.validation, seed=0)
    for name, count in zip(("normal", "abnormal"), _kinds(training), strict=True):
        if not count:
            alone = "; --normal-only makes a detector from normal videos alone" if name == "abnormal" else ""
            raise UserError(
                f"the training list has no {name} video: both kinds are needed (labels are the last column){alone}."
            )
    for variant in variants:
        model_config(variant.apply(config), benchmark.dim, variant.modality)
    return [*_batches(config, training, world), *_choice(config, held_out), *_test(config, benchmark.test)]


def _kinds(videos: Sequence[Video]) -> tuple[int, int]:
    """Return the numbers of normal and of abnormal videos."""
    abnormal = sum(bool(video.classes) for video in videos)
    return len(videos) - abnormal, abnormal


def _batches(config: Settings, training: Sequence[Video], world: int) -> list[str]:
    clips = [sum(len(video.crops) for video in training if bool(video.classes) == kind) for kind in (False, True)]
    size = min(config.batch, sum(clips)) if config.mixed else sum(min(config.batch, count) for count in clips)
    notes = []
    if not config.mixed and config.batch > min(clips):
        what = "normal" if clips[0] < clips[1] else "abnormal"
        notes.append(
            f"There are {min(clips)} {what} training clips, fewer than --batch {config.batch}: each epoch is one step."
        )
    if world > size:
        notes.append(f"A batch has {size} clips, so {world - size} of {world} processes have nothing to train on.")
    return notes


def _choice(config: Settings, held_out: Sequence[Video]) -> list[str]:
    if config.select != "validation":
        return []
    normal, abnormal = _kinds(held_out)
    if not normal + abnormal:
        return ["There are too few videos to hold one of each kind out: the last epoch is kept."]
    if not normal or not abnormal:
        what = "abnormal" if abnormal else "normal"
        return [f"All held-out videos are {what}: they have no AUC, and the epoch is chosen by their loss."]
    return []


def _test(config: Settings, test: Sequence[Video]) -> list[str]:
    known = [video.truth for video in test if video.truth is not None]
    frames, abnormal = sum(truth.size for truth in known), sum(int(truth.sum(dtype="int64")) for truth in known)
    if 0 < abnormal < frames:
        return []
    if not known:
        why = "have no frame truth"
    else:
        why = "have no normal frame" if frames and abnormal else "have no abnormal frame"
    if config.select == "test":
        raise UserError(
            f"the test videos {why}, so AUC and AP are undefined and --select test has nothing to choose by: give"
            " --annotations or --gt, or add --select last."
        )
    return [f"The test videos {why}: AUC and AP of the test are undefined."]
