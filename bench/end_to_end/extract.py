"""`python -m bench extract`: frames per second of every stage of extraction and of the whole, against the plain way.

The plain way decodes the video once for each of the ten crops, and resizes, cuts, differences and encodes that crop on
its own. Where the time of the whole goes is measured in the running pipeline: the encoder's busy time over all.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from bench import plain
from bench.end_to_end import _plain_extraction as plainly
from bench.end_to_end import _records as records
from bench.end_to_end._clip import write_clip, write_frames
from bench.end_to_end._records import Row, find, time_ways
from bench.providers import ten_crop_events
from bench.tables import significant, text_table
from bench.targets import Target
from bench.timing import Budget, quartiles
from ief_kernels import event_synthesis
from iefvad.encoders.encoder import Encoder
from iefvad.extraction.config import ExtractConfig, encoder_of
from iefvad.extraction.extract import extract
from iefvad.utils.errors import UserError
from iefvad.video import CROP, SEGMENT, crops, read_frames, resize

ENCODERS = ("random-vit", "descriptor")
ALL = list(range(10))
FRAMES, WHOLE_FRAMES = 608, 160
"""Frames of the clip, and of its beginning that the slow plain way is compared on, of whole segments."""
QUICK_FRAMES, QUICK_WHOLE_FRAMES = 64, 16
PLAIN_RATE = 115.0
"""Frames per second of plain event maps that the project's target was set by."""
BUDGET = Budget(rounds=15, provider_seconds=3.0, single_seconds=20.0)
WHOLE = Budget(rounds=3, least_rounds=3, provider_seconds=120.0, single_seconds=240.0)
QUICK = Budget(rounds=2, least_rounds=1, provider_seconds=0.1, single_seconds=20.0, quick=True)


