"""`iefvad data check` and `iefvad data gt`: can this split be trusted, and its frame labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iefvad.cli.command import command, dispatch
from iefvad.data.annotations import Annotation, read_annotations
from iefvad.data.check.all_checks import check_data_set
from iefvad.data.check.findings import Report
from iefvad.data.check.recognise import DataSet, Kind, Split, find_data_sets, pair_segments, read_source
from iefvad.data.check.render import as_text, write_reports
from iefvad.data.ground_truth import (
    lengths_of_features,
    lengths_of_file,
    lengths_of_store,
    listed_videos,
    make_ground_truth,
    write_ground_truth,
)
from iefvad.data.lists import ListEntry, read_list
from iefvad.data.truth_files import labels_beside, read_segments, read_truth, truth_annotations
from iefvad.utils.errors import UserError
from iefvad.utils.options import add_options, from_namespace, make_parser, option

COMMANDS = {
    "check": ("iefvad.cli.data:check_main", "compare lists, annotations and frame truth, and say where they disagree"),
    "gt": ("iefvad.cli.data:gt_main", "write the frame labels of a test list (gt.npy)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad data`; returns the exit status."""
    return dispatch("iefvad data", "Check the field's data sets, and make their frame labels.", COMMANDS, argv)


@dataclass
class CheckConfig:
    """Settings of `iefvad data check`."""

    features: str | None = option(None, "folder of feature files: are those of the lists there, and of one length?")
    names: int = option(5, "videos named with each finding; 0 names all (--out always does)")
    out: str | None = option(None, "write the report as .md, .json or .txt too")
    strict: bool = option(False, "exit status 1 when there is a problem")


@dataclass
class TruthConfig:
    """Settings of `iefvad data gt`."""

    annotations: str | None = option(
        None, "annotations (.txt, VadCLIP's .json) or frame truth (.npz, a folder of .npy)"
    )
    test_list: str | None = option(None, "CSV `path,label` whose order the labels follow")
    features: str | None = option(None, "lengths from the feature files below this folder")
    store: str | None = option(None, "lengths from a feature store")
    lengths: str | None = option(None, "lengths from a CSV `name,frames`, or from frame truth")
    round_up: bool = option(False, "with --lengths: a segment begun counts (features made with --tail repeat)")
    inclusive: bool = option(False, "the end of an interval is its last abnormal frame (ShanghaiTech's frame masks)")
    out: str | None = option(None, "file to write, gt.npy")


def check(folders: Sequence[str], files: Sequence[tuple[Kind, Split | None, str]], config: CheckConfig) -> list[Report]:
    """Check what lies in folders and, as one more data set, single files. Prints and writes the report.

    Raises UserError for a folder without any file of a data set, and for a single file that cannot be read.
    """
    data_sets: list[DataSet] = find_data_sets(folders) if folders else []
    if files:
        chosen = DataSet("given files")
        pairs = []
        for kind, split, name in files:
            path = Path(name)
            if kind == "annotations" and path.suffix.lower() == ".json":
                pairs.append(path)
                continue
            if kind == "annotations" and (path.is_dir() or path.suffix.lower() == ".npz"):
                kind = "truth"
            chosen.sources.append(read_source(path, path.name, kind=kind, split=split))
        for path in pairs:
            pair_segments(chosen, path, path.name)
        data_sets.append(chosen)
    features = Path(config.features) if config.features else None
    if features is not None and not features.is_dir():
        raise UserError(f"--features {features} is not a folder; give the one that holds the lists' feature files")
    reports = [check_data_set(data_set, features=features) for data_set in data_sets]
    print(as_text(reports, names=config.names), end="")
    if config.out:
        write_reports(Path(config.out), reports)
        print(f"\nwrote {config.out}")
    return reports


@command("data check")
def check_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad data check`; returns the exit status."""
    parser = make_parser(
        "data check",
        "Read every list, annotation file and frame truth of a data set and say what they hold and where they"
        " contradict each other: test videos that are trained on, names and labels that differ, intervals that cannot"
        " be, truth that does not follow from the annotations. A folder is searched for files it knows by content.",
        usage="[FOLDER ...] [options]",
    )
    parser.add_argument("folders", type=str, nargs="*", help="folders of lists and annotations", metavar="FOLDER")
    flags: dict[str, tuple[Kind, Split | None, str]] = {
        "annotations": ("annotations", "test", "annotation files"),
        "train_list": ("list", "train", "CSV training lists"),
        "test_list": ("list", "test", "CSV test lists"),
        "gt": ("gt", "test", "gt.npy in the order of the first test list"),
        "truth": ("truth", "test", "frame truth: .npz, or a folder of one .npy a video"),
    }
    for name, (_, _, text) in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=str, default=[], help=text, metavar="FILE")
    add_options(parser, CheckConfig)
    arguments = parser.parse_args(argv)
    files = [(kind, split, path) for name, (kind, split, _) in flags.items() for path in arguments[name] or []]
    if not arguments.folders and not files:
        raise UserError("nothing to check: give folders of lists and annotations, or files by --annotations and others")
    config = from_namespace(CheckConfig, arguments)
    reports = check(arguments.folders or [], files, config)
    unreadable = [reason for report in reports for reason in report.unreadable.values()]
    if unreadable:
        raise UserError(unreadable[0] + (f" (and {len(unreadable) - 1} more files)" if len(unreadable) > 1 else ""))
    return 1 if config.strict and any(report.problems for report in reports) else 0


@command("data gt")
def gt_main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad data gt`; returns the exit status."""
    parser = make_parser(
        "data gt",
        "Write the frame labels of a test list, 16 a segment, one video after the other in list order, as training and"
        " evaluation read them with --gt. Intervals are half-open, [start, end), and clipped to the video.",
    )
    add_options(parser, TruthConfig)
    config = from_namespace(TruthConfig, parser.parse_args(argv))
    missing = [
        f"--{name.replace('_', '-')}" for name in ("annotations", "test_list", "out") if not getattr(config, name)
    ]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given")
    assert config.annotations and config.test_list and config.out
    given = [name for name in ("features", "store", "lengths") if getattr(config, name)]
    if len(given) != 1:
        raise UserError("the lengths of videos come from --features, from --store or from --lengths: give one of them")
    if config.round_up and not config.lengths:
        raise UserError("--round-up belongs to --lengths; features and stores tell their segments themselves")
    videos = listed_videos(read_list(config.test_list))
    annotations = _annotations(Path(config.annotations), [entries[0] for entries in videos.values()])
    if config.features:
        lengths = lengths_of_features(videos, config.features)
    elif config.store:
        lengths = lengths_of_store(videos, config.store)
    else:
        assert config.lengths
        lengths = lengths_of_file(videos, config.lengths, round_up=config.round_up)
    truth = make_ground_truth(videos, annotations, lengths, inclusive_ends=config.inclusive)
    write_ground_truth(Path(config.out), truth)
    abnormal = int(truth.labels.sum())
    share = f" ({abnormal / len(truth.labels):.1%})" if len(truth.labels) else ""
    print(f"{config.out}: {truth.videos:,} videos, {len(truth.labels):,} frames, {abnormal:,} abnormal{share}")
    for note in truth.notes:
        print(f"note: {note}")
    return 0


def _annotations(path: Path, entries: Sequence[ListEntry]) -> dict[str, Annotation]:
    if path.suffix.lower() == ".json":
        return read_segments(path, labels_beside(path), entries)
    if path.is_dir() or path.suffix.lower() == ".npz":
        return truth_annotations(read_truth(path))
    return read_annotations(path)
