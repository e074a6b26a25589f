"""The local engine for a light encoder: each thread takes one video from the file to its features.

This is fastest if encoding is as cheap as decoding, because no data go from one process to another.
"""

from __future__ import annotations

import contextlib
import math
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any

import torch

from iefvad.encoders.encoder import Encoder
from iefvad.extraction.decoding import Ended, Opened
from iefvad.extraction.jobs import Features, Job, Jobs, sidecar_of
from iefvad.extraction.stream import FeatureStream
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT, unreadable

_TICK = 0.2  # seconds between two checks of the calling thread


def run_threads(jobs: Jobs, encoder: Encoder, settings: dict[str, Any], threads: int) -> None:
    """Extract all pending jobs.

    Args:
        jobs: The jobs.
        encoder: Encoder on the CPU.
        settings: The store's settings, and `on_truncated`.
        threads: Number of videos that are extracted at the same time.
    """
    torch_threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "video") as pool:
        try:
            running = [pool.submit(_work, jobs, encoder, settings, threads) for _ in range(threads)]
            _watch(jobs, running)
        finally:
            jobs.stop.set()
            pool.shutdown()
            torch.set_num_threads(torch_threads)
    jobs.wait()


def _watch(jobs: Jobs, running: list[Future[None]]) -> None:
    waiting = set(running)
    while waiting:
        finished, waiting = wait(waiting, timeout=_TICK, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
        jobs.check()
        jobs.progress.show()


def _work(jobs: Jobs, encoder: Encoder, settings: dict[str, Any], threads: int) -> None:
    if threads > 1:
        torch.set_num_threads(1)  # videos run in parallel; more threads of torch would only compete with them
    for job in jobs.pending():
        try:
            features = _features(jobs, job, encoder, settings, prefetch=threads == 1)
        except UserError as error:
            jobs.fail(job.name, str(error))
            continue
        except OSError as error:
            jobs.fail(job.name, str(unreadable(job.path, error)))
            continue
        if features is None:
            return
        jobs.write(job, features)


def _features(jobs: Jobs, job: Job, encoder: Encoder, settings: dict[str, Any], *, prefetch: bool) -> Features | None:
    stream = FeatureStream(job.path, encoder, settings | {"name": job.name}, prefetch=prefetch)
    claimed = stream.segments.info.frames or math.inf
    image, event, densities = [], [], []
    with contextlib.closing(iter(stream)) as segments:
        for segment in segments:
            if jobs.stop.is_set():
                return None
            image.append(segment.image)
            event.append(segment.event)
            densities.append(segment.density)
            jobs.progress.advance(job.name, SEGMENT, len(image) * SEGMENT / claimed, segment.encoded)
    opened = Opened(stream.fps, stream.segments.info.frames)
    ended = Ended.of(stream.segments)
    sidecar = sidecar_of(job, settings, opened, ended, len(image), densities)
    return Features(torch.stack(image, 1), torch.stack(event, 1), sidecar)
