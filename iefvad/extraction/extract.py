"""Video files to a feature store, resumable: the function behind `iefvad extract VIDEOS --out STORE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iefvad.encoders.encoder import Encoder
from iefvad.extraction.config import ExtractConfig, ExtractReport, check, encoder_of, reading, store_settings
from iefvad.extraction.jobs import Jobs, open_store
from iefvad.extraction.local import run_local
from iefvad.utils.files import require_writable
from iefvad.video import require_rate
from iefvad.video.naming import name_videos


def extract(
    videos: Sequence[str | Path],
    out: str | Path,
    config: ExtractConfig | None = None,
    *,
    encoder: Encoder | None = None,
) -> ExtractReport:
    """Extract the features of videos into a store.

    A video is skipped if the store has it, with the same settings and an unchanged source file. A video that cannot be
    read is listed in `out/failed.csv` and in the report, and the others continue. A video is stored completely or not
    at all. An interruption (KeyboardInterrupt is passed on) loses only the unfinished videos. Temporary files of
    killed calls are removed.

    Args:
        videos: Video files, folders of frames (they need `config.fps`), and folders that are searched for both.
        out: Folder of the store. It is created if it is missing.
        config: The settings.
        encoder: Replaces the encoder that `config` describes. Only for the local engine.

    Returns:
        Which videos are stored, skipped and failed.

    Raises:
        UserError: There are no videos, two videos would have the same name, the store was made with other settings,
            the disk is full, or Ray is wanted and not installed.
        ValueError: `encoder` is given with `engine="ray"`.
    """
    config = config or ExtractConfig()
    check(config)
    paths = name_videos(videos)
    require_rate(list(paths.values()), config.fps)
    require_writable(Path(out))
    if config.engine == "ray":
        from iefvad.extraction.ray_engine import extract_with_ray

        if encoder is not None:
            raise ValueError("with engine='ray' every actor builds its encoder from config: give no encoder")
        return extract_with_ray(paths, Path(out), config)
    encoder = encoder or encoder_of(config)
    store = open_store(Path(out), store_settings(encoder, config), carry=config.carry)
    with Jobs(store, paths, quiet=config.quiet, fps=config.fps) as jobs:
        settings = store.settings | reading(config)
        run_local(jobs, encoder, settings, config.workers)
    return jobs.report
