"""What `iefvad detect` prints: a summary of each file, and the scores and alarms of live input as they come."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from iefvad.detection.alarm import Alarm
from iefvad.detection.detector import Detector
from iefvad.detection.live import LiveScore, Watch
from iefvad.detection.outputs import Names, write_results
from iefvad.detection.result import Detection
from iefvad.scoring.video_scores import CSV_COLUMNS, csv_row
from iefvad.utils.text import clock
from iefvad.video import SEGMENT

_BAR = 24  # characters
_LISTED = 20  # intervals printed; the files contain all


def summarize(detection: Detection) -> None:
    """Print one video's highest score, speed and flagged intervals."""
    scores, timing = detection.scores, detection.timing
    peak, at = scores.peak
    print(
        f"{scores.source}: {scores.scores.size} segments ({clock(scores.seconds)}), highest score"
        f" {peak:.3f} at {clock(at, 1)},"
        f" {len(detection.intervals)} flagged interval(s)"
    )
    stages = ", ".join(f"{name} {value:.3g}" for name, value in timing.milliseconds().items())
    latency = timing.latency()
    print(f"  {timing.frames_per_second:.0f} frames/s; ms per segment: {stages}")
    if latency is not None:
        print(
            f"  latency from a segment's last frame to its score: median {latency['median_ms']:.0f} ms,"
            f" 95% within {latency['p95_ms']:.0f} ms, longest {latency['max_ms']:.0f} ms"
        )
    for note in detection.clock.notes() if detection.clock is not None else []:
        print(f"  {note}")
    for start, end, top in detection.intervals[:_LISTED]:
        print(f"  {clock(start, 1)} to {clock(end, 1)}   peak {top:.3f}")
    if len(detection.intervals) > _LISTED:
        print(f"  ... and {len(detection.intervals) - _LISTED} more: see the files")
    sys.stdout.flush()


def watch(detector: Detector, address: str, folder: Path) -> int:
    """Score live input until it ends, its duration is over, or the user presses Ctrl-C.

    Each segment is printed and written to NAME.csv at once, so that a kill loses nothing. The other files are written
    at the end.

    Args:
        detector: The detector.
        address: Address of a stream, or a camera.
        folder: Folder for the results.

    Returns:
        The exit status: 0, or 1 where the connection was lost.

    Raises:
        UserError: the input cannot be reached.
    """
    session = Watch(detector, address, notify=lambda text: print(text, flush=True))
    name = Names(folder).fresh(session.name)
    path = folder / f"{name}.csv"
    print(f"{session.source.shown}: connecting; press Ctrl-C to end", flush=True)
    with contextlib.ExitStack() as stack:
        file: TextIO | None = None
        stack.enter_context(_ending_by_signal())
        try:
            for scored in stack.enter_context(contextlib.closing(iter(session))):
                if file is None:
                    folder.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(path.open("w", newline="", encoding="utf-8"))
                    csv.writer(file, lineterminator="\n").writerow(CSV_COLUMNS)
                    print(f"{session.fps:g} frames/s, a score every {SEGMENT / session.fps:.2f} s, written to {path}")
                file.write(_csv_line(name, scored))
                file.flush()
                _print_score(scored, detector.rule.threshold)
        except KeyboardInterrupt:
            if file is None:
                raise
            print("\nended by Ctrl-C", flush=True)
    detection = session.detection()
    for start, end, peak in detection.intervals[-1:]:
        if end >= detection.scores.ends[-1] - 1e-6:
            print(f"the last flagged interval had not ended: {clock(start, 1)} to {clock(end, 1)}, peak {peak:.3f}")
    write_results(detection, folder, name, detector)
    _live_summary(detection, session)
    print(f"results in {folder}: {', '.join(file.name for file in detection.files)}")
    if session.source.gave_up:
        print(f"iefvad detect: {session.source.gave_up}; what was scored is kept.", file=sys.stderr)
        return 1
    return 0


def _live_summary(detection: Detection, session: Watch) -> None:
    summarize(detection)
    health = session.source.health
    if health.dropped:
        print(
            f"  {health.dropped} of {health.frames} frames dropped: scoring could not keep up, or a connection was lost"
        )
    if health.lost:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in health.lost.items())
        print(f"  connection lost {health.lost.total()} time(s): {reasons}")


def _print_score(scored: LiveScore, threshold: float) -> None:
    score = float(scored.row[0])
    for alarm in scored.alarms:
        if alarm.kind == "end":
            _print_alarm(alarm, scored.clock)
    filled = round(_BAR * min(max(score, 0.0), 1.0))
    mark = min(round(_BAR * min(max(threshold, 0.0), 1.0)), _BAR - 1)
    bar = "".join("|" if i == mark else "#" if i < filled else "." for i in range(_BAR))
    flag = " <" if score >= threshold else ""
    print(f"{clock(scored.start, 1)}  {score:.3f}  {bar}  {1000 * scored.latency:4.0f} ms{flag}", flush=True)
    for alarm in scored.alarms:
        if alarm.kind == "start":
            _print_alarm(alarm, scored.clock)


def _print_alarm(alarm: Alarm, now: float) -> None:
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    if alarm.kind == "start":
        print(f"ALARM since {clock(alarm.start, 1)} (now {day}), score {alarm.peak:.3f}", flush=True)
    else:
        print(
            f"alarm over: {clock(alarm.start, 1)} to {clock(alarm.end, 1)} (now {day}), peak {alarm.peak:.3f}",
            flush=True,
        )


def _csv_line(name: str, scored: LiveScore) -> str:
    text = io.StringIO()
    values = [None if np.isnan(value) else float(value) for value in scored.row]
    csv.writer(text, lineterminator="\n").writerow(csv_row(name, scored.number, scored.start, scored.end, values))
    return text.getvalue()


@contextlib.contextmanager
def _ending_by_signal() -> Iterator[None]:
    """Let SIGTERM act like Ctrl-C in the block: a service that is stopped still writes its files."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
