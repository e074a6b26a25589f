"""`python -m iefvad.extract VIDEOS --out STORE`: video files to a feature store, once, resumable."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from iefvad.command import command
from iefvad.encoders import Encoder, Precision, build_encoder
from iefvad.errors import UserError
from iefvad.files import write_text
from iefvad.options import add_options, from_namespace, make_parser, option
from iefvad.store import FeatureStore, Sidecar, hash_file
from iefvad.stream import CROPS, FeatureStream, SegmentFeatures, encode_segments, stream_features
from iefvad.video import SEGMENT, find_videos

__all__ = [
    "ExtractConfig",
    "ExtractReport",
    "FeatureStream",
    "SegmentFeatures",
    "encode_segments",
    "extract",
    "main",
    "store_settings",
    "stream_features",
]

FAILED = "failed.csv"
"""File in the store that lists the videos which could not be extracted: name, path, reason."""


@dataclass
class ExtractConfig:
    """Settings of `python -m iefvad.extract`."""

    # What is computed; the store keeps these and refuses others.
    crops: Literal[1, 5, 10] = option(1, "crops of each picture: the centre, that and the corners, those and mirrored")
    threshold: float = option(10.0, "change of brightness, in grey levels of 0 to 255, that counts as an event")
    clamp: int = option(10, "events at one pixel in one segment beyond this number count as this number")
    normalize: Literal["clamp", "segment"] = option(
        "clamp", "what event counts are divided by: --clamp, or the highest count in the segment"
    )
    tail: Literal["drop", "repeat"] = option(
        "drop", "a last segment of fewer than 16 frames: leave it out, or fill it with its last frame"
    )

    # Encoders.
    image_model: str = option(
        "descriptor",
        "descriptor or random-vit (both need no weights), an open_clip model such as ViT-L-14-quickgelu, or"
        " local-dir:FOLDER with open_clip_config.json and weights",
    )
    image_weights: str | None = option(None, "its weights, a .safetensors file; random:SEED tries the path without any")
    event_model: str | None = option(None, "model of the event stream [default: that of the images]")
    event_weights: str | None = option(None, "weights of the event stream [default: those of the images]")

    # How it is run; features do not depend on it, up to rounding.
    batch: int = option(64, "frames in one pass of the encoder")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    precision: Precision = option("auto", "arithmetic of the encoder; auto: bfloat16 on a GPU, float32 on a CPU")
    workers: int = option(0, "videos worked on at a time; 0: all cores for the descriptor on the CPU, else 1")
    on_truncated: Literal["error", "keep"] = option(
        "error", "a video that breaks off: list it as failed, or keep what there is"
    )
    quiet: bool = option(False, "show no progress bar")


@dataclass
class ExtractReport:
    """What a call of `extract` did: names done and skipped (already there), failed {name: reason}, seconds, frames."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    frames: int = 0


@dataclass(frozen=True)
class _Job:
    name: str
    path: Path
    source_hash: str


class _Stopped(Exception):
    """Raised inside a worker that is asked to end."""


