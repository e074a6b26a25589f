"""Flagged intervals as they happen: the same rule as `video_scores.intervals_above`, one segment at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT


@dataclass(frozen=True)
class Alarm:
    """A flagged interval begins or ends; `start` and `end` in seconds (`end`: as far as is known), `peak` a score."""

    kind: Literal["start", "end"]
    start: float
    end: float
    peak: float


class AlarmTracker:
    """Feed scores in order; get an `Alarm` when an interval begins and when it ends.

    The intervals that end are those `intervals_above` finds in all the scores. One begins as soon as it reaches
    `threshold` and `min_length_s`, and ends when no later segment can join it, so `merge_gap_s` seconds after its last
    one. Raises UserError for low > threshold.
    """

    def __init__(
        self,
        fps: float,
        threshold: float,
        *,
        low: float | None = None,
        merge_gap_s: float = 0.0,
        min_length_s: float = 0.0,
    ) -> None:
        self.threshold = threshold
        self.low = threshold if low is None else low
        if not self.low <= threshold:
            raise UserError(f"the low threshold {self.low} must not exceed the threshold {threshold}")
        self._each = SEGMENT / fps
        self._slack = 0.1 / fps  # as in intervals_above
        self._gap, self._least = merge_gap_s, min_length_s
        self._segments = 0
        self._run: tuple[int, float] | None = None  # first segment and peak of the run at or above `low`
        self._open: list[float] | None = None  # start s, end s, peak of the interval that has reached `threshold`
        self._told = False

    def feed(self, score: float) -> list[Alarm]:
        """Score of the next segment → what begins or ends with it (an end comes before a begin)."""
        number = self._segments
        self._segments += 1
        if score < self.low:
            self._run = None
            # Nothing joins any more once a run that began with the next segment would be too far away.
            if self._open is not None and (number + 1) * self._each - self._open[1] > self._gap + self._slack:
                return self._close()
            return []
        first, peak = (number, score) if self._run is None else (self._run[0], max(self._run[1], score))
        self._run = (first, peak)
        start, end = first * self._each, (number + 1) * self._each
        alarms: list[Alarm] = []
        if peak >= self.threshold:
            if self._open is not None and start - self._open[1] <= self._gap + self._slack:
                self._open[1:] = [end, max(self._open[2], peak)]
            else:
                alarms = self._close()
                self._open = [start, end, peak]
            if not self._told and self._open[1] - self._open[0] >= self._least - self._slack:
                self._told = True
                alarms.append(Alarm("start", *self._open))
        return alarms

    def finish(self) -> list[Alarm]:
        """The end of the last interval, where one is open."""
        return self._close()

    def _close(self) -> list[Alarm]:
        interval, told = self._open, self._told
        self._open, self._told = None, False
        return [Alarm("end", interval[0], interval[1], interval[2])] if interval is not None and told else []
