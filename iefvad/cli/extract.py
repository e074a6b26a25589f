"""`iefvad extract VIDEOS --out STORE`: video files to a feature store, once, resumable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from iefvad.cli.command import command
from iefvad.extraction.config import ExtractConfig, ExtractReport
from iefvad.extraction.extract import extract
from iefvad.extraction.jobs import FAILED
from iefvad.utils.options import add_options, from_namespace, make_parser


@command("extract")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad extract`; 0 if every video is in the store, 1 if some failed."""
    parser = make_parser(
        "extract",
        "Turn videos into a feature store, which training and evaluation read. Each video is decoded once: its pictures"
        " and its event maps (where brightness changed) go through an encoder, a row of features for every 16 frames."
        " Run the same command again to go on after an interruption or to add new videos. Without --image-model it uses"
        " a fixed descriptor, which needs no weights and no GPU.",
        usage="VIDEO [VIDEO ...] --out STORE [options]",
    )
    parser.add_argument("videos", nargs="+", type=str, help="video files, or folders that hold some", metavar="VIDEO")
    parser.add_argument("--out", required=True, type=str, help="folder of the feature store", metavar="STORE")
    groups = {
        "crops": "features (a store holds one choice of these)",
        "image_model": "encoders",
        "batch": "how it is run",
        "engine": "many machines",
    }
    add_options(parser, ExtractConfig, groups)
    arguments = parser.parse_args(argv)
    config = from_namespace(ExtractConfig, arguments)
    try:
        report = extract(arguments.videos, arguments.out, config)
    except KeyboardInterrupt:
        print(
            "\niefvad extract: interrupted; finished videos are kept, run the same command to go on.", file=sys.stderr
        )
        return 130
    print(_summary(report, arguments.out))
    return 1 if report.failed else 0


def _summary(report: ExtractReport, out: str) -> str:
    total = len(report.done) + len(report.skipped) + len(report.failed)
    rate = f", {report.frames} frames at {report.frames / report.seconds:.1f} frames/s" if report.frames else ""
    if report.waited:
        rate += f" (the encoder waited for frames {report.waited / report.seconds:.0%} of the time)"
    text = f"{len(report.done)} of {total} videos extracted, {len(report.skipped)} were there already{rate}: {out}"
    if report.failed:
        text += f"\n{len(report.failed)} failed, listed with their reasons in {Path(out) / FAILED}"
    return text
