"""The data of a sweep: packed once into one memory-mapped table that all its processes share.

What a training sees is what `iefvad train` sees, to the bit. Training clips are float16 there too. Test and held-out
videos come from the table only where it has their very values; otherwise they are read from the source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from iefvad.data.datasets import load_packed
from iefvad.features.packed import PackedReader
from iefvad.features.packing import pack
from iefvad.features.readers import StoreReader
from iefvad.features.videos import Benchmark
from iefvad.scoring.scorer import crop_notes
from iefvad.sweep.trainings import Training
from iefvad.training.effects import check_effects
from iefvad.training.settings import Settings
from iefvad.training.sources import NO_DENSITY, load_benchmark, streams_of
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_json
from iefvad.utils.plain_json import read_object

_FIELDS = (
    "features", "train_list", "test_list", "annotations", "gt", "image_folder", "event_folder", "nan", "synth_seed",
    "cache", "max_segments",
)  # fmt: skip


def data_key(settings: Settings) -> str:
    """Return the digest of the settings that decide the data and how they are packed."""
    values = {name: getattr(settings, name) for name in _FIELDS}
    if settings.density_prior:
        values["density"] = True
    if settings.train_list is not None:
        values["streams"] = streams_of(settings)  # of the field's lists, a single stream reads its own files alone
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Prepared:
    """Data that are ready for any process.

    Attributes:
        name: Name of the data set.
        dim: Width D of the features.
        notes: What a reader of results must know.
        table: Folder of the packed store.
        source: Settings that load the data themselves; None where the table has all their values.
    """

    name: str
    dim: int
    notes: tuple[str, ...]
    table: Path
    source: Settings | None

    def load(self) -> tuple[Benchmark, Benchmark]:
        """Return the videos that are tested and held out, and those that clips are read from."""
        table = load_packed(self.table)
        return table if self.source is None else load_benchmark(self.source, progress=False), table


def prepare(trainings: Iterable[Training], out: Path, *, progress: bool = True) -> dict[str, Prepared]:
    """Load and check the data of trainings, and pack what is not packed yet. Data sets are packed once.

    Args:
        trainings: The trainings.
        out: Folder of the sweep; tables are in its folder `data`.
        progress: Show bars.

    Returns:
        The data by `data_key`.

    Raises:
        UserError: data are missing or wrong, or they changed since the sweep began.
    """
    found: dict[str, Prepared] = {}
    loaded: dict[str, Benchmark] = {}
    for training in trainings:
        key = data_key(training.settings)
        if key not in loaded:
            loaded[key] = load_benchmark(training.settings, progress=progress)
        if NO_DENSITY in loaded[key].notes:
            raise UserError(f"{NO_DENSITY[:-1]}: add --density-prior 0.")
        check_effects(training.settings, loaded[key], [training.variant()])
        if key not in found:
            found[key] = _prepare(training.settings, loaded[key], out / "data" / key, progress)
    return found


def _prepare(settings: Settings, benchmark: Benchmark, folder: Path, progress: bool) -> Prepared:
    notes = (*benchmark.notes, *crop_notes(benchmark.test, settings.test_crops))
    reader = benchmark.train[0].reader
    if isinstance(reader, PackedReader):
        own_truth = settings.gt is not None or settings.annotations is not None
        _refuse_changed(folder, reader.store.plan)
        source = _absolute(settings) if own_truth else None
        return Prepared(benchmark.name, benchmark.dim, notes, reader.store.root.absolute(), source)
    longest = max(video.segments for video in benchmark.train)
    with contextlib.redirect_stdout(io.StringIO()):  # pack says that it goes on, which nobody asked for here
        pack(benchmark, folder, max_segments=min(longest, settings.max_segments), progress=progress)
    exact = all(isinstance(video.reader, StoreReader) for video in benchmark.train + benchmark.test)
    source = None
    if not (exact and longest <= settings.max_segments):
        source = _absolute(settings)
        if isinstance(reader, StoreReader) and settings.features is None:  # the embedded benchmark, made by now
            source = dataclasses.replace(source, features=str(reader.store.root))
    return Prepared(benchmark.name, benchmark.dim, notes, folder, source)


def _absolute(settings: Settings) -> Settings:
    """Return settings that load the same data in another working folder."""
    names = ("features", "train_list", "test_list", "annotations", "gt")
    given = {name: os.path.abspath(path) for name in names if (path := getattr(settings, name)) is not None}
    return dataclasses.replace(settings, **given)


def _refuse_changed(folder: Path, plan: str) -> None:
    path = folder.with_suffix(".json")
    if path.exists() and read_object(path, "delete it").get("plan") != plan:
        raise UserError("the packed store was made anew since this sweep began: choose another --out.")
    write_json(path, {"plan": plan})
