"""Lanes: threads that take a video each from the file to its features.

Best where encoding costs as little as decoding, since nothing is handed from one process to another.
"""

from __future__ import annotations

import contextlib
import math
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import torch

from iefvad.encoders.encoder import Encoder
from iefvad.extraction.decoding import Ended, Opened
from iefvad.extraction.jobs import Features, Job, Record, sidecar_of
from iefvad.extraction.stream import FeatureStream
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT

_TICK = 0.2  # seconds after which the calling thread looks up


def run_lanes(record: Record, encoder: Encoder, settings: dict[str, Any], lanes: int) -> None:
    """Extract what the record's store lacks, `lanes` videos at a time. settings: the store's, and `on_truncated`."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(lanes, "video") as pool:
        try:
            running = [pool.submit(_lane, record, encoder, settings, lanes) for _ in range(lanes)]
            _watch(record, running)
        finally:
            record.stop.set()
            pool.shutdown()
            torch.set_num_threads(threads)
    record.wait()


def _watch(record: Record, running: list[Future[None]]) -> None:
    waiting = set(running)
    while waiting:
        finished, waiting = wait(waiting, timeout=_TICK, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
        record.check()
        record.progress.show()


def _lane(record: Record, encoder: Encoder, settings: dict[str, Any], lanes: int) -> None:
    if lanes > 1:
        torch.set_num_threads(1)  # videos are the unit of parallel work; torch's own threads would only compete
    for job in record.jobs():
        try:
            features = _features(record, job, encoder, settings, prefetch=lanes == 1)
        except UserError as error:
            record.fail(job.name, str(error))
            continue
        if features is None:
            return
        record.write(job, features)


def _features(
    record: Record, job: Job, encoder: Encoder, settings: dict[str, Any], *, prefetch: bool
) -> Features | None:
    stream = FeatureStream(job.path, encoder, settings, prefetch=prefetch)
    claimed = stream.segments.info.frames or math.inf
    image, event, densities = [], [], []
    with contextlib.closing(iter(stream)) as segments:
        for segment in segments:
            if record.stop.is_set():
                return None
            image.append(segment.image)
            event.append(segment.event)
            densities.append(segment.density)
            record.progress.advance(job.name, SEGMENT, len(image) * SEGMENT / claimed)
    opened = Opened(stream.fps, stream.segments.info.frames)
    ended = Ended(stream.segments.frames_read, stream.segments.frames_dropped)
    sidecar = sidecar_of(job, settings, opened, ended, len(image), densities)
    return Features(torch.stack(image, 1), torch.stack(event, 1), sidecar)
