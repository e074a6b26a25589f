"""`iefvad extract VIDEO... --out STORE`: turn video files into a feature store. Resumable."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from iefvad.cli.command import command, unused_rate
from iefvad.extraction.config import ExtractConfig, ExtractReport, without_effect
from iefvad.utils.option_errors import require_effect
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.text import readable


@command("extract", memory="use a smaller --batch, fewer --workers or a smaller encoder")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad extract` and return the exit status: 1 if a video failed."""
    parser = make_parser(
        "extract",
        "Turn videos into a feature store, which training and evaluation read. Each video is decoded once. An encoder"
        " turns the pictures and the event maps (where brightness changed) of every 16 frames into one row of features."
        " Run the same command again to continue after an interruption or to add new videos. Without --image-model, the"
        " encoder is a fixed descriptor, which needs no weights and no GPU.",
        usage="VIDEO [VIDEO ...] --out STORE [options]",
    )
    parser.add_argument(
        "videos",
        nargs="+",
        type=str,
        help="video files, folders of frames (with --fps), or folders of these",
        metavar="VIDEO",
    )
    parser.add_argument("--out", required=True, type=str, help="folder of the feature store", metavar="STORE")
    groups = {
        "crops": "features (the same for all videos of a store)",
        "image_model": "encoders",
        "batch": "running",
        "engine": "several machines",
    }
    add_options(parser, ExtractConfig, groups)
    arguments = parser.parse_args(argv)
    config = from_namespace(ExtractConfig, arguments)
    require_effect(parser.given, without_effect(config))
    from iefvad.extraction.extract import extract
    from iefvad.video import find_videos

    if "fps" in parser.given:
        require_effect(parser.given, unused_rate(find_videos(arguments.videos)))
    try:
        report = extract(arguments.videos, arguments.out, config)
    except KeyboardInterrupt:
        print(
            "\niefvad extract: interrupted; finished videos are kept. Run the same command to continue.",
            file=sys.stderr,
        )
        return 130
    print(_summary(report, arguments.out))
    if report.done or report.skipped:
        print(_next(arguments.videos, arguments.out, config.fps))
    return 1 if report.failed else 0


def _next(videos: Sequence[str], out: str, fps: float | None) -> str:
    """Say which commands come next, ready to be copied."""
    store = shlex.quote(out)
    train = f"  iefvad train --features {store}"
    if (Path(out) / "train.csv").exists():
        return _lines(["next:", f"  iefvad data check {store}", train])
    given = shlex.join(videos) if len(videos) <= 4 else "VIDEO..."
    rate = "" if fps is None else f" --fps {fps:g}"
    return _lines(
        [
            "next, mark what is abnormal on a local page:",
            f"  iefvad label {given} --out {store}{rate}",
            "or, if you have a list path,label of the videos, divide it:",
            f"  iefvad data split LIST.csv --out {store}",
            "then:",
            train,
        ]
    )


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(map(readable, lines))


def _summary(report: ExtractReport, out: str) -> str:
    from iefvad.extraction.jobs import FAILED

    total = len(report.done) + len(report.skipped) + len(report.failed)
    rate = f", {report.frames} frames at {report.frames / report.seconds:.1f} frames/s" if report.frames else ""
    if report.encoded < report.frames:
        rate += f", {report.encoded} of them encoded"
    if report.waited:
        rate += f" (the encoder waited for frames {report.waited / report.seconds:.0%} of the time)"
    text = f"{len(report.done)} of {total} videos extracted, {len(report.skipped)} were already there{rate}: "
    text += readable(out)
    if report.failed:
        text += f"\n{len(report.failed)} failed, listed with their reasons in {readable(Path(out) / FAILED)}"
    return text
