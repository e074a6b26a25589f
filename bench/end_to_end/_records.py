"""What `bench extract` and `bench detect` share: timed rows, their table, and the file in which they are kept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import environment
from bench.command import FORMAT, RESULTS
from bench.tables import duration, significant, spread, text_table
from bench.targets import Target, target_table
from bench.timing import Budget, Run, Stopwatch, Timing, interleave, ratio


@dataclass
class Row:
    """One way through one stage on `frames` frames; times are None, with a `reason`, where it was not measured."""

    stage: str
    way: str
    frames: int
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    repeats: int = 0
    frames_per_s: float | None = None
    times_plain: float | None = None
    reason: str | None = None


def time_ways(
    stage: str, calls: Mapping[str, Callable[[], object]], frames: int, budget: Budget, device: torch.device
) -> list[Row]:
    """Times ways through a stage in turn; each row is compared with the way called "plain", if there is one."""

    def runner(call: Callable[[], object]) -> Run:
        def run(_: int) -> dict[str, float]:
            watch = Stopwatch(device, latency=True)
            watch.start()
            call()
            watch.mark()
            return {"all": watch.seconds()[0]}

        return run

    timings, failures = interleave({name: runner(call) for name, call in calls.items()}, budget)
    rows = [_row(stage, name, frames, timings.get(name), failures.get(name)) for name in calls]
    compare(rows)
    return rows


def compare(rows: Iterable[Row]) -> None:
    """Sets `times_plain` of rows of one stage."""
    rows = list(rows)
    plain = next((row.median_ms for row in rows if row.way == "plain"), None)
    for row in rows:
        if plain is not None and row.median_ms is not None:
            row.times_plain = ratio(plain, row.median_ms)


def _row(stage: str, way: str, frames: int, timing: Timing | None, reason: str | None) -> Row:
    row = Row(stage, way, frames, reason=reason)
    if timing is not None:
        low, median, high = timing.quartiles("all")
        row.q1_ms, row.median_ms, row.q3_ms = low * 1e3, median * 1e3, high * 1e3
        row.repeats, row.frames_per_s = len(timing.samples["all"]), frames / median
    return row


def find(rows: Iterable[Row], stage: str, way: str) -> Row | None:
    """The measured row of a stage and way."""
    return next((row for row in rows if (row.stage, row.way) == (stage, way) and row.median_ms is not None), None)


def stage_table(rows: Sequence[Row]) -> str:
    """One line per row; why a way was not measured stands in its place."""
    lines = []
    last = ""
    for row in rows:
        head = (row.stage if row.stage != last else "", row.way)
        last = row.stage
        if row.median_ms is None or row.q1_ms is None or row.q3_ms is None or row.frames_per_s is None:
            lines.append((*head, row.reason or "", "", "", "", "", ""))
            continue
        quartiles = spread(row.q1_ms, row.median_ms, row.q3_ms)
        times = "" if row.times_plain is None else significant(row.times_plain)
        rate = f"{row.frames_per_s:,.0f}" if row.frames_per_s >= 100 else significant(row.frames_per_s)
        numbers = (str(row.frames), duration(row.median_ms), quartiles, str(row.repeats), rate, times)
        lines.append((*head, *numbers))
    header = ("stage", "way", "frames", "median", "quartiles", "runs", "frames/s", "× plain")
    return text_table(header, lines, left=2)


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options that both have."""
    parser = argparse.ArgumentParser(prog=f"python -m bench {name}", description=description)
    parser.add_argument("--video", type=Path, metavar="FILE", help="a video instead of a made-up clip of 320×240")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the encoder (default: cpu)")
    parser.add_argument("--quick", action="store_true", help="a short clip, few runs: seconds")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="folder of the JSON file (default: bench/results)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the tables")
    return parser


def begin(options: argparse.Namespace) -> tuple[torch.device, dict[str, Any]]:
    """The device and what is known of the machine, which is printed. Raises UserError for a GPU that is not there."""
    device = environment.device(options.device)
    about = environment.describe(device)
    if not options.json:
        print(heading(about) + "\n", flush=True)
    return device, about


def document(
    benchmark: str,
    about: Mapping[str, Any],
    *,
    quick: bool,
    seconds: float,
    rows: Sequence[Row],
    targets: Sequence[Target],
    **more: Any,
) -> dict[str, Any]:
    """The content of a result file."""
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        **about,
        "quick": quick,
        "seconds": round(seconds, 1),
        "results": [asdict(row) for row in rows],
        **more,
        "targets": [target.record() for target in targets],
    }


def publish(
    content: Mapping[str, Any], options: argparse.Namespace, tables: Sequence[str], targets: Sequence[Target]
) -> None:
    """Writes the file, and prints the tables, or the JSON where that was asked for."""
    text = json.dumps(content, indent=1, allow_nan=False)
    stem = "_".join([environment.key(dict(content)), content["benchmark"], *(["quick"] if content["quick"] else [])])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{stem}.json"
    path.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
        return
    parts = [*tables, *(["Targets:\n" + target_table(targets)] if targets else []), f"Written to {path}"]
    print("\n\n".join(parts), flush=True)


def heading(about: dict[str, Any]) -> str:
    """Device and versions; says when the machine is not quiet."""
    load = about["load"]
    text = f"{environment.name(about)}; native kernels: {about['native']}; {about['date']}"
    if load is not None and load > 0.5:
        text += f"\nThe machine is not quiet (load {load}): times are provisional, ratios less so."
    return text
