"""Which videos are still to do, and what became of each: the store, the report and failed.csv."""

from __future__ import annotations

import contextlib
import csv
import errno
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from iefvad.encoders.sources import same_encoder
from iefvad.extraction.config import ExtractReport
from iefvad.extraction.decoding import Ended, Opened
from iefvad.extraction.progress import Progress
from iefvad.features.store import FeatureStore, Sidecar, hash_file, is_store, with_defaults
from iefvad.utils.csv_text import CsvRows, csv_text
from iefvad.utils.errors import UserError
from iefvad.utils.files import remove_left_over, write_text
from iefvad.utils.text import readable
from iefvad.video import ClockReport, hash_folder, unreadable

FAILED = "failed.csv"
"""File in the store that lists the videos that could not be extracted: name, path, reason."""

_COLUMNS = ["name", "path", "reason"]

_WRITING = 4  # videos that may wait for the disk; with more of them the encoder waits


@dataclass(frozen=True)
class Job:
    """One video to extract.

    Attributes:
        name: Its name in the store.
        path: Its file or folder of frames.
        source_hash: The hash of it.
        state: What `state_of` returned before it was hashed, or None.
    """

    name: str
    path: Path
    source_hash: str
    state: object = None


@dataclass
class Features:
    """All features of one video: `image` and `event` are float32 (C, T, D) on any device."""

    image: Tensor
    event: Tensor
    sidecar: Sidecar


