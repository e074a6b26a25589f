"""The engine of one machine: processes decode, the calling thread feeds the encoder across videos."""

from __future__ import annotations

import contextlib
import math
import os
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
from iefvad.extraction.jobs import Features, Job, Record, sidecar_of
from iefvad.extraction.threads import run_lanes
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT

_TICK = 0.2  # seconds after which a waiting thread looks up


def run_local(record: Record, encoder: Encoder, settings: dict[str, Any], workers: int) -> None:
    """Extract what the record's store lacks. settings: the store's, and `on_truncated`. workers: 0 chooses."""
    light = encoder.device.type == "cpu" and encoder.settings["image_encoder"] == "descriptor"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A GPU takes frames faster than most machines decode; a model on the CPU is many times slower than decoding.
    pays = cores if light else cores - 1 if encoder.device.type == "cuda" else cores // 4
    workers = min(workers or max(1, pays), len(record.paths))
    if light:
        run_lanes(record, encoder, settings, workers)
    else:
        _Pipeline(record, encoder, settings, workers).run()


@dataclass
class _Video:
    opened: Opened
    segments: int = 0
    ended: Ended | None = None


_Event = tuple[Job, Opened | np.ndarray | Ended | str]


class _Pipeline:
    """One run: a thread for each decoding process receives its segments, the calling thread encodes them."""

    def __init__(self, record: Record, encoder: Encoder, settings: dict[str, Any], workers: int) -> None:
        self.record, self.settings, self.workers = record, settings, workers
        self.encoder: VideoEncoder[Job] = VideoEncoder(encoder, settings)
        self.pinned = encoder.device.type == "cuda"
        self.videos: dict[Job, _Video] = {}
        # From the threads: what became of a video (str: why it failed), a segment, or None from a thread that ends.
        self.events: queue.SimpleQueue[_Event | None] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        self.processes: dict[int, DecodingProcess] = {}

    def run(self) -> None:
        """Extract all videos. Raises what `Record.check` does, and RuntimeError if no decoding process starts."""
        for _ in range(2 * self.workers + 2):
            self.free.put(torch.empty(SHAPE, dtype=torch.uint8, pin_memory=self.pinned).numpy())
        with ThreadPoolExecutor(self.workers, "decode") as pool:
            try:
                running = [pool.submit(self._receive, number) for number in range(self.workers)]
                self._drive()
            finally:
                self.record.stop.set()
                for process in list(self.processes.values()):
                    process.kill()
        for future in running:
            future.result()
        self.encoder.flush()
        self._write_complete()
        self.record.wait()

    # In a thread for each process.

    def _receive(self, number: int) -> None:
        process: DecodingProcess | None = None
        try:
            for job in self.record.jobs():
                process = process or DecodingProcess()
                self.processes[number] = process
                try:
                    for item in process.decode(job.path, self.settings, self._buffer):
                        self.events.put((job, item))
                        if self.record.stop.is_set():
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
        while not self.record.stop.is_set():
            try:
                return self.free.get(timeout=_TICK)
            except queue.Empty:
                continue
        raise _StoppedError

    # In the calling thread.

    def _drive(self) -> None:
        receiving = self.workers
        while receiving:
            begin = time.perf_counter()
            event: _Event | None = None
            with contextlib.suppress(queue.Empty):
                event = self.events.get(timeout=_TICK)
                receiving -= event is None
            self.record.report.waited += time.perf_counter() - begin
            if event is not None:
                self._handle(*event)
                self._write_complete()
            self.record.check()
            self.record.progress.show()

    def _handle(self, job: Job, event: Opened | np.ndarray | Ended | str) -> None:
        if isinstance(event, Opened):
            self.videos[job] = _Video(event)
        elif isinstance(event, np.ndarray):
            video = self.videos[job]
            self.encoder.add(job, torch.from_numpy(event))
            self.free.put(event)
            video.segments += 1
            claimed = video.opened.frames or math.inf
            self.record.progress.advance(job.name, SEGMENT, video.segments * SEGMENT / claimed)
        elif isinstance(event, Ended):
            self.videos[job].ended = event
            self.encoder.end(job)
        else:
            self.videos.pop(job, None)
            self.encoder.drop(job)
            self.record.fail(job.name, event)

    def _write_complete(self) -> None:
        for encoded in self.encoder.complete():
            video = self.videos.pop(encoded.key)
            assert video.ended is not None
            sidecar = sidecar_of(encoded.key, self.settings, video.opened, video.ended, video.segments, encoded.density)
            self.record.write(encoded.key, Features(encoded.image, encoded.event, sidecar))


class _StoppedError(Exception):
    """Raised in a thread that is asked to end."""
