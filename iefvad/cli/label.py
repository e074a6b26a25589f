"""`iefvad label VIDEO...`: a local page on which a person marks what is abnormal, and the lists for training."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from iefvad.cli.command import command
from iefvad.labelling.config import LabelConfig
from iefvad.utils.options import add_options, from_namespace, make_parser
from iefvad.utils.text import readable


@command("label")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad label` and return the exit status. It ends with Ctrl-C."""
    parser = make_parser(
        "label",
        "Serve a local page on which you watch videos and mark what is abnormal: intervals, or whole videos. Every"
        " change is saved at once, in labels.json, and as train.csv, test.csv and annotations.txt, which `iefvad train"
        " --features` reads. Ctrl-C ends it. Run the same command again to continue.",
        usage="VIDEO [VIDEO ...] [options]",
    )
    parser.add_argument(
        "videos",
        nargs="+",
        type=str,
        help="video files, folders of frames (with --fps), or folders of these",
        metavar="VIDEO",
    )
    add_options(parser, LabelConfig)
    arguments = parser.parse_args(argv)
    config = from_namespace(LabelConfig, arguments)
    return _serve(arguments.videos, config)


def _serve(videos: list[str], config: LabelConfig) -> int:
    from iefvad.data.sources import compiled
    from iefvad.labelling.labels import Labels
    from iefvad.labelling.lists import Lists, summary, unusable_names
    from iefvad.labelling.media import Media
    from iefvad.labelling.server import LabelServer
    from iefvad.utils.files import require_writable
    from iefvad.utils.locks import locked
    from iefvad.video.finding import VIDEO_SUFFIXES, require_rate
    from iefvad.video.naming import name_videos

    paths = name_videos(videos)
    require_rate(list(paths.values()), config.fps)
    out = Path(config.out)
    require_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    files = {
        name: name + (path.suffix if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() else ".mp4")
        for name, path in paths.items()
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(out / ".label.lock", out))
        with tempfile.TemporaryDirectory() as scratch:
            unusable = unusable_names(files, Path(scratch))
        lists = Lists(
            out,
            test_fraction=config.test_fraction,
            pattern=compiled(config.source_pattern) if config.source_pattern else None,
            seed=config.seed,
            overwrite=config.overwrite,
        )
        labels = Labels(out, files, config.classes, lists.write)
        lists.require_own(labels)
        media = Media(paths, config.fps, unusable)
        stack.callback(media.close)
        host = f"[{config.host}]" if ":" in config.host else config.host
        hint = f"iefvad data check {readable(out)}"
        server = LabelServer(list(paths), labels, lists, media, f"{host}:{config.port}", hint=hint)
        stack.callback(server.close)
        lists.write(labels)
        print(f"{len(paths)} videos; labels and lists: {readable(out)}")
        if server.exposed:
            print(
                "warning: other machines can reach this page; who knows the address with its token can see the videos"
            )
            print("and change labels, and the network in between can read both", flush=True)
        print(f"open in a browser: {server.address}\nCtrl-C ends; every change is saved at once", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        print(file=sys.stderr)
        for line in summary(labels, lists, list(paths)):
            print(readable(line))
        return 0
