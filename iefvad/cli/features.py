"""`iefvad features`: import features into a packed store, export a store in the field's layout, tell what one holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iefvad.command import command
from iefvad.data.datasets import Benchmark, load_lists, load_store
from iefvad.errors import UserError
from iefvad.options import add_options, from_namespace, make_parser, option
from iefvad.packed import SPLITS, PackedStore, is_packed
from iefvad.packing import folder_pair, pack
from iefvad.store import FeatureStore, export_npy


@dataclass
class ImportConfig:
    """Settings of `iefvad features import`."""

    out: str | None = option(None, "folder of the packed store [required]")
    train_list: str | None = option(None, "CSV `path,label` of the training videos [default: train.csv of STORE]")
    test_list: str | None = option(None, "CSV `path,label` of the test videos [default: test.csv of STORE]")
    gt: str | None = option(None, "gt.npy: 16 frame labels a segment, concatenated in the order of the test list")
    annotations: str | None = option(None, "frame annotations of the test videos [default: annotations.txt of STORE]")
    features: str | None = option(None, "folder that the lists' .npy paths are below; else they are taken as written")
    image_folder: str = option("rgb", "folder of the image features in a listed path")
    event_folder: str = option("event", "folder that replaces it to find the event features")
    image_dir: str | None = option(None, "bare image features, NAME.npy or NAME__c.npy, that come without lists")
    event_dir: str | None = option(None, "their event features, under the same names")
    max_segments: int = option(256, "longer training clips are averaged into this many bins")
    fps: float = option(30.0, "frames a second of the videos behind .npy files, which only serves to print times")
    nan: Literal["error", "zero"] = option("error", "what to do with NaN or Inf in features: stop, or put zeros there")


@dataclass
class ExportConfig:
    """Settings of `iefvad features export`."""

    out: str | None = option(None, "folder to write to [required]")
    image_folder: str = option("rgb", "folder of the image features in it")
    event_folder: str = option("event", "folder of the event features in it")
    dtype: Literal["float32", "float16"] = option("float32", "number type of the files; stores hold float16")


def import_features(store: str | None, config: ImportConfig, *, progress: bool = True) -> PackedStore:
    """Make the packed store that the settings describe, from a feature store, lists, or a pair of folders.

    Raises UserError where the settings name no source or several, and as :func:`iefvad.packing.pack`.
    """
    if config.out is None:
        raise UserError("--out is missing: name the folder of the packed store.")
    if config.max_segments < 1:
        raise UserError(f"--max-segments must be at least 1, not {config.max_segments}.")
    if config.gt is not None and config.annotations is not None:
        raise UserError("--gt and --annotations both tell the truth of the test videos: give one of them.")
    return pack(_source(store, config), config.out, max_segments=config.max_segments, progress=progress)


def export_features(store: str, config: ExportConfig) -> int:
    """Write a feature store as NAME__c.npy below --out and return the number of clips. Raises UserError."""
    if config.out is None:
        raise UserError("--out is missing: name the folder to write to.")
    if is_packed(store):
        raise UserError(f"{store} is a packed store, whose training clips are averaged: export the store it came from.")
    folders = [Path(config.out) / name for name in (config.image_folder, config.event_folder)]
    if folders[0] == folders[1]:
        raise UserError("--image-folder and --event-folder must differ.")
    return export_npy(FeatureStore(store), folders[0], folders[1], dtype=config.dtype)


def describe(root: str) -> str:
    """What a feature store or a packed store holds, as a few lines. Raises UserError where the folder is neither."""
    if is_packed(root):
        return _describe_packed(PackedStore(root))
    store = FeatureStore(root)
    sidecars = store.sidecars()
    segments = sum(sidecar.segments for sidecar in sidecars)
    frames = sum(sidecar.frames for sidecar in sidecars)
    crops = sorted({crop for sidecar in sidecars for crop in sidecar.crops})
    lines = [f"{root}: feature store, {len(sidecars)} videos, {frames:,} frames, {segments:,} segments, crops {crops}"]
    return "\n".join(lines + _settings(store.settings))


def _source(store: str | None, config: ImportConfig) -> Benchmark:
    lists = config.train_list is not None or config.test_list is not None
    pair = config.image_dir is not None or config.event_dir is not None
    if pair:
        if store is not None or lists or config.gt is not None or config.annotations is not None:
            raise UserError("--image-dir and --event-dir are for bare features: leave the store, lists and truth out.")
        if config.image_dir is None or config.event_dir is None:
            raise UserError("--image-dir and --event-dir go together: give both.")
        return folder_pair(config.image_dir, config.event_dir, fps=config.fps, nan=config.nan)
    if store is not None:
        return load_store(
            store,
            train_list=config.train_list,
            test_list=config.test_list,
            annotations=config.annotations,
            gt=config.gt,
            nan=config.nan,
        )
    if config.train_list is None or config.test_list is None:
        raise UserError(
            "there is nothing to import: name a STORE, or --train-list and --test-list with --features, or --image-dir"
            " and --event-dir."
        )
    return load_lists(
        config.train_list,
        config.test_list,
        config.gt or config.annotations,
        features=config.features,
        event_folder=config.event_folder,
        image_folder=config.image_folder,
        fps=config.fps,
        nan=config.nan,
    )


def _describe_packed(store: PackedStore) -> str:
    size = sum(table.nbytes for table in store.features.values())
    lines = [
        f"{store.root}: packed store of {store.name}, features {store.dim} wide, {size / 1e9:.2f} GB, training clips of"
        f" at most {store.max_segments} segments"
    ]
    for split in SPLITS:
        videos = store.listed(split)
        clips, rows = sum(len(video["crops"]) for video in videos), len(store.features[split][0]) - 1
        parts = [
            f"{len(videos)} videos ({sum(bool(video['classes']) for video in videos)} abnormal)",
            f"{sum(video['segments'] for video in videos):,} segments",
            f"{clips} clips of {rows:,} rows in all",
        ]
        if split == "test":
            parts.append(f"truth of {sum(video['truth'] for video in videos)}")
            parts.append(f"event densities of {sum(video['event_density'] for video in videos)}")
        lines.append(f"  {split}: " + ", ".join(parts))
    return "\n".join([*lines, *_settings(store.settings), *(f"  note: {note}" for note in store.notes)])


def _settings(settings: dict[str, Any]) -> list[str]:
    if not settings:
        return ["  encoders: unknown"]
    return ["  " + ", ".join(f"{key} {value}" for key, value in settings.items())]


def _import(argv: Sequence[str]) -> None:
    parser = make_parser(
        "features import",
        "Pack a benchmark's features into one memory-mapped store that training reads at memory speed: float16, long"
        " training clips averaged once. From a store by `iefvad extract`, from the field's lists of NAME__c.npy, or"
        " from a pair of bare folders. Interrupted, it goes on with the same command.",
        usage="[STORE] --out DIR [options]",
    )
    parser.add_argument("store", type=str, nargs="?", help="feature store by `iefvad extract`", metavar="STORE")
    add_options(parser, ImportConfig)
    arguments = parser.parse_args(argv)
    store = import_features(arguments.store, from_namespace(ImportConfig, arguments))
    print(_describe_packed(store))


def _export(argv: Sequence[str]) -> None:
    parser = make_parser(
        "features export",
        "Write a feature store in the field's layout: rgb/NAME__c.npy and event/NAME__c.npy, (T, D) each.",
        usage="STORE --out DIR [options]",
    )
    parser.add_argument("store", type=str, help="feature store by `iefvad extract`", metavar="STORE")
    add_options(parser, ExportConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(ExportConfig, arguments)
    print(f"{config.out}: {export_features(arguments.store, config)} clips, an image and an event file each")


def _info(argv: Sequence[str]) -> None:
    parser = make_parser("features info", "Tell what a feature store or a packed store holds.", usage="STORE")
    parser.add_argument("store", type=str, help="the store's folder", metavar="STORE")
    print(describe(parser.parse_args(argv).store))


_ACTIONS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "import": (_import, "pack features into one store that training reads at memory speed"),
    "export": (_export, "write a store as NAME__c.npy"),
    "info": (_info, "tell what a store holds"),
}


@command("features")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad features`; returns the exit status. Exits as an argument parser for an unknown action."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    lines = [f"  {name:<8}{text}" for name, (_, text) in _ACTIONS.items()]
    usage = "\n".join(["usage: iefvad features {import,export,info} [options]", "", *lines])
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        raise SystemExit(0)
    name, *rest = arguments
    if name not in _ACTIONS:
        print(f"iefvad features: error: there is no action {name!r}\n\n{usage}", file=sys.stderr)
        raise SystemExit(2)
    _ACTIONS[name][0](rest)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
