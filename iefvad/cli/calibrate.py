"""`iefvad calibrate RUN NORMAL_VIDEO...`: find the threshold for a maximum rate of false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iefvad.cli.command import command, unused_rate
from iefvad.detection.config import CalibrateConfig
from iefvad.utils.files import require_writable, rescued
from iefvad.utils.option_errors import require_effect
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.text import clock, readable

if TYPE_CHECKING:
    from iefvad.checkpoints.calibration import Calibration


@command("calibrate")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad calibrate` and return the exit status: 1 if a video could not be read."""
    parser = make_parser(
        "calibrate",
        "Find the threshold for a maximum number of false alarms per hour, from videos in which nothing abnormal"
        " happens. Write calibration.json, which `iefvad detect` then uses.",
        usage="RUN NORMAL_VIDEO [NORMAL_VIDEO ...] [options]",
    )
    parser.add_argument("run", type=str, help="run folder that `iefvad train` wrote", metavar="RUN")
    parser.add_argument(
        "videos",
        nargs="+",
        type=str,
        help="video files, folders of frames (with --fps), or folders of these, without anomalies",
        metavar="NORMAL_VIDEO",
    )
    add_options(parser, CalibrateConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(CalibrateConfig, arguments)
    from iefvad.checkpoints.calibration import CALIBRATION
    from iefvad.detection.calibrate import calibrate
    from iefvad.video import find_videos

    if "fps" in parser.given:
        require_effect(parser.given, unused_rate(find_videos(arguments.videos)))
    folder = Path(config.out or arguments.run)
    if config.out or folder.is_dir():  # else the model is not there, which is said more clearly
        require_writable(folder)
    calibration, failed = calibrate(arguments.run, arguments.videos, config)
    path = folder / CALIBRATION
    rescued(lambda place: calibration.write(place / CALIBRATION), folder, f"the {CALIBRATION} and its threshold")
    _report(calibration, path)
    return 1 if failed else 0


def _report(calibration: Calibration, path: Path) -> None:
    from iefvad.detection.advice import rule_advice
    from iefvad.detection.calibrate import poisson_bound
    from iefvad.detection.outputs import describe_rule
    from iefvad.detection.threshold import Rule

    rule = Rule(calibration.threshold, calibration.low, calibration.merge_gap, calibration.min_length)
    flagged = sum(video["flagged"] for video in calibration.videos)
    print(
        f"\n{describe_rule(rule)}\n{flagged} flagged interval(s) in {clock(3600 * calibration.hours)} of normal"
        f" footage: {calibration.measured:.3g} per hour, {calibration.allowed:g} allowed"
    )
    needed = poisson_bound(0) / calibration.allowed if calibration.allowed else float("inf")
    if calibration.hours < needed:
        wanted = f"give at least {needed:.3g} h" if calibration.allowed else "no amount of footage is enough"
        print(
            f"This is too little footage to be sure: it only shows, with 95% confidence, that there are fewer than"
            f" {calibration.upper_bound:.3g} false alarms per hour. To show {calibration.allowed:g} per hour, {wanted}."
        )
    for warning in rule_advice(rule) if calibration.threshold <= 1 else ():
        print(f"warning: {warning}")
    if calibration.threshold > 1:
        print("Normal footage reaches the highest possible score, so nothing will be flagged: train on such footage.")
    print(f"written: {readable(path)}")
