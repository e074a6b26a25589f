"""`iefvad detect RUN VIDEO...`: anomaly scores for your own videos, cameras and streams."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iefvad.cli.command import command, unused_rate
from iefvad.detection.config import FILES_ONLY, GROUPS, LIVE_ONLY, DetectConfig
from iefvad.utils.files import require_writable
from iefvad.utils.option_errors import require_effect
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.text import readable

if TYPE_CHECKING:
    from iefvad.detection.detector import Detector
    from iefvad.detection.result import Detection


@command("detect")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad detect` and return the exit status: 1 if a video could not be read or a camera was lost."""
    parser = make_parser(
        "detect",
        "Score your own videos, a camera or a stream with the model of a run. Each of them gets a CSV with the score of"
        " every segment, a CSV with the flagged intervals, a JSON file with everything, and an HTML timeline with"
        " pictures of the segments with the highest scores; several videos get an index page. Cameras and streams are"
        " scored as they come, until they end or until Ctrl-C.",
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
    from iefvad.detection.outputs import Names, describe_failure, describe_rule, page_of, write_results
    from iefvad.detection.overview import Overview
    from iefvad.detection.terminal import summarize, watch
    from iefvad.video import find_videos, require_rate

    cameras = inputs(arguments.videos, config)
    videos = [] if cameras else find_videos(arguments.videos)
    if cameras:
        require_effect(parser.given, dict.fromkeys(FILES_ONLY, "on cameras and streams, only on files: leave it out"))
    else:
        live = dict.fromkeys(LIVE_ONLY, "on files, only on cameras and streams: leave it out")
        require_effect(parser.given, live | unused_rate(videos))
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
    names, failed, footage, remedies = Names(folder), 0, Flagged(), set[str]()
    overview = Overview(folder, detector.name, detector.rule, describe_rule(detector.rule))
    try:
        for video in videos:
            try:
                detection = _scored(detector, video)
                write_results(detection, folder, names.of(video), detector)
                overview.add(detection, page_of(detection))
            except Exception as error:  # of one video: the others go on
                failed += 1
                overview.fail(describe_failure(video, error))
                print(f"iefvad detect: {describe_failure(video, error)}", file=sys.stderr, flush=True)
                continue
            summarize(detection, known, remedies)
            footage.add(detection.scores, detection.intervals)
    finally:  # what was scored before Ctrl-C is listed too
        index = overview.write()
    for warning in flagged_advice(footage) if len(videos) > 1 else ():
        print(f"warning: {warning}")
    print(f"{len(videos) - failed} of {len(videos)} videos scored; results in {readable(folder)}")
    if index is not None:
        print(f"index of the videos: {readable(index)}")
    return 1 if failed else 0


def _scored(detector: Detector, video: Path) -> Detection:
    """Score a video, with its progress on stderr."""
    from iefvad.utils.progress import Progress

    with Progress(None, video.name, "frame") as bar:

        def told(done: int, total: int | None) -> None:
            bar.expect(total)
            bar.reach(min(done, total or done))

        return detector(video, told=told)
