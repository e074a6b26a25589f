"""Load the data of a run: the embedded benchmark, a feature store, a packed store, or the field's .npy files."""

from __future__ import annotations

from iefvad.data.datasets import Modality, load_lists, load_packed, load_store
from iefvad.data.synth.embedded import embedded_store
from iefvad.features.density import add_density, has_density
from iefvad.features.packed import is_packed
from iefvad.features.store import is_store
from iefvad.features.videos import Benchmark
from iefvad.training.settings import TrainConfig
from iefvad.utils.errors import UserError

ENCODER_NOTE = (
    "Features come from a fixed descriptor (statistics of colour, edges and event density), not from a pretrained"
    " encoder: no weights are needed, and the figures say nothing about CLIP features."
)


NO_DENSITY = (
    "Some videos have no event densities (they are not from a store by `iefvad extract`), so the network does not start"
    " from the density."
)


def streams_of(config: TrainConfig) -> Modality:
    """Return which features a configuration needs: those of one stream, or both."""
    return config.modality if config.modality in ("image", "event") else "fusion"


def load_benchmark(config: TrainConfig, *, progress: bool = True) -> Benchmark:
    """Load and check the data that a configuration names. With `density_prior` features have the density, too.

    Args:
        config: The configuration; its data fields are read.
        progress: Show a bar while the embedded benchmark is made.

    Raises:
        UserError: data are missing or wrong.
    """
    benchmark = _load(config, progress)
    if config.density_prior:
        if has_density(benchmark) or "density_prior" in (config.explicit or ()):
            add_density(benchmark)
        else:
            benchmark.notes.append(NO_DENSITY)
    return benchmark


def _load(config: TrainConfig, progress: bool) -> Benchmark:
    if config.features is None and config.train_list is None:
        benchmark = load_store(embedded_store(config.cache, seed=config.synth_seed, progress=progress), nan=config.nan)
        benchmark.name = "synth (embedded benchmark)"
        benchmark.notes.append(ENCODER_NOTE)
        return benchmark
    if config.features is not None and is_packed(config.features):
        if config.train_list is not None or config.test_list is not None:
            raise UserError(
                f"{config.features} is a packed store, which has its own lists: leave --train-list and --test-list out,"
                " or import again with other lists."
            )
        return load_packed(config.features, annotations=config.annotations, gt=config.gt, verify=config.verify)
    if config.features is not None and is_store(config.features):
        return load_store(
            config.features,
            train_list=config.train_list,
            test_list=config.test_list,
            annotations=config.annotations,
            gt=config.gt,
            nan=config.nan,
            verify=config.verify,
        )
    truth = config.gt or config.annotations
    given = {"--train-list": config.train_list, "--test-list": config.test_list, "--gt": truth}
    if config.normal_only and config.test_list is None:  # normal footage needs no test
        given = {"--train-list": config.train_list}
    missing = [flag for flag, value in given.items() if not value]
    if missing:
        raise UserError(
            f"{config.features or 'the data'}: no feature store (store.json, packed.json) is there, and to train from"
            f" .npy files {', '.join(missing)} must be given as well."
        )
    assert config.train_list
    return load_lists(
        config.train_list,
        config.test_list,
        truth,
        features=config.features,
        event_folder=config.event_folder,
        image_folder=config.image_folder,
        nan=config.nan,
        modality=streams_of(config),
    )
