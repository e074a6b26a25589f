"""`python -m iefvad.extract VIDEOS --out STORE`: video files to a feature store, once, resumable."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from iefvad.command import command
from iefvad.encoders import Encoder
from iefvad.extraction.config import ExtractConfig, ExtractReport, check, encoder_of, store_settings
from iefvad.extraction.local import run_local
from iefvad.extraction.record import FAILED, Record, name_videos, open_store
from iefvad.options import add_options, from_namespace, make_parser
from iefvad.stream import FeatureStream, SegmentFeatures, encode_segments, stream_features

__all__ = [
    "ExtractConfig",
    "ExtractReport",
    "FeatureStream",
    "SegmentFeatures",
    "encode_segments",
    "extract",
    "main",
    "store_settings",
    "stream_features",
]


def extract(
    videos: Sequence[str | Path],
    out: str | Path,
    config: ExtractConfig | None = None,
    *,
    encoder: Encoder | None = None,
) -> ExtractReport:
    """Extract the features of video files, and of all videos in folders, into the store `out`.

    A video that the store holds with the same settings and an unchanged source is skipped. One that cannot be read is
    listed in `out/failed.csv` and in the report, and the rest go on. A video is stored all at once, so an interruption
    (KeyboardInterrupt comes through) loses the unfinished ones only, and what a kill left behind is cleared away.
    `encoder` replaces the one that `config` describes (local engine only). Raises UserError if there are no videos, if
    two would have one name, if the store was made with other settings, if the disk is full, or if Ray is asked for and
    not there; ValueError for an `encoder` with Ray.
    """
    config = config or ExtractConfig()
    check(config)
    paths = name_videos(videos)
    if config.engine == "ray":
        from iefvad.extraction.ray_engine import extract_with_ray

        if encoder is not None:
            raise ValueError("with engine='ray' every actor builds its encoder from config: give no encoder")
        return extract_with_ray(paths, Path(out), config)
    encoder = encoder or encoder_of(config)
    store = open_store(Path(out), store_settings(encoder, config))
    with Record(store, paths, quiet=config.quiet) as record:
        run_local(record, encoder, store.settings | {"on_truncated": config.on_truncated}, config.workers)
    return record.report


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


if __name__ == "__main__":
    raise SystemExit(main(None))
