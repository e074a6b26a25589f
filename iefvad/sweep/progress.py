"""Progress of a sweep: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from iefvad.utils.text import duration, readable

_INTERVAL = 30.0  # seconds between two lines


class Progress:
    """Counts trainings, and says how long the others will take.

    Args:
        total: Number of trainings to do.
        shown: Show anything but problems.
    """

    def __init__(self, total: int, *, shown: bool) -> None:
        self.total, self.done, self.shown = total, 0, shown
        self.begin = self.last = time.monotonic()
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, desc="sweep", unit="training", disable=not (shown and terminal), dynamic_ncols=True
        )
        self.lines = shown and not terminal

    def advance(self) -> None:
        """Count one training."""
        self.done += 1
        self.bar.update()
        now = time.monotonic()
        if self.lines and (now - self.last >= _INTERVAL or self.done == self.total):
            self.last = now
            left = (now - self.begin) / self.done * (self.total - self.done)
            rest = f", about {duration(left)} left" if self.done < self.total else f" in {duration(now - self.begin)}"
            self.say(f"{self.done} of {self.total} trainings{rest}")

    def say(self, text: str) -> None:
        """Write a line to stderr."""
        tqdm.write(f"iefvad sweep: {readable(text)}", file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
