"""What `iefvad detect` prints: a summary of each file, and the scores and alarms of live input as they come."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from iefvad.detection.announce import announcing
from iefvad.detection.detector import Detector
from iefvad.detection.live.cameras import Camera
from iefvad.detection.live.channel import Channel, LiveAlarm, LiveScore
from iefvad.detection.live.watch import Watch
from iefvad.detection.outputs import Names, describe_rule, write_results
from iefvad.detection.result import Detection
from iefvad.scoring.video_scores import CSV_COLUMNS, csv_row
from iefvad.utils.advice import Advice, score_text
from iefvad.utils.csv_text import csv_line
from iefvad.utils.errors import UserError
from iefvad.utils.files import storage_error
from iefvad.utils.text import clock, readable
from iefvad.video import SEGMENT

_BAR = 24  # characters
_NAME = 24  # characters; longer names push their line to the right
_LISTED = 20  # intervals printed; the files contain all


def summarize(detection: Detection, known: Sequence[Advice] = (), remedies: set[str] | None = None) -> None:
    """Print one video's highest score, speed, flagged intervals and warnings.

    Args:
        detection: The video.
        known: Warnings that were printed already and are left out.
        remedies: Remedies that were printed already, and need not be again; those of this video are added.
    """
    remedies = set() if remedies is None else remedies
    scores, timing = detection.scores, detection.timing
    peak, at = scores.peak
    print(
        f"{readable(scores.source or scores.name)}: {scores.scores.size} segments ({clock(scores.seconds)}),"
        f" highest score {score_text(peak, '.3f')} at {clock(at, 1)},"
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
        print(f"  {readable(note)}")
    for start, end, top in detection.intervals[:_LISTED]:
        print(f"  {clock(start, 1)} to {clock(end, 1)}   peak {top:.3f}")
    if len(detection.intervals) > _LISTED:
        print(f"  ... and {len(detection.intervals) - _LISTED} more: see the files")
    for warning in detection.warnings:
        if warning not in known:
            text = warning.cause if warning.remedy in remedies else str(warning)
            remedies.add(warning.remedy)
            print(f"  warning: {readable(text)}")
    sys.stdout.flush()


def watch(detector: Detector, cameras: Sequence[Camera], folder: Path) -> int:
    """Score live input until it ends, its duration is over, or the user presses Ctrl-C.

    In a command SIGTERM and SIGHUP act like Ctrl-C: a service that is stopped still writes its files. Each segment is
    printed and written to NAME.csv at once, so that a kill loses nothing. The other files are written at the end.

    Args:
        detector: The detector.
        cameras: The cameras and streams.
        folder: Folder for the results.

    Returns:
        The exit status: 0, or 1 where a camera was lost.

    Raises:
        UserError: no input can be reached.
    """
    several = len(cameras) > 1
    width = min(_NAME, max(len(camera.name) for camera in cameras)) if several else 0
    session = Watch(detector, cameras, notify=lambda name, text: _say(name if several else "", text))
    names = Names(folder)
    recorders = {channel.name: _Recorder(channel, names, width) for channel in session.channels}
    for channel in session.channels:
        print(f"{readable(channel.label)}: connecting")
        if channel.rule != detector.rule:
            print(f"  {describe_rule(channel.rule)} ({readable(channel.rule.origin)})")
    print("press Ctrl-C to end", flush=True)
    with contextlib.ExitStack() as stack:
        announce = stack.enter_context(announcing(session, detector.config, lambda text: _say("", text)))
        for recorder in recorders.values():
            stack.callback(recorder.close)
        try:
            for scored in stack.enter_context(contextlib.closing(iter(session))):
                recorders[scored.camera].write(scored)
                announce(scored)
                _print_score(scored, recorders[scored.camera].channel.rule.threshold, width)
        except KeyboardInterrupt:
            if not session.scored:
                raise
            print("\nended by Ctrl-C", flush=True)
    if len(cameras) == 1:
        session.detections()  # one without a score is an error
    failed = False
    for channel in session.scored:
        try:
            recorders[channel.name].finish(detector)
        except UserError as error:  # of one camera: the results of the others are written too
            failed = True
            print(f"iefvad detect: {channel.name}: {error}", file=sys.stderr, flush=True)
    return _status(session) or int(failed)


def _status(session: Watch) -> int:
    """Name the cameras that were lost or gave no score, and return the exit status."""
    status = 0
    for channel in session.channels:
        if channel.trouble:
            status, kept = 1, "; what was scored is kept" if channel.segments else ""
            text = channel.trouble.rstrip(".") + kept
        elif not channel.segments:
            reasons = channel.source.health.lost.most_common(1)
            why = f" ({reasons[0][0]})" if reasons else ""
            status, text = 1, f"it gave fewer frames than one segment needs{why}, so there is no score"
        else:
            continue
        prefix = f"{channel.name}: " if len(session.channels) > 1 else ""
        print(f"iefvad detect: {readable(prefix + text)}.", file=sys.stderr)
    return status


class _Recorder:
    """Writes the scores of one camera to its CSV file as they come, and its other files at the end."""

    def __init__(self, channel: Channel, names: Names, width: int) -> None:
        self.channel, self.folder = channel, names.folder
        self._width = width
        self._name = names.fresh(channel.camera.stem)
        self._file: TextIO | None = None
        self._failed = False

    def write(self, scored: LiveScore) -> None:
        """Write a segment, so that nothing is lost when the process is killed.

        Where the folder fails, the scores stay in memory, and `finish` writes them.
        """
        if self._failed:
            return
        try:
            self._write(scored)
        except OSError as error:
            self._failed = True
            self.close()
            print(
                f"iefvad detect: {self.channel.name}: {storage_error(error, self.folder)} The scores are kept in memory"
                " and written at the end.",
                file=sys.stderr,
                flush=True,
            )

    def _write(self, scored: LiveScore) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self._name}.csv"
            self._file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
            self._file.write(csv_line(CSV_COLUMNS))
            fps = self.channel.fps
            arrivals = self.channel.source.arrivals
            rate = f"{fps:.3g} frames/s" if arrivals.told else arrivals.remark() or f"{fps:.3g} frames/s"
            _say(
                self.channel.name if self._width else "",
                f"{rate}, a score every {SEGMENT / fps:.2f} s, written to {path}",
            )
        self._file.write(_csv_line(self._name, scored))
        self._file.flush()

    def close(self) -> None:
        """Close the CSV file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def finish(self, detector: Detector) -> None:
        """Write all files and print a summary."""
        detection = self.channel.detection()
        write_results(detection, self.folder, self._name, detector)
        summarize(detection)
        self._summarize_input()
        for start, end, peak in detection.intervals[-1:]:
            if end >= detection.scores.ends[-1] - 1e-6:
                print(
                    f"  the last flagged interval had not ended: {clock(start, 1)} to {clock(end, 1)}, peak {peak:.3f}"
                )
        print(f"  results in {readable(self.folder)}: {', '.join(file.name for file in detection.files)}")

    def _summarize_input(self) -> None:
        channel, health = self.channel, self.channel.source.health
        if remark := channel.source.arrivals.remark():
            print(f"  {remark}")
        if health.dropped:
            print(
                f"  {health.dropped} of {health.frames} frames dropped: scoring could not keep up, or a connection was"
                " lost"
            )
        if health.lost:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in health.lost.items())
            print(f"  connection lost {health.lost.total()} time(s): {reasons}")
        for lost in channel.lost[:_LISTED]:
            print(
                f"  no scores from {clock(lost.start, 1)} for {lost.seconds:.1f} s (about {lost.frames} frames):"
                f" {readable(lost.reason)}"
            )
        if len(channel.lost) > _LISTED:
            print(f"  ... and {len(channel.lost) - _LISTED} more: see the JSON file")


