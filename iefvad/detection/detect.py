"""Detection as one function."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iefvad.checkpoints.hub import Trained
from iefvad.detection.announce import announcing
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.detection.live.cameras import Camera, find_cameras
from iefvad.detection.live.watch import Watch
from iefvad.detection.outputs import Names, describe_rule, page_of, write_results
from iefvad.detection.overview import Overview
from iefvad.detection.result import Detection
from iefvad.utils.errors import UserError
from iefvad.utils.files import require_writable
from iefvad.video import find_videos, require_rate


def detect(model: str | Path | Trained, videos: str | Path | Sequence[str | Path], **settings: Any) -> list[Detection]:
    """Score videos with the model of a run folder, or with a model that is loaded already.

    Args:
        model: A run folder, anything else that `load_pretrained` takes, or the model itself.
        videos: Video files, folders of frames, folders of these, or live input: addresses of streams, numbers of
            cameras as text, or YAML files of cameras. Live input is scored until it ends or `duration` is over.
        settings: Fields of `DetectConfig`. Files are written only where `out` names a folder.

    Returns:
        One detection per video, in order; of live input, one per camera that gave a score.

    Raises:
        UserError: a video cannot be read; the first one ends the call. No camera gives a score. Or a setting is out of
            range.
        TypeError: a setting is unknown.
    """
    config = DetectConfig(**settings)
    given = [str(video) for video in ([videos] if isinstance(videos, (str, Path)) else videos)]
    cameras = inputs(given, config)
    detector = Detector(model, config, live=bool(cameras))
    folder = Path(config.out) if config.out else None
    if folder is not None:
        require_writable(folder)
    if cameras:
        return _watch(detector, cameras, folder)
    names = Names(folder) if folder is not None else None
    detections = []
    paths = find_videos(given)
    require_rate(paths, config.fps)
    overview = Overview(folder or Path(), detector.name, detector.rule, describe_rule(detector.rule))
    for video in paths:
        detection = detector(video)
        if names is not None:
            write_results(detection, names.folder, names.of(video), detector)
            overview.add(detection, page_of(detection))
        detections.append(detection)
    if names is not None:
        overview.write()
    return detections


def inputs(given: Sequence[str], config: DetectConfig) -> list[Camera]:
    """Find live input among names of inputs, and check that the settings fit them.

    Returns:
        The cameras; none where all inputs are files or folders.

    Raises:
        UserError: there are cameras and files, or a setting is for the other kind of input.
    """
    cameras = find_cameras(given)
    for name in ("webhook", "serve"):
        if getattr(config, name) is not None and not cameras:
            raise UserError(f"--{name} is for cameras and streams: leave it out for video files.")
    return cameras


def _watch(detector: Detector, cameras: Sequence[Camera], folder: Path | None) -> list[Detection]:
    session = Watch(detector, cameras)
    with (
        announcing(session, detector.config, lambda text: None) as announce,
        contextlib.closing(iter(session)) as scores,
    ):
        for scored in scores:
            announce(scored)
    detections = session.detections()
    if folder is not None:
        names, failed = Names(folder), None
        for channel, detection in zip(session.scored, detections, strict=True):
            try:
                write_results(detection, folder, names.fresh(channel.camera.stem), detector)
            except UserError as error:  # of one camera: the results of the others are written too
                failed = failed or error
        if failed is not None:
            raise failed
    return detections
