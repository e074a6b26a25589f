"""Progress of long work: a bar in a terminal; lines now and then where the output is a file or a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any

from tqdm import tqdm

from iefvad.utils.text import duration, readable

LEAST, MOST = 6.0, 60.0
"""Seconds between two lines where there is no terminal: at least, where another tenth is done; and at most."""
_DELAY = 1.0  # seconds before a bar is drawn: short work needs none


class Progress:
    """Counts what is done, and shows rate and remaining time on stderr.

    In a terminal it is one bar. Elsewhere each line ends, without carriage returns: at most one for each tenth of the
    work, or one per minute.

    Args:
        total: Amount of work; None if it is not known.
        what: What is done, such as "train fusion (seed 0)".
        unit: What is counted, such as "step".
        shown: Show anything.
        initial: Amount that was done before.
        at_most: The work may end before the total.
    """

    def __init__(
        self,
        total: float | None,
        what: str,
        unit: str,
        *,
        shown: bool = True,
        initial: float = 0,
        at_most: bool = False,
    ) -> None:
        self._about = "at most" if at_most else "about"
        self.total, self.what, self.unit, self.shown, self.initial = total, what, unit, shown, initial
        self.done = initial
        self.terminal = sys.stderr.isatty()
        self._begin = self._last = time.monotonic()
        self._tenth = self._tenths()
        self._more = ""
        self._bar: tqdm[Any] = tqdm(
            total=total,
            initial=initial,
            desc=readable(what),
            unit=f" {unit}s",
            disable=not (shown and self.terminal),
            dynamic_ncols=_width() > 0,
            delay=_DELAY,
            bar_format=None if total else "{desc}: {n_fmt}{unit} [{elapsed}, {rate_fmt}{postfix}]",
        )

    def __enter__(self) -> Progress:
        """Return the progress itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the bar."""
        self.close()

    def update(self, amount: float = 1) -> None:
        """Count an amount of work that was done."""
        self.reach(self.done + amount)

    def reach(self, done: float) -> None:
        """Say how much is done in all."""
        amount, self.done = done - self.done, done
        if not self.shown:
            return
        if self.terminal:
            self._bar.update(amount)
            return
        waited = time.monotonic() - self._last
        if waited < LEAST:  # asked for at every step
            return
        if waited >= MOST or self._tenths() > self._tenth:
            self.line()

    def expect(self, total: float | None) -> None:
        """Say how much work there is, once it is known."""
        if total is not None and total != self.total:
            self.total = total
            self._bar.total, self._bar.bar_format = total, None

    def name(self, what: str) -> None:
        """Rename what is done, such as the number of the epoch."""
        self.what = what
        if self.shown and self.terminal:
            self._bar.set_description_str(readable(what), refresh=False)

    def tell(self, **values: float) -> None:
        """Show values behind the bar or the line, such as the loss."""
        self._more = "".join(f", {name} {value:.3f}" for name, value in values.items())
        if self.shown and self.terminal:
            self._bar.set_postfix_str(self._more.removeprefix(", "), refresh=False)

    def line(self) -> None:
        """Write a line now, where there is no terminal."""
        if not self.shown or self.terminal:
            return
        self._last, self._tenth = time.monotonic(), self._tenths()
        spent = self._last - self._begin
        rate = (self.done - self.initial) / spent if spent else 0.0
        total = "" if self.total is None else f" of {self.total:g}"
        text = f"{self.what}: {self.done:g}{total} {self.unit}s{self._more}, {rate:.3g} {self.unit}s/s"
        if self.total is not None and rate and self.done < self.total:
            text += f", {self._about} {duration((self.total - self.done) / rate)} left"
        print(readable(text), file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()

    def _tenths(self) -> int:
        return int(10 * self.done / self.total) if self.total else 0


def _width() -> int:
    """Return the number of columns of the terminal; 0 where it does not know, where tqdm would draw nothing."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns
    return 0