def store_settings(encoder: Encoder, config: ExtractConfig) -> dict[str, Any]:
    """What a store keeps of how its features were made: `encoder.settings`, where weights lay, crops and events."""
    return {
        **encoder.settings,
        **encoder.weights,
        "crops": CROPS[config.crops],
        "threshold": config.threshold,
        "clamp": config.clamp,
        "normalize": config.normalize,
        "tail": config.tail,
    }


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
    (KeyboardInterrupt comes through) loses the unfinished ones only. `encoder` replaces the one that `config`
    describes. Raises UserError if there are no videos, if two would have one name, if the store was made with other
    settings, or if the disk is full.
    """
    config = config or ExtractConfig()
    _check(config)
    paths = _named(videos)
    encoder = encoder or build_encoder(
        image_model=config.image_model,
        image_weights=config.image_weights,
        event_model=config.event_model,
        event_weights=config.event_weights,
        device=config.device,
        precision=config.precision,
        batch=config.batch,
    )
    store = _open_store(Path(out), store_settings(encoder, config))
    return _Extraction(store, encoder, config, paths).run()


class _Extraction:
    """One call of `extract`: worker threads decode and encode, the calling thread writes, counts and shows progress."""

    def __init__(self, store: FeatureStore, encoder: Encoder, config: ExtractConfig, paths: dict[str, Path]) -> None:
        self.store, self.encoder, self.config, self.paths = store, encoder, config, paths
        self.settings = store.settings | {"on_truncated": config.on_truncated}
        self.workers = min(_workers(config.workers, encoder), len(paths))
        self.report = ExtractReport()
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.shares: dict[str, float] = {}  # of videos in work: the part that is done
        self.begin = time.perf_counter()
        self.shown = -math.inf

    def run(self) -> ExtractReport:
        threads = torch.get_num_threads()
        try:
            with self._bar() as self.bar, ThreadPoolExecutor(self.workers, "video", self._start_worker) as pool:
                try:
                    self._drive(pool)
                finally:
                    self.stop.set()
                    pool.shutdown(cancel_futures=True)
        finally:
            torch.set_num_threads(threads)
            self.report.seconds = time.perf_counter() - self.begin
            # After a full disk these would raise again, and hide what happened.
            with contextlib.nullcontext() if sys.exc_info()[0] is None else contextlib.suppress(UserError):
                _record_failures(self.store.root, self.paths, self.report.failed)
                self.store.write_index()
        return self.report

    def _start_worker(self) -> None:
        if self.workers > 1:
            torch.set_num_threads(1)  # videos are the unit of parallel work; torch's own threads would only compete

    def _bar(self) -> tqdm[Any]:
        return tqdm(
            total=len(self.paths),
            disable=self.config.quiet,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} videos [{elapsed}<{remaining}{postfix}]",
        )

    def _show(self) -> None:
        """Move the bar, counting videos in work by the share of their frames that is done."""
        now = time.perf_counter()
        if now - self.shown < (0.2 if sys.stderr.isatty() else 15.0):
            return
        self.shown = now
        finished = len(self.report.done) + len(self.report.skipped) + len(self.report.failed)
        with self.lock:
            self.bar.n = finished + sum(self.shares.values())
        self.bar.set_postfix_str(f"{self.report.frames / (now - self.begin):.0f} frames/s")

    def _drive(self, pool: ThreadPoolExecutor) -> None:
        jobs = self._jobs()
        running: dict[Future[tuple[np.ndarray, np.ndarray, Sidecar]], _Job] = {}
        more = True
        while more or running:
            while more and len(running) <= self.workers:
                job = next(jobs, None)
                if job is None:
                    more = False
                else:
                    running[pool.submit(self._features, job)] = job
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                self._finish(running.pop(future), future)
            self._show()
        self.shown = -math.inf
        self._show()

    def _jobs(self) -> Iterator[_Job]:
        """Videos that the store does not hold yet, found as they are asked for."""
        for name, path in self.paths.items():
            try:
                source_hash = hash_file(path)
            except OSError as error:
                self._fail(name, f"{path} cannot be read ({error.strerror or error})")
                continue
            if self.store.is_current(name, source_hash):
                self.report.skipped.append(name)
            else:
                yield _Job(name, path, source_hash)

    def _features(self, job: _Job) -> tuple[np.ndarray, np.ndarray, Sidecar]:
        """Worker: all features of one video, (C, T, D) float32 each."""
        # A thread that decodes ahead helps where the encoder leaves cores idle.
        prefetch = self.workers == 1 or self.encoder.device.type == "cuda"
        stream = FeatureStream(job.path, self.encoder, self.settings, prefetch=prefetch)
        claimed = stream.segments.info.frames or math.inf
        image, event, density = [], [], []
        with contextlib.closing(iter(stream)) as segments:
            for segment in segments:
                if self.stop.is_set():
                    raise _Stopped
                image.append(segment.image.numpy())
                event.append(segment.event.numpy())
                density.append(segment.density)
                with self.lock:
                    self.report.frames += SEGMENT
                    self.shares[job.name] = min(1.0, len(image) * SEGMENT / claimed)
        sidecar = Sidecar(
            name=job.name,
            source=str(job.path),
            source_hash=job.source_hash,
            fps=stream.fps,
            frames=stream.segments.frames_read,
            segments=len(image),
            frames_dropped=stream.segments.frames_dropped,
            crops=self.settings["crops"],
            event_density=density,
        )
        return np.stack(image, 1), np.stack(event, 1), sidecar

    def _finish(self, job: _Job, future: Future[tuple[np.ndarray, np.ndarray, Sidecar]]) -> None:
        try:
            image, event, sidecar = future.result()
            self.store.write(job.name, image, event, sidecar)
        except UserError as error:
            if isinstance(error.__cause__, OSError) and future.exception() is None:
                raise  # the disk, not the video
            self._fail(job.name, str(error))
        else:
            self.report.done.append(job.name)
        finally:
            with self.lock:
                self.shares.pop(job.name, None)

    def _fail(self, name: str, reason: str) -> None:
        self.report.failed[name] = reason
        self.bar.write(f"iefvad extract: {name} failed: {reason}", file=sys.stderr)


def _check(config: ExtractConfig) -> None:
    if config.crops not in CROPS:
        raise UserError(f"--crops must be 1, 5 or 10, not {config.crops}.")
    if not config.threshold >= 0:
        raise UserError(f"--threshold must not be negative, not {config.threshold}.")
    if not 1 <= config.clamp <= 255:
        raise UserError(f"--clamp must lie between 1 and 255, not {config.clamp}.")
    if config.workers < 0:
        raise UserError(f"--workers must not be negative, not {config.workers}.")


def _workers(wanted: int, encoder: Encoder) -> int:
    if wanted:
        return wanted
    light = encoder.device.type == "cpu" and encoder.settings["image_encoder"] == "descriptor"
    return len(os.sched_getaffinity(0)) if light and hasattr(os, "sched_getaffinity") else 1


def _named(videos: Sequence[str | Path]) -> dict[str, Path]:
    """The videos by their names in the store: the path below the given folder, or the file's name, without suffix."""
    named: dict[str, Path] = {}
    for given in map(Path, videos):
        for path in find_videos([given]):
            name = (path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix("").as_posix()
            other = named.setdefault(name, path)
            if not other.samefile(path):
                raise UserError(f"{other} and {path} would both be stored as {name}: rename one, or use two stores.")
    return named or {path.stem: path for path in find_videos(list(videos))}


def _open_store(root: Path, settings: dict[str, Any]) -> FeatureStore:
    """Open or create the store; weights that have moved but are the same are no difference."""
    if (root / "store.json").is_file():
        stored = FeatureStore(root).settings
        for stream in ("image", "event"):
            if stored.get(f"{stream}_weights_hash") != settings[f"{stream}_weights_hash"]:
                continue
            settings.pop(f"{stream}_weights", None)
            if f"{stream}_weights" in stored:
                settings[f"{stream}_weights"] = stored[f"{stream}_weights"]
            encoder = f"{stream}_encoder"
            if all(str(side.get(encoder)).startswith("local-dir:") for side in (stored, settings)):
                settings[encoder] = stored[encoder]
    return FeatureStore(root, settings=settings, create=True)


def _record_failures(root: Path, paths: dict[str, Path], failed: dict[str, str]) -> None:
    """Rewrite failed.csv: this call's failures, and earlier ones of videos that this call was not given."""
    path = root / FAILED
    rows: list[tuple[str, str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row[0], row[1], row[2]) for row in csv.reader(file) if len(row) == 3 and row[0] not in paths][1:]
    rows += [(name, str(paths[name]), reason) for name, reason in failed.items()]
    if rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("name", "path", "reason"), *rows])
        write_text(path, text.getvalue())
    else:
        path.unlink(missing_ok=True)


