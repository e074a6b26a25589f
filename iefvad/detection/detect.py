"""Detection as one function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iefvad.checkpoints.hub import IEFVAD
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.live import Watch
from iefvad.detection.outputs import Names, write_results
from iefvad.detection.result import Detection
from iefvad.detection.sources import is_live
from iefvad.utils.errors import UserError
from iefvad.video import find_videos


def detect(model: str | Path | IEFVAD, videos: str | Path | Sequence[str | Path], **settings: Any) -> list[Detection]:
    """Score videos with a run folder's model, or with a model that is loaded already.

    `videos`: files, folders of videos, or one live input (a stream's address, a camera's number as text), which is
    scored until it ends or `duration` is over. `settings` are fields of `DetectConfig`. Nothing is written unless
    `out` names a folder. Raises UserError for the first video that cannot be read, TypeError for an unknown setting.
    """
    config = DetectConfig(**settings)
    given = [videos] if isinstance(videos, (str, Path)) else list(videos)
    address = live_address([str(video) for video in given])
    detector = Detector(model, config, live=address is not None)
    folder = Path(config.out) if config.out else None
    if address is not None:
        session = Watch(detector, address)
        for _ in session:
            pass
        detection = session.detection()
        if folder is not None:
            write_results(detection, folder, Names(folder).fresh(session.name), detector)
        return [detection]
    names = Names(folder) if folder is not None else None
    detections = []
    for video in find_videos(given):
        detection = detector(video)
        if names is not None:
            write_results(detection, names.folder, names.of(video), detector)
        detections.append(detection)
    return detections


def live_address(given: Sequence[str]) -> str | None:
    """The live input among what is given, None where all are files. Raises UserError where it is not alone."""
    live = [text for text in given if is_live(text)]
    if live and len(given) > 1:
        raise UserError(
            "one live input at a time, and no files beside it: start another `iefvad detect` for each further one."
        )
    return live[0] if live else None
