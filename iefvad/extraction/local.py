"""The engine for one machine: processes decode, and the calling thread encodes batches across videos."""

from __future__ import annotations

import contextlib
import math
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from iefvad.encoders.encoder import Encoder
from iefvad.extraction.decoding import SHAPE, DecoderCrashError, DecodingProcess, Ended, Opened
from iefvad.extraction.encoding import VideoEncoder
from iefvad.extraction.jobs import Features, Job, Jobs, sidecar_of
from iefvad.extraction.threads import run_threads
from iefvad.utils.errors import UserError
from iefvad.utils.threads import threads
from iefvad.video import SEGMENT

_TICK = 0.2  # seconds between two checks of a waiting thread


def run_local(jobs: Jobs, encoder: Encoder, settings: dict[str, Any], workers: int) -> None:
    """Extract all pending jobs on this machine.

    Args:
        jobs: The jobs.
        encoder: The encoder.
        settings: The store's settings, and `on_truncated`.
        workers: Number of decoding processes, or of threads with a light encoder; 0 chooses it for this machine.
    """
    light = encoder.device.type == "cpu" and encoder.settings["image_encoder"] == "descriptor"
    cores = threads()
    # A GPU encodes frames faster than most machines decode. A model on the CPU is many times slower than decoding.
    useful = cores if light else cores - 1 if encoder.device.type == "cuda" else cores // 4
    workers = min(workers or max(1, useful), len(jobs.paths))
    if light:
        run_threads(jobs, encoder, settings, workers)
    else:
        _Pipeline(jobs, encoder, settings, workers).run()


@dataclass
class _Video:
    opened: Opened
    segments: int = 0
    ended: Ended | None = None


_Event = tuple[Job, Opened | np.ndarray | Ended | str]


class _Pipeline:
    """One run: one thread per decoding process receives its segments, and the calling thread encodes them."""

    def __init__(self, jobs: Jobs, encoder: Encoder, settings: dict[str, Any], workers: int) -> None:
        self.jobs, self.settings, self.workers = jobs, settings, workers
        self.encoder: VideoEncoder[Job] = VideoEncoder(encoder, settings)
        self.pinned = encoder.device.type == "cuda"
        self.videos: dict[Job, _Video] = {}
        # From the threads: a segment, a message about a video (str: why it failed), or None when a thread ends.
        self.events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        self.processes: dict[int, DecodingProcess] = {}

    def run(self) -> None:
        """Extract all videos. Raises errors as `Jobs.check` does, and RuntimeError if no decoding process starts."""
        for _ in range(2 * self.workers + 2):
            self.free.put(torch.empty(SHAPE, dtype=torch.uint8, pin_memory=self.pinned).numpy())
        with ThreadPoolExecutor(self.workers, "decode") as pool:
            try:
                running = [pool.submit(self._receive, number) for number in range(self.workers)]
                self._drive()
            finally:
                self.jobs.stop.set()
                for process in list(self.processes.values()):
                    process.kill()
        for future in running:
            future.result()
        self.encoder.flush()
        self._write_complete()
        self.jobs.wait()

    # This part runs in one thread per process.

    def _receive(self, number: int) -> None:
        process: DecodingProcess | None = None
        try:
            for job in self.jobs.pending():
                process = process or DecodingProcess()
                self.processes[number] = process
                try:
                    for item in process.decode(job.path, self.settings | {"name": job.name}, self._buffer):
                        self.events.put((job, item))
                        if self.jobs.stop.is_set():
                            return
                except UserError as error:
                    self.events.put((job, str(error)))
                except DecoderCrashError as error:
                    process.close()
                    process = None
                    self.events.put((job, str(error)))
        except _StoppedError:
            pass
        finally:
            if process is not None:
                process.close()
            self.events.put(None)

    def _buffer(self) -> np.ndarray:
        while not self.jobs.stop.is_set():
            try:
                return self.free.get(timeout=_TICK)
            except queue.Empty:
                continue
        raise _StoppedError

    # This part runs in the calling thread.

    def _drive(self) -> None:
        receiving = self.workers
        while receiving:
            begin = time.perf_counter()
            event: _Event | None = None
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=_TICK)
                receiving -= event is None
            self.jobs.report.waited += time.perf_counter() - begin
            if event is not None:
                self._handle(*event)
                self._write_complete()
            self.jobs.check()
            self.jobs.progress.show()

    def _handle(self, job: Job, event: Opened | np.ndarray | Ended | str) -> None:
        if isinstance(event, Opened):
            self.videos[job] = _Video(event)
        elif isinstance(event, np.ndarray):
            video = self.videos[job]
            encoded = self.encoder.add(job, torch.from_numpy(event))
            self.free.put(event)
            video.segments += 1
            claimed = video.opened.frames or math.inf
            self.jobs.progress.advance(job.name, SEGMENT, video.segments * SEGMENT / claimed, encoded)
        elif isinstance(event, Ended):
            self.videos[job].ended = event
            self.encoder.end(job)
        else:
            self.videos.pop(job, None)
            self.encoder.drop(job)
            self.jobs.fail(job.name, event)

    def _write_complete(self) -> None:
        for encoded in self.encoder.complete():
            video = self.videos.pop(encoded.key)
            assert video.ended is not None
            sidecar = sidecar_of(encoded.key, self.settings, video.opened, video.ended, video.segments, encoded.density)
            self.jobs.write(encoded.key, Features(encoded.image, encoded.event, sidecar))


class _StoppedError(Exception):
    """Raised in a thread that must end."""