def _say(name: str, text: str) -> None:
    print(readable(f"{name}: {text}" if name else text), flush=True)


def _print_score(scored: LiveScore, threshold: float, width: int = 0) -> None:
    score = float(scored.row[0])
    prefix = f"{scored.camera:<{width}}  " if width else ""
    for alarm in scored.alarms:
        if alarm.kind == "end":
            _print_alarm(alarm, prefix)
    if scored.lost is not None:
        lost = scored.lost
        print(
            f"{prefix}no scores from {clock(lost.start, 1)} for {lost.seconds:.1f} s (about {lost.frames} frames):"
            f" {readable(lost.reason)}"
        )
    filled = round(_BAR * min(max(score, 0.0), 1.0))
    mark = min(round(_BAR * min(max(threshold, 0.0), 1.0)), _BAR - 1)
    bar = "".join("|" if i == mark else "#" if i < filled else "." for i in range(_BAR))
    flag = " <" if score >= threshold else ""
    print(f"{prefix}{clock(scored.start, 1)}  {score:.3f}  {bar}  {1000 * scored.latency:4.0f} ms{flag}", flush=True)
    for alarm in scored.alarms:
        if alarm.kind == "start":
            _print_alarm(alarm, prefix)


def _print_alarm(alarm: LiveAlarm, prefix: str) -> None:
    day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(alarm.began))
    if alarm.kind == "start":
        print(f"{prefix}ALARM since {clock(alarm.start, 1)} ({day}), score {alarm.peak:.3f}", flush=True)
    else:
        span = f"{clock(alarm.start, 1)} to {clock(alarm.end, 1)}"
        print(f"{prefix}alarm over: {span} (since {day}), peak {alarm.peak:.3f}", flush=True)


def _csv_line(name: str, scored: LiveScore) -> str:
    values = [None if np.isnan(value) else float(value) for value in scored.row]
    return csv_line(csv_row(name, scored.number, scored.start, scored.end, values))
