"""Detection as one function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iefvad.checkpoints.hub import IEFVAD, Baseline
from iefvad.detection.config import DetectConfig
from iefvad.detection.connections import is_live
from iefvad.detection.detector import Detector
from iefvad.detection.live import Watch
from iefvad.detection.outputs import Names, write_results
from iefvad.detection.result import Detection
from iefvad.utils.errors import UserError
from iefvad.video import find_videos, require_rate


def detect(
    model: str | Path | IEFVAD | Baseline, videos: str | Path | Sequence[str | Path], **settings: Any
) -> list[Detection]:
    """Score videos with the model of a run folder, or with a model that is loaded already.

    Args:
        model: A run folder, anything else that `load_pretrained` takes, or the model itself.
        videos: Video files, folders of frames, folders of these, or one live input (the address of a stream, or the
            number of a camera as text). Live input is scored until it ends or `duration` is over.
        settings: Fields of `DetectConfig`. Files are written only where `out` names a folder.

    Returns:
        One detection per video, in order.

    Raises:
        UserError: a video cannot be read; the first one ends the call. Or a setting is out of range.
        TypeError: a setting is unknown.
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
    paths = find_videos(given)
    require_rate(paths, config.fps)
    for video in paths:
        detection = detector(video)
        if names is not None:
            write_results(detection, names.folder, names.of(video), detector)
        detections.append(detection)
    return detections


def live_address(given: Sequence[str]) -> str | None:
    """Find live input among names of inputs.

    Args:
        given: Addresses, camera numbers, files or folders.

    Returns:
        The address or camera; None where all are files or folders.

    Raises:
        UserError: there is live input and something else.
    """
    live = [text for text in given if is_live(text)]
    if live and len(given) > 1:
        raise UserError(
            "only one live input at a time, and no files with it: start another `iefvad detect` for each other input."
        )
    return live[0] if live else None