class Jobs:
    """The jobs of one extraction: gives out videos that the store lacks, and stores the features that engines bring.

    Use it as a context manager. On exit it waits for pending writes, rewrites failed.csv and the index, and completes
    `report`. All methods may be called from several threads.

    Args:
        store: The store to write to.
        paths: {name in the store: video file or folder of frames} of all videos.
        quiet: Show no progress bar.
        fps: Frames per second of folders of frames.

    Attributes:
        report: What became of the videos so far.
        progress: The progress bar.
        stop: Set when engines must end.
    """

    def __init__(self, store: FeatureStore, paths: dict[str, Path], *, quiet: bool, fps: float | None = None) -> None:
        self.store, self.paths, self.fps = store, paths, fps
        self.report = ExtractReport()
        self.progress = Progress(paths, quiet=quiet)
        self.stop = threading.Event()
        self._todo = iter(paths.items())
        self._todo_lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, "write")
        self._writing: set[Future[None]] = set()
        self._writing_lock = threading.Lock()
        self._slots = threading.Semaphore(_WRITING)
        self._broken = False
        self._begin = time.perf_counter()

    def __enter__(self) -> Jobs:
        remove_left_over(self.store.root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        try:
            self._writer.shutdown()  # finished videos are kept in any case
            if error is None:
                self.check()
        finally:
            self._complete()
            self.progress.close()
            # After a full disk these would raise again and hide the first error.
            with contextlib.nullcontext() if sys.exc_info()[0] is None else contextlib.suppress(UserError):
                _record_failures(self.store.root, self.paths, self.report.failed)
                self.store.write_index()

    def pending(self) -> Iterator[Job]:
        """Yield the videos that the store lacks. Each goes to one caller, and is looked up when it is asked for."""
        while not self.stop.is_set():
            with self._todo_lock:
                name, path = next(self._todo, (None, None))
            if name is None or path is None:
                return
            try:
                state = state_of(path)
                source_hash = hash_source(path, self.fps)
            except UserError as error:
                self.fail(name, str(error))
                continue
            except (MemoryError, ValueError) as error:  # of one video
                self.fail(name, f"{path} cannot be read ({type(error).__name__}: {error})")
                continue
            if self.store.is_current(name, source_hash):
                self.skip(name)
            else:
                yield Job(name, path, source_hash, state)

    def stored_hash(self, name: str) -> str | None:
        """Return the hash of the file that the stored features were made from, or None if the video is not stored."""
        return self.store.sidecar(name).source_hash if name in self.store else None

    def skip(self, name: str) -> None:
        """Note that the store has the video already."""
        self.report.skipped.append(name)
        self.progress.finish(name, skipped=True)

    def fail(self, name: str, reason: str) -> None:
        """Note that the video could not be extracted, and why."""
        reason = readable(reason)
        self.report.failed[name] = reason
        self.progress.write(f"iefvad extract: {name} failed: {reason}")
        self.progress.finish(name)

    def write(self, job: Job, features: Features) -> None:
        """Store the features of a video in a thread. Waits only if several others are being written."""
        while not self._slots.acquire(timeout=0.2):
            self.check()
        with self._writing_lock:
            self._writing.add(self._writer.submit(self._write, job, features))
        self.check()

    def check(self) -> None:
        """Raise the error of a failed write, such as UserError for a full disk."""
        with self._writing_lock:
            finished, self._writing = wait(self._writing, timeout=0)
        for future in finished:
            future.result()

    def wait(self) -> None:
        """Wait until everything is written. Raises errors as `check` does."""
        while self._writing:
            wait(self._writing, timeout=0.2, return_when=FIRST_COMPLETED)
            self.check()

    def _write(self, job: Job, features: Features) -> None:
        try:
            if self._broken:
                return
            require_unchanged(job.path, job.state)
            self.store.write(job.name, features.image.cpu().numpy(), features.event.cpu().numpy(), features.sidecar)
            self.report.done.append(job.name)
            if features.sidecar.clock is not None:
                for note in ClockReport.from_dict(features.sidecar.clock).notes():
                    self.progress.write(f"iefvad extract: {job.name}: {note}")
            self.progress.finish(job.name)
        except UserError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno != errno.ENAMETOOLONG:
                self._broken = True
                raise  # the disk is the reason, not the video
            self.fail(job.name, str(error))
        except BaseException:
            self._broken = True
            raise
        finally:
            self._slots.release()

    def _complete(self) -> None:
        place = {name: index for index, name in enumerate(self.paths)}
        self.report.done.sort(key=place.__getitem__)
        self.report.skipped.sort(key=place.__getitem__)
        self.report.failed = {name: self.report.failed[name] for name in place if name in self.report.failed}
        self.report.frames, self.report.encoded = self.progress.frames, self.progress.encoded
        self.report.seconds = time.perf_counter() - self._begin


def sidecar_of(
    job: Job, settings: dict[str, Any], opened: Opened, ended: Ended, segments: int, density: list[float]
) -> Sidecar:
    """Return what the store records about a video with the given number of segments."""
    return Sidecar(
        name=job.name,
        source=readable(job.path),
        source_hash=job.source_hash,
        fps=opened.fps,
        frames=ended.frames,
        segments=segments,
        frames_dropped=ended.frames_dropped,
        crops=settings["crops"],
        event_density=density,
        starts=ended.starts,
        ends=ended.ends,
        clock=ended.clock,
    )


def state_of(path: Path) -> object:
    """Return what changes when a video file, or a picture of a folder of frames, is replaced or written to."""
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name) if os.path.isdir(path) else [path]
        states = [entry.stat() for entry in entries]
    except OSError:  # reading it says why
        return None
    return tuple((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


def require_unchanged(path: Path, state: object) -> None:
    """Check that a video is still the one that was hashed.

    Raises:
        UserError: It was replaced or written to since `state` was taken.
    """
    if state is not None and state_of(path) != state:
        raise UserError(f"{path} changed while it was read; run the same command again when it is complete")


def hash_source(path: Path, fps: float | None) -> str:
    """Return the hash of a video file or of a folder of frames.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return hash_folder(path, fps) if os.path.isdir(path) else hash_file(path)
    except OSError as error:
        raise unreadable(Path(error.filename) if isinstance(error.filename, str) else path, error) from None


def open_store(root: Path, settings: dict[str, Any], *, carry: bool | None = None) -> FeatureStore:
    """Open or create the store. Weights that were moved to another path count as the same weights.

    Args:
        root: Folder of the store.
        settings: What it shall record.
        carry: The `carry` that the user wants. None takes that of an existing store, such as one of an older version.

    Raises:
        UserError: The store was made with other settings, or cannot be written.
    """
    if is_store(root):
        stored = FeatureStore(root).settings
        if carry is None:
            settings["carry"] = with_defaults(stored)["carry"]
        for stream in ("image", "event"):
            if stored.get(f"{stream}_weights_hash") != settings[f"{stream}_weights_hash"]:
                continue
            for key in (f"{stream}_weights", f"{stream}_weights_origin"):
                settings.pop(key, None)
                if key in stored:
                    settings[key] = stored[key]
            encoder = f"{stream}_encoder"
            if same_encoder(stored.get(encoder), settings[encoder]):
                settings[encoder] = stored[encoder]
    return FeatureStore(root, settings=settings, create=True)


def _record_failures(root: Path, paths: dict[str, Path], failed: dict[str, str]) -> None:
    """Rewrite failed.csv: the failures of this call, and earlier ones of videos that are not in this call."""
    path = root / FAILED
    rows: list[list[str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file, contextlib.suppress(csv.Error):
            for row in CsvRows(file):  # what is damaged is lost, and is no reason to end
                if len(row) == len(_COLUMNS) and row != _COLUMNS and row[0] not in paths:
                    rows.append(row)
    rows += [[name, readable(paths[name]), reason] for name, reason in failed.items()]
    if rows:
        write_text(path, csv_text([_COLUMNS, *rows]))
    else:
        path.unlink(missing_ok=True)