class BusyEncoder:
    """An encoder that counts the seconds for which it was busy, from its `first` call on.

    On a GPU the work is timed by events there, so that nothing waits for it before `seconds` is asked for.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._busy = 0.0
        self._events: list[tuple[Any, Any]] = []
        self.first: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_image(self, frames: Tensor) -> Tensor:
        return self._timed(self._encoder.encode_image, frames)

    def encode_event(self, maps: Tensor) -> Tensor:
        return self._timed(self._encoder.encode_event, maps)

    def seconds(self) -> float:
        """Busy seconds so far."""
        if self._events:
            torch.cuda.synchronize(self._encoder.device)
        return self._busy + sum(a.elapsed_time(b) for a, b in self._events) / 1e3

    def _timed(self, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        began = time.perf_counter()
        if self.first is None:
            self.first = began
        if self._encoder.device.type == "cuda":
            marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            marks[0].record()
            found = call(rows)
            marks[1].record()
            self._events.append(marks)
            return found
        found = call(rows)
        self._busy += time.perf_counter() - began
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = records.make_parser("extract", "Times extraction: its stages, and the whole against the plain way.")
    options = parser.parse_args(argv)
    began = time.perf_counter()
    device, about = records.begin(options)
    with tempfile.TemporaryDirectory() as folder:
        video, short = _videos(options.video, Path(folder), quick=options.quick)
        rows = stages(video, device, quick=options.quick)
        shares = []
        for name in ENCODERS:
            if not options.quick or name == "descriptor":  # the plain way with a model takes minutes
                rows += whole(short, name, device, Path(folder), quick=options.quick)
            for count in (1,) if options.quick else (1, 10):
                found = share(video if count == 1 else short, name, count, device, Path(folder), quick=options.quick)
                shares.append(found)
    targets = targets_of(rows, shares)
    seconds = time.perf_counter() - began
    more: dict[str, Any] = {"video": "made up" if options.video is None else options.video.name, "shares": shares}
    content = records.document(
        "extract", about, quick=options.quick, seconds=seconds, rows=rows, targets=targets, **more
    )
    records.publish(content, options, [records.stage_table(rows), share_table(shares)], targets)
    return 0


def _videos(given: Path | None, folder: Path, *, quick: bool) -> tuple[Path, Path]:
    """The video, and one of its first segments for what is slow. Raises UserError for a video without a segment."""
    frames = QUICK_WHOLE_FRAMES if quick else WHOLE_FRAMES
    video, short = given or folder / "clip.mp4", folder / "short.mp4"
    if given is None:
        write_clip(video, frames=QUICK_FRAMES if quick else FRAMES)
    first = _first(video, frames)
    if len(first) < SEGMENT:
        raise UserError(f"{video} has fewer than {SEGMENT} frames; give a longer --video")
    write_frames(short, first[: len(first) // SEGMENT * SEGMENT])
    return video, short


def _first(video: Path, count: int) -> np.ndarray:
    """The first frames of a video at their own size, uint8 (n, H, W, 3)."""
    frames = []
    with contextlib.closing(cast(Any, read_frames(video, on_truncated="keep"))) as decoded:
        for frame in decoded:
            frames.append(frame)
            if len(frames) == count:
                break
    return np.stack(frames)


def stages(video: Path, device: torch.device, *, quick: bool) -> list[Row]:
    """Each stage on its own: decoding, image crops, event maps, encoders."""
    cpu = torch.device("cpu")
    budget = QUICK if quick else BUDGET
    frames = _first(video, SEGMENT if quick else 4 * SEGMENT)
    frames = np.ascontiguousarray(frames[: len(frames) // SEGMENT * SEGMENT])
    pixels = torch.from_numpy(frames)
    decoded = sum(1 for _ in read_frames(video, on_truncated="keep"))
    rows = time_ways(
        "decode", {"ours": lambda: _decode(video), "cv2": lambda: _decode_cv2(video)}, decoded, budget, cpu
    )
    images: dict[str, Callable[[], object]] = {
        "resize alone": lambda: resize(frames),
        "ours": lambda: crops(resize(frames), ALL),
        "plain": lambda: plainly.image_crops(frames),
    }
    rows += time_ways("resize, ten crops", images, len(frames), budget, cpu)
    events: dict[str, Callable[[], object]] = {
        "ours": lambda: ten_crop_events(pixels, backend="auto"),
        "frame after frame": lambda: plain.ten_crop_events(pixels),
        "reference": lambda: ten_crop_events(pixels, backend="reference"),
        "plain": lambda: plainly.ten_crop_events(frames),
    }
    rows += time_ways("events, ten crops", events, len(frames), budget, cpu)
    cut = torch.from_numpy(crops(resize(frames[:SEGMENT]), [0])[:, 0])
    maps = event_synthesis(torch.from_numpy(resize(frames[:SEGMENT])))[None, :CROP, :CROP].repeat(4, 1, 1)
    for name in ENCODERS:
        encoder = _encoder(name, device, 1)
        calls = {name: _call(encoder.encode_image, cut)}
        rows += time_ways("encoder, frames", calls, len(cut), budget, device)
        rows += time_ways("encoder, maps", {name: _call(encoder.encode_event, maps)}, len(maps), budget, device)
    return rows


def _call(encode: Callable[[Tensor], Tensor], rows: Tensor) -> Callable[[], object]:
    return lambda: encode(rows)


def _decode(video: Path) -> int:
    return sum(1 for _ in read_frames(video, on_truncated="keep"))


def _decode_cv2(video: Path) -> int:
    capture = cv2.VideoCapture(str(video))
    count = 0
    while True:
        there, frame = capture.read()
        if not there:
            break
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        count += 1
    capture.release()
    if not count:
        raise RuntimeError("cv2 cannot decode it")
    return count


def _encoder(name: str, device: torch.device, count: int) -> Encoder:
    return encoder_of(_config(name, device, count))


def _config(name: str, device: torch.device, count: int) -> ExtractConfig:
    return replace(ExtractConfig(), crops=count, image_model=name, device=device.type, quiet=True)  # type: ignore[arg-type]


def _extracted(video: Path, config: ExtractConfig, encoder: Encoder, folder: Path) -> Any:
    """One call of `extract` into a store of its own; its report."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        report = extract([video], Path(out) / "store", config, encoder=encoder)
    if report.failed:
        raise UserError(next(iter(report.failed.values())))
    return report


