"""Flagged intervals as they happen: the rule of `video_scores.intervals_above`, one segment at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT


@dataclass(frozen=True)
class Alarm:
    """The start or the end of a flagged interval.

    Attributes:
        kind: Whether the interval starts or ends.
        start: Start of the interval in seconds.
        end: End of the interval in seconds, as far as it is known.
        peak: Highest score so far.
    """

    kind: Literal["start", "end"]
    start: float
    end: float
    peak: float


class AlarmTracker:
    """Takes scores in order and returns an `Alarm` when a flagged interval starts and when it ends.

    The intervals that end are the ones that `intervals_above` finds in all scores. An interval starts as soon as it
    reaches both `threshold` and `min_length_s`. It ends when no later segment can join it, which is `merge_gap_s`
    seconds after its last segment.
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
        """Start before the first segment. Arguments as in `intervals_above`.

        Raises:
            UserError: `low` exceeds `threshold`.
        """
        self.threshold = threshold
        self.low = threshold if low is None else low
        if not self.low <= threshold:
            raise UserError(f"the low threshold {self.low} must not exceed the threshold {threshold}")
        self._each = SEGMENT / fps  # seconds per segment where no times are given
        self._slack = 0.1 / fps  # as in intervals_above
        self._gap, self._least = merge_gap_s, min_length_s
        self._segments = 0
        self._run: tuple[float, float] | None = None  # start s and peak of the run at or above `low`
        self._open: list[float] | None = None  # start s, end s, peak of the interval that has reached `threshold`
        self._reported = False  # whether the start of the open interval was reported

    def feed(self, score: float, start: float | None = None, end: float | None = None) -> list[Alarm]:
        """Take the score of the next segment and return what ends and what starts with it, in this order.

        Args:
            score: The score.
            start: Start of the segment in seconds; counted from the frame rate where None.
            end: End of the segment in seconds; counted from the frame rate where None.
        """
        start = self._segments * self._each if start is None else start
        end = (self._segments + 1) * self._each if end is None else end
        self._segments += 1
        if score < self.low:
            self._run = None
            # Nothing can join any more once a run that starts with the next segment would be too far away.
            if self._open is not None and end - self._open[1] > self._gap + self._slack:
                return self._close()
            return []
        start, peak = (start, score) if self._run is None else (self._run[0], max(self._run[1], score))
        self._run = (start, peak)
        alarms: list[Alarm] = []
        if peak >= self.threshold:
            if self._open is not None and start - self._open[1] <= self._gap + self._slack:
                self._open[1:] = [end, max(self._open[2], peak)]
            else:
                alarms = self._close()
                self._open = [start, end, peak]
            if not self._reported and self._open[1] - self._open[0] >= self._least - self._slack:
                self._reported = True
                alarms.append(Alarm("start", *self._open))
        return alarms

    def finish(self) -> list[Alarm]:
        """Return the end of the last interval, if one is open."""
        return self._close()

    def _close(self) -> list[Alarm]:
        interval, reported = self._open, self._reported
        self._open, self._reported = None, False
        return [Alarm("end", *interval)] if interval is not None and reported else []
