"""`iefvad data`: check the files of a data set, verify stores, and make the frame labels of a test list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iefvad.cli.command import command, dispatch
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable_file, rescued_file
from iefvad.utils.options import add_options, from_namespace, make_parser, option
from iefvad.utils.text import readable
from iefvad.utils.values import NATURAL

if TYPE_CHECKING:
    from iefvad.data.check.recognise import Kind, Split

COMMANDS = {
    "check": ("iefvad.cli.data:check_main", "find contradictions between lists, annotations and frame truth"),
    "verify": ("iefvad.cli.data:verify_main", "compare stores and models with their checksums"),
    "split": ("iefvad.cli.data_split:split_main", "divide a labelled list by source: training and test, or folds"),
    "cut": ("iefvad.cli.data_split:cut_main", "cut long recordings into clips, with their annotations"),
    "gt": ("iefvad.cli.data:gt_main", "write the frame labels of a test list (gt.npy)"),
}
"""Name → where its main is, and one line of help."""

FILES: dict[str, tuple[Kind, Split, str]] = {
    "annotations": ("annotations", "test", "annotation files"),
    "train_list": ("list", "train", "CSV training lists"),
    "test_list": ("list", "test", "CSV test lists"),
    "gt": ("gt", "test", "gt.npy in the order of the first test list"),
    "truth": ("truth", "test", "frame truth: .npz, or a folder with one .npy per video"),
}
"""Options of `iefvad data check` that name single files → kind, split and help."""


@dataclass
class CheckConfig:
    """Settings of `iefvad data check`."""

    features: str | None = option(
        None,
        "folder of feature files; check that those of the lists exist and match. Or a feature store: name test videos"
        " that look like training videos",
    )
    names: int = option(5, "number of videos named per finding; 0: all. --out always names all", NATURAL)
    out: str | None = option(None, "also write the report to this .md, .json or .txt file")
    strict: bool = option(False, "exit with status 1 if there is a problem")


@dataclass
class VerifyConfig:
    """Settings of `iefvad data verify`."""

    names: int = option(5, "number of damaged videos or files named per folder; 0: all", NATURAL)
    forget: bool = option(
        False, "in a feature store, remove the sidecars of damaged videos, so that `iefvad extract` makes them again"
    )


@dataclass
class TruthConfig:
    """Settings of `iefvad data gt`."""

    annotations: str | None = option(
        None, "annotations (.txt, VadCLIP's .json) or frame truth (.npz, a folder of .npy) [required]"
    )
    test_list: str | None = option(None, "CSV `path,label`; the labels follow its order [required]")
    features: str | None = option(None, "take the lengths from the feature files in this folder")
    store: str | None = option(None, "take the lengths from this feature store")
    lengths: str | None = option(None, "take the lengths from a CSV `name,frames`, or from frame truth")
    round_up: bool = option(
        False, "with --lengths: count an incomplete last segment, as in features made with --tail repeat"
    )
    inclusive: bool = option(
        False, "the end of an interval is its last abnormal frame, as in ShanghaiTech's frame masks"
    )
    out: str | None = option(None, "the file to write, gt.npy [required]")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad data COMMAND ...` and return the exit status."""
    return dispatch(
        "iefvad data", "Check, split and cut data sets, verify stores, and make frame labels.", COMMANDS, argv
    )


