"""Compare stored features, packed stores and models with the checksums that were written with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from iefvad.features.packed import SPLITS, PackedStore, is_packed, table_name
from iefvad.features.store import FeatureStore, is_store
from iefvad.utils import checksums
from iefvad.utils.errors import UserError
from iefvad.utils.tensors import opened, read_tensors


@dataclass
class Verified:
    """What was found in a store, a packed store, a folder of models or one file.

    Attributes:
        path: The folder or file.
        what: What it is, such as "feature store".
        intact: Number of videos, clips or files that have their checksums.
        unknown: Names of those without checksums, as earlier versions wrote them.
        damaged: What is wrong, by name of the video or file.
    """

    path: Path
    what: str
    intact: int = 0
    unknown: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    def count(self, name: str, checked: bool) -> None:
        """Count what was read without an error; `checked` says whether it has checksums."""
        if checked:
            self.intact += 1
        else:
            self.unknown.append(name)


def verify(path: Path, *, forget: bool = False) -> Verified:
    """Compare everything in a store, a packed store, a folder with models, or a safetensors file with its checksums.

    Args:
        path: The folder or the file.
        forget: In a feature store, remove the sidecars of damaged videos, so that the next `iefvad extract` makes them
            again.

    Raises:
        UserError: the path is none of these, or a store as a whole cannot be read.
    """
    if is_packed(path):
        return _verify_packed(path)
    if is_store(path):
        return _verify_store(path, forget)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"{path} contains nothing to verify: give a store, a run folder, a model or a .safetensors file."
        )
    found = Verified(path, "file" if path.is_file() else "folder of models")
    for file in files:
        try:
            read_tensors(file)
        except UserError as error:
            found.damaged[str(file.relative_to(path) if file != path else file)] = str(error)
            continue
        found.count(file.name, _has_checksums(file))
    return found


def _verify_store(path: Path, forget: bool) -> Verified:
    store = FeatureStore(path)
    found = Verified(path, "feature store")
    names = {file.relative_to(path).as_posix().removesuffix(".safetensors") for file in path.rglob("*.safetensors")}
    for name in sorted(names | set(store.incomplete())):
        features = path / f"{name}.safetensors"
        try:
            store.read(name)
        except UserError as error:
            found.damaged[name] = str(error)
            if forget:
                features.with_name(features.name.removesuffix(".safetensors") + ".json").unlink(missing_ok=True)
            continue
        found.count(name, _has_checksums(features))
    return found


def _verify_packed(path: Path) -> Verified:
    store = PackedStore(path)
    found = Verified(path, "packed store")
    for split in SPLITS:
        for video in store.benchmark_videos(split):
            assert video.reader is not None
            try:
                for crop in video.crops:
                    video.reader(crop)
            except UserError as error:
                found.damaged[f"{video.name} ({split})"] = str(error)
            else:
                found.count(f"{video.name} in {table_name(split)}", store.has_checks(split))
    return found


def _has_checksums(file: Path) -> bool:
    with opened(file) as tensors:
        return checksums.KEY in (tensors.metadata() or {})
