"""`python -m iefvad.extract VIDEOS --out STORE`: video files to a feature store, once, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iefvad.encoders.encoder import Encoder
from iefvad.extraction.config import ExtractConfig, ExtractReport, check, encoder_of, store_settings
from iefvad.extraction.jobs import Record, name_videos, open_store
from iefvad.extraction.local import run_local


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