@command("extract")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `iefvad extract`; 0 if every video is in the store, 1 if some failed."""
    parser = make_parser(
        "extract",
        "Turn videos into a feature store, which training and evaluation read. Each video is decoded once: its pictures"
        " and its event maps (where brightness changed) go through an encoder, a row of features for every 16 frames."
        " Run the same command again to go on after an interruption or to add new videos. Without --image-model it uses"
        " a fixed descriptor, which needs no weights and no GPU.",
        usage="VIDEO [VIDEO ...] --out STORE [options]",
    )
    parser.add_argument("videos", nargs="+", type=str, help="video files, or folders that hold some", metavar="VIDEO")
    parser.add_argument("--out", required=True, type=str, help="folder of the feature store", metavar="STORE")
    groups = {
        "crops": "features (a store holds one choice of these)",
        "image_model": "encoders",
        "batch": "how it is run",
    }
    add_options(parser, ExtractConfig, groups)
    arguments = parser.parse_args(argv)
    config = from_namespace(ExtractConfig, arguments)
    try:
        report = extract(arguments.videos, arguments.out, config)
    except KeyboardInterrupt:
        print(
            "\niefvad extract: interrupted; finished videos are kept, run the same command to go on.", file=sys.stderr
        )
        return 130
    print(_summary(report, arguments.out))
    return 1 if report.failed else 0


def _summary(report: ExtractReport, out: str) -> str:
    total = len(report.done) + len(report.skipped) + len(report.failed)
    rate = f", {report.frames} frames at {report.frames / report.seconds:.0f} frames/s" if report.frames else ""
    text = f"{len(report.done)} of {total} videos extracted, {len(report.skipped)} were there already{rate}: {out}"
    if report.failed:
        text += f"\n{len(report.failed)} failed, listed with their reasons in {Path(out) / FAILED}"
    return text


if __name__ == "__main__":
    raise SystemExit(main(None))