@command("data check")
def check_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad data check` and return the exit status: 1 with --strict if there is a problem."""
    parser = make_parser(
        "data check",
        "Read every list, annotation file and frame truth of a data set. Report what they contain and where they"
        " contradict each other: test videos that are also training videos, names and labels that differ, impossible"
        " intervals, and truth that does not follow from the annotations. In a folder, files are recognised by their"
        " content.",
        usage="[FOLDER ...] [options]",
    )
    parser.add_argument("folders", type=str, nargs="*", help="folders of lists and annotations", metavar="FOLDER")
    for name, (_, _, text) in FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="+", type=str, default=[], help=text, metavar="FILE")
    add_options(parser, CheckConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(CheckConfig, arguments)
    files = [(kind, split, path) for name, (kind, split, _) in FILES.items() for path in arguments[name] or []]
    if not arguments.folders and not files:
        raise UserError(
            "nothing to check: give folders of lists and annotations, or single files with --annotations, --test-list"
            " and others"
        )
    from iefvad.data.check.all_checks import check_all
    from iefvad.data.check.render import as_text, write_reports

    if config.out:
        require_writable_file(Path(config.out))
    reports = check_all(arguments.folders or [], files, features=config.features or None)
    print(as_text(reports, names=config.names), end="")
    if config.out:
        rescued_file(lambda path: write_reports(path, reports), Path(config.out), "the report")
        print(f"\nwritten: {readable(config.out)}")
    unreadable = [reason for report in reports for reason in report.unreadable.values()]
    if unreadable:
        raise UserError(unreadable[0] + (f" (and {len(unreadable) - 1} more files)" if len(unreadable) > 1 else ""))
    return 1 if config.strict and any(report.problems for report in reports) else 0


@command("data verify")
def verify_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad data verify` and return the exit status: 1 if something is damaged."""
    parser = make_parser(
        "data verify",
        "Read all of a feature store, a packed store, a run folder, a model or a .safetensors file, and compare it with"
        " the checksums that were written with it. Every command compares what it reads; this one reads everything.",
        usage="PATH ... [options]",
    )
    parser.add_argument("paths", type=str, nargs="+", help="stores, run folders, models", metavar="PATH")
    add_options(parser, VerifyConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(VerifyConfig, arguments)
    from iefvad.data.verify import verify

    damaged = False
    for path in map(Path, arguments.paths):
        found = verify(path, forget=config.forget)
        parts = [f"{found.intact} intact", f"{len(found.damaged)} damaged"]
        parts += [f"{len(found.unknown)} without checksums, of an earlier version"] if found.unknown else []
        print(f"{readable(path)}: {found.what}, {', '.join(parts)}")
        shown = list(found.damaged.items())[: config.names or None]
        for name, reason in shown:
            print(f"  {readable(name)}: {readable(reason)}")
        if len(found.damaged) > len(shown):
            print(f"  and {len(found.damaged) - len(shown)} more; --names 0 names all")
        damaged = damaged or bool(found.damaged)
    return 1 if damaged else 0


@command("data gt")
def gt_main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad data gt` and return the exit status."""
    parser = make_parser(
        "data gt",
        "Write the frame labels of a test list: 16 per segment, one video after the other in the order of the list, as"
        " training and evaluation read them with --gt. Intervals are half-open, [start, end), and clipped to the"
        " video. Give exactly one of --features, --store and --lengths.",
        usage="--annotations FILE --test-list FILE --out FILE [options]",
    )
    add_options(parser, TruthConfig)
    config = from_namespace(TruthConfig, parser.parse_args(argv))
    missing = [
        f"--{name.replace('_', '-')}" for name in ("annotations", "test_list", "out") if not getattr(config, name)
    ]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given")
    assert config.annotations and config.test_list and config.out
    from iefvad.data.ground_truth import ground_truth_of_list, write_ground_truth

    require_writable_file(Path(config.out))
    truth = ground_truth_of_list(
        config.test_list,
        config.annotations,
        features=config.features or None,
        store=config.store or None,
        lengths=config.lengths or None,
        round_up=config.round_up,
        inclusive_ends=config.inclusive,
    )
    rescued_file(lambda path: write_ground_truth(path, truth), Path(config.out), "the frame labels")
    frames, abnormal = len(truth.labels), int(truth.labels.sum())
    fraction = f" ({abnormal / frames:.1%})" if frames else ""
    print(f"{readable(config.out)}: {truth.videos:,} videos, {frames:,} frames, {abnormal:,} abnormal{fraction}")
    for note in truth.notes:
        print(f"note: {readable(note)}")
    return 0
