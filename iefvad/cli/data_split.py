"""`iefvad data split` and `iefvad data cut`: training and test lists, and clips of long recordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iefvad.cli.command import command
from iefvad.data.split_config import CutConfig, SplitConfig
from iefvad.utils.errors import UserError
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.text import few, readable

if TYPE_CHECKING:
    from iefvad.data.clips import Clip, Truth


@command("data split")
def split_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad data split` and return the exit status."""
    parser = make_parser(
        "data split",
        "Divide a labelled list (CSV `path,label`) into train.csv and test.csv, or into folds, so that no source is in"
        " two parts and the classes are spread as evenly as the sources allow. The source of a video is its cell in the"
        " column `source` if the list has one, else NAME of NAME_001, else the video itself.",
        usage="LIST --out FOLDER [options]",
    )
    parser.add_argument("list", type=str, help="CSV `path,label` of all labelled videos", metavar="LIST")
    groups = {"source_column": "sources", "annotations": "truth of the tested videos"}
    add_options(parser, SplitConfig, groups)
    arguments = parser.parse_args(argv)
    config = from_namespace(SplitConfig, arguments)
    if not config.out:
        raise UserError("--out must be given: the folder for the lists, such as the feature store")
    from iefvad.data.split import largest, shown_counts, split_list

    report = split_list(arguments.list, config.out, config)
    print(readable(largest(report)))
    for line in shown_counts(report):
        print(readable(line))
    for note in report.notes:
        print(f"note: {readable(note)}")
    return 0


@command("data cut")
def cut_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad data cut` and return the exit status: 1 if a recording could not be cut."""
    parser = make_parser(
        "data cut",
        "Cut long recordings into clips, and move their annotations along. A video file is cut into video files: by"
        " copying from key frame to key frame, or with --exact by encoding again. Sound is left out. A feature store is"
        " cut into a store, without decoding. Writes clips.csv (path, label, source) for `iefvad data split`, and"
        " annotations.txt.",
        usage="RECORDING [RECORDING ...] --out FOLDER (--labels FILE | --annotations FILE) [options]",
    )
    parser.add_argument(
        "recordings",
        nargs="+",
        type=str,
        help="video files, folders of them, or one feature store",
        metavar="RECORDING",
    )
    groups = {"labels": "truth", "train_fraction": "lists", "exact": "video files"}
    add_options(parser, CutConfig, groups)
    arguments = parser.parse_args(argv)
    config = from_namespace(CutConfig, arguments)
    if not config.out:
        raise UserError("--out must be given: the folder for the clips")
    from iefvad.data.clips import CLIPS, Truth, write_clip_lists
    from iefvad.data.split import LISTS, require_new

    truth, out = Truth(config.labels, config.annotations, config.label), Path(config.out)
    names = [CLIPS, *(LISTS if config.train_fraction is not None else LISTS[2:])]
    require_new([out / name for name in names], overwrite=config.overwrite)
    stored = len(arguments.recordings) == 1 and (Path(arguments.recordings[0]) / "store.json").is_file()
    notes: list[str] = []
    failed: dict[str, str] = {}
    cut = _cut_store if stored else _cut_files
    clips = cut(arguments.recordings, truth, out, config, notes, failed)
    if clips:
        write_clip_lists(
            out, clips, least=config.least, train_fraction=config.train_fraction, overwrite=config.overwrite
        )
        abnormal = sum(clip.label(config.least) != "Normal" for clip in clips)
        sources = len({clip.source for clip in clips})
        plural = "s" if sources != 1 else ""
        print(f"{len(clips)} clips of {sources} recording{plural}, {abnormal} of them abnormal: {readable(out)}")
    for note in notes:
        print(f"note: {readable(note)}")
    if failed:
        name, reason = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more recordings: {few(list(failed)[1:])})" if len(failed) > 1 else ""
        raise UserError(f"{name} was not cut: {reason}{more}")
    return 0


def _cut_store(
    recordings: list[str], truth: Truth, out: Path, config: CutConfig, notes: list[str], failed: dict[str, str]
) -> list[Clip]:
    from iefvad.data.cut import cut_stored
    from iefvad.features.store import FeatureStore
    from iefvad.video import SEGMENT

    store = FeatureStore(recordings[0])
    if out.resolve() == store.root.resolve():
        raise UserError(f"--out {out} is the store of the recordings: choose another folder for the clips")
    if config.exact:
        raise UserError("--exact is for video files: a store is always cut between two segments; leave it out")
    sidecars = store.sidecars()
    truth.require_one(len(sidecars))
    clips: list[Clip] = []
    for sidecar in sidecars:
        try:
            marks = truth.of(sidecar.name, sidecar.frames, SEGMENT * sidecar.segments)
        except UserError as error:
            if config.labels is not None:
                raise
            failed[sidecar.name] = str(error)
            continue
        per_second = sidecar.fps / SEGMENT
        length = config.segments or max(round(config.length * per_second), 1)
        overlap = int(config.overlap) if config.segments else round(config.overlap * per_second)
        clips += cut_stored(store, sidecar.name, marks, out, segments=length, overlap=overlap)
    return clips


def _cut_files(
    recordings: list[str], truth: Truth, out: Path, config: CutConfig, notes: list[str], failed: dict[str, str]
) -> list[Clip]:
    from iefvad.data.cut_video import Cutting, cut_video
    from iefvad.video import SEGMENT
    from iefvad.video.naming import name_videos

    paths = name_videos(recordings)
    truth.require_one(len(paths))
    cutting = Cutting(
        SEGMENT * config.segments if config.segments else config.length,
        SEGMENT * int(config.overlap) if config.segments else config.overlap,
        bool(config.segments),
        config.exact,
        config.quality,
        config.on_truncated,
    )
    clips: list[Clip] = []
    for name, path in paths.items():
        if not config.overwrite and (existing := next(out.glob(f"{_plain(name)}_000.*"), None)):
            raise UserError(f"{existing} exists: choose another --out, or add --overwrite to replace clips")
        try:
            clips += cut_video(path, name, lambda frames, name=name: truth.of(name, frames), out, cutting, notes)  # type: ignore[misc]
        except UserError as error:
            if config.labels is not None:
                raise
            failed[name] = str(error)
    return clips


def _plain(name: str) -> str:
    """Return a name for a pattern of files in which no letter has a meaning."""
    import glob

    return glob.escape(name)
