"""The progress bar of extraction: number of videos, frames per second, and when it will be finished."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from iefvad.utils.text import readable

_TERMINAL, _LOG = 0.2, 60.0  # seconds between two lines on a terminal and in a log file


class Progress:
    """A progress bar over videos. All methods may be called from several threads.

    The remaining time is estimated from the sizes of the files.

    Args:
        paths: {name: file} of all videos.
        quiet: Show no bar.

    Attributes:
        frames: Number of frames decoded so far.
        encoded: Number of these that the image encoder sees.
    """

    def __init__(self, paths: Mapping[str, Path], *, quiet: bool) -> None:
        self.frames = self.encoded = 0
        self._sizes = {name: _size(path) for name, path in paths.items()}
        self._left = sum(self._sizes.values())
        self._fractions: dict[str, float] = {}  # of each video in work: the fraction that is done
        self._finished = 0
        self._worked = 0.0  # bytes of the videos that were extracted, not skipped
        self._lock = threading.Lock()
        self._begin = self._shown = time.perf_counter()
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._every = _TERMINAL if self._terminal else _LOG
        self._bar: tqdm[Any] = tqdm(
            total=len(paths),
            disable=quiet or not self._terminal,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} videos [{elapsed}{postfix}]",
        )

    def advance(self, name: str, frames: int, fraction: float, encoded: int = 0) -> None:
        """Note that `frames` more frames of a video are decoded and that `fraction` of it (0 to 1) is done.

        `encoded` of them go through the image encoder.
        """
        with self._lock:
            self.frames += frames
            self.encoded += encoded
            self._fractions[name] = min(1.0, fraction)
        self.show()

    def finish(self, name: str, *, skipped: bool = False) -> None:
        """Note that a video is finished: stored, failed, or `skipped` (then it took no time)."""
        with self._lock:
            self._fractions.pop(name, None)
            self._finished += 1
            self._left -= self._sizes[name]
            self._worked += 0 if skipped else self._sizes[name]
        self.show()

    def show(self, *, now: bool = False) -> None:
        """Draw the bar if the last drawing is long enough ago, or in any case with `now`."""
        moment = time.perf_counter()
        with self._lock:
            if moment - self._shown < self._every and not now:
                return
            self._shown = moment
            self._bar.n = self._finished + sum(self._fractions.values())
            text = f"{self.frames / (moment - self._begin):.0f} frames/s" if self.frames else "nothing to decode"
            if left := self._seconds_left(moment):
                text += f", {tqdm.format_interval(left)} left, until {time.strftime('%H:%M', _clock(left))}"
            whole = self._finished if not self._fractions else f"{self._bar.n:.1f}"
            done = f"extract: {whole} of {len(self._sizes)} videos, {text}"
        if self._terminal:
            self._bar.set_postfix_str(text)
        elif not self._quiet:
            print(done, file=sys.stderr, flush=True)

    def write(self, line: str) -> None:
        """Print a line on stderr without breaking the bar."""
        self._bar.write(readable(line), file=sys.stderr)

    def close(self) -> None:
        """Draw the bar for the last time."""
        self.show(now=True)
        self._bar.close()

    def _seconds_left(self, moment: float) -> int:
        half_done = sum(fraction * self._sizes[name] for name, fraction in self._fractions.items())
        done = self._worked + half_done
        return round((self._left - half_done) * (moment - self._begin) / done) if done else 0


def _clock(seconds: float) -> time.struct_time:
    return time.localtime(time.time() + seconds)


def _size(path: Path) -> int:
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                return sum(entry.stat().st_size for entry in entries)
        return path.stat().st_size
    except OSError:
        return 0