def whole(video: Path, name: str, device: torch.device, folder: Path, *, quick: bool) -> list[Row]:
    """Ten crops of a video through `iefvad.extract` and in the plain way, with the same encoder."""
    config = _config(name, device, 10)
    encoder = encoder_of(config)
    frames = _decode(video)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: _extracted(video, config, encoder, folder),
        "plain": lambda: plainly.extract(video, encoder, ALL),
    }
    return time_ways(f"whole, ten crops, {name}", calls, frames, QUICK if quick else WHOLE, device)


def share(video: Path, name: str, count: int, device: torch.device, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Where the time of `extract` goes, over some calls: medians, and the quartiles of the fraction not encoding.

    `not_encoding` is of the time from the encoder's first call to the end of the call, `of_all` of the whole call, with
    the start of the decoding process and the opening of the video in it.
    """
    config = _config(name, device, count)
    encoder = encoder_of(config)
    encoder.encode_image(torch.zeros(encoder.batch, CROP, CROP, 3, dtype=torch.uint8))
    samples: list[tuple[float, float, float, float, float]] = []
    frames = 0
    for _ in range(1 if quick else 5):
        busy = BusyEncoder(encoder)
        began = time.perf_counter()
        report = _extracted(video, config, cast(Encoder, busy), folder)
        ended = time.perf_counter()
        assert busy.first is not None
        seconds, running, encoding = ended - began, ended - busy.first, busy.seconds()
        samples.append((seconds, encoding, 1 - encoding / running, 1 - encoding / seconds, report.waited))
        frames = report.frames
    seconds, encoding, _, of_all, waited = map(statistics.median, zip(*samples, strict=True))
    low, median, high = quartiles([sample[2] for sample in samples])
    return {
        "encoder": name,
        "crops": count,
        "frames": frames,
        "runs": len(samples),
        "seconds": seconds,
        "encoding_seconds": encoding,
        "waited_seconds": waited,
        "frames_per_s": frames / seconds,
        "not_encoding": median,
        "not_encoding_q1": low,
        "not_encoding_q3": high,
        "of_all": of_all,
    }


def share_table(shares: Sequence[dict[str, Any]]) -> str:
    """One line an encoder and number of crops."""
    lines = [
        (
            found["encoder"],
            str(found["crops"]),
            str(found["frames"]),
            significant(found["frames_per_s"]),
            f"{found['not_encoding']:.1%} ({found['not_encoding_q1']:.1%} to {found['not_encoding_q3']:.1%})",
            f"{found['of_all']:.1%}",
            f"{found['waited_seconds'] / found['seconds']:.1%}",
        )
        for found in shares
    ]
    header = ("extract with", "crops", "frames", "frames/s", "not encoding", "start included", "waiting for frames")
    return text_table(header, lines)


def targets_of(rows: Sequence[Row], shares: Sequence[dict[str, Any]]) -> list[Target]:
    """The project's figures for extraction."""
    ours = find(rows, "events, ten crops", "ours")
    rate = None if ours is None else ours.frames_per_s
    loop = find(rows, "events, ten crops", "frame after frame")
    slow = find(rows, "events, ten crops", "plain")
    times = None if ours is None else ours.times_plain
    note = ""
    if rate and loop is not None and loop.frames_per_s:
        note = f"{significant(rate / loop.frames_per_s)}× a loop over frames that keeps the last luma"
    found = [
        Target("event pipeline, ten crops, decode excluded: times plain", 100, times, note=note),
        Target(
            f"event pipeline: frames/s, 100 times the {PLAIN_RATE:.0f} of the plain way when the target was set",
            100 * PLAIN_RATE,
            rate,
            note="" if slow is None or slow.frames_per_s is None else f"plain here: {significant(slow.frames_per_s)}",
        ),
    ]
    for entry in shares:
        if entry["encoder"] == "random-vit":
            name = f"extraction with a small encoder ({entry['encoder']}), {entry['crops']} crop(s): share not encoding"
            note = f"{entry['of_all']:.3f} with the start"
            found.append(Target(name, 0.15, entry["not_encoding"], at_most=True, note=note))
    return found
