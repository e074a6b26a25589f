"""`iefvad detect RUN VIDEO...`: anomaly scores for your own videos, cameras and streams."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from iefvad.cli.command import command
from iefvad.detection.config import GROUPS, DetectConfig
from iefvad.utils.files import require_writable
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.text import readable


@command("detect")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad detect` and return the exit status: 1 if a video could not be read or a camera was lost."""
    parser = make_parser(
        "detect",
        "Score your own videos, a camera or a stream with the model of a run. Each of them gets a CSV with the score of"
        " every segment, a CSV with the flagged intervals, a JSON file with everything, and an HTML timeline with"
        " pictures of the segments with the highest scores. Cameras and streams are scored as they come, until they end"
        " or until Ctrl-C.",
        usage="RUN VIDEO [VIDEO ...] [options]",
    )
    parser.add_argument("run", type=str, help="run folder that `iefvad train` wrote", metavar="RUN")
    parser.add_argument(
        "videos",
        nargs="+",
        type=str,
        help="video files, folders of frames (with --fps), folders of these, or live input: addresses (rtsp://, http://,"
        " udp://, tcp:// ...), numbers of cameras, /dev/videoN, or a .yaml file of cameras (a NAME: ADDRESS per line)",
        metavar="VIDEO",
    )
    add_options(parser, DetectConfig, GROUPS)
    arguments = parser.parse_args(argv)
    config = from_namespace(DetectConfig, arguments)
    from iefvad.detection.advice import Flagged, flagged_advice
    from iefvad.detection.detect import inputs
    from iefvad.detection.detector import Detector
    from iefvad.detection.outputs import Names, describe_failure, describe_rule, write_results
    from iefvad.detection.terminal import summarize, watch
    from iefvad.video import find_videos, require_rate

    cameras = inputs(arguments.videos, config)
    videos = [] if cameras else find_videos(arguments.videos)
    require_rate(videos, config.fps)
    detector = Detector(arguments.run, config, live=bool(cameras))
    folder = Path(config.out) if config.out else (detector.folder or Path()) / "detections"
    require_writable(folder)
    print(f"{describe_rule(detector.rule)}\n  ({readable(detector.rule.origin)})", flush=True)
    known = detector.standing_advice()
    for warning in known:
        print(f"warning: {warning}", flush=True)
    if cameras:
        return watch(detector, cameras, folder)
    names, failed, footage = Names(folder), 0, Flagged()
    for video in videos:
        try:
            detection = detector(video)
            write_results(detection, folder, names.of(video), detector)
        except Exception as error:  # of one video: the others go on
            failed += 1
            print(f"iefvad detect: {describe_failure(video, error)}", file=sys.stderr, flush=True)
            continue
        summarize(detection, known)
        footage.add(detection.scores, detection.intervals)
    for warning in flagged_advice(footage) if len(videos) > 1 else ():
        print(f"warning: {warning}")
    print(f"{len(videos) - failed} of {len(videos)} videos scored; results in {readable(folder)}")
    return 1 if failed else 0
