"""The time of each frame in seconds, from the time stamps of its file, and what the stamps say about lost frames.

The rules are in `docs/specification.md#clock`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from iefvad.utils.text import clock

JUMP = 4.0
"""A jump is an interval between two frames of more than this many usual ones."""

_WINDOW = 16  # intervals before and after a jump that show the rhythm
_STEADY, _NEAR = 0.75, 0.5  # fraction of these that must differ from their median by at most half of it
_MANY, _RARE = 3, 0.05  # more jumps than both of these are a variable rate
_LATEST_START = 10.0  # seconds; a picture that starts later than this after the sound has another clock
_LISTED = 3  # losses named in a note; the JSON file has all


@dataclass(frozen=True)
class Loss:
    """Frames that are missing: the time stamps of a steady stream jump.

    Attributes:
        frame: Number of the first frame after the jump, from 0.
        start: Time in seconds at which the first missing frame should follow.
        end: Time in seconds of the first frame after the jump.
        frames: Number of missing frames, from the usual interval.
    """

    frame: int
    start: float
    end: float
    frames: int

    def __str__(self) -> str:
        return f"about {self.frames} frames lost from {clock(self.start, 1)} to {clock(self.end, 1)}"


@dataclass(frozen=True)
class ClockReport:
    """Where the times of a video come from.

    Attributes:
        origin: "stamps": time stamps. "rate": numbers of frames and the rate that the file states, because stamps are
            missing or do not increase. "assumed": numbers of frames and an assumed rate, because nothing is stated.
        rate: The average, stated or assumed number of frames per second.
        lost: Jumps in the time stamps, in order.
        restarts: Times in seconds at which the stamps started again from a lower value. The clock goes on there.
        damage: What is missing or damaged in a video that is used nevertheless, in words, or None.
    """

    origin: Literal["stamps", "rate", "assumed"]
    rate: float
    lost: tuple[Loss, ...] = ()
    restarts: tuple[float, ...] = ()
    damage: str | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ClockReport:
        """Make a report from what `as_dict` returned."""
        lost = tuple(Loss(**loss) for loss in content["lost"])
        return cls(content["origin"], content["rate"], lost, tuple(content["restarts"]), content.get("damage"))

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON, with times rounded to 6 decimals. An undamaged video has no entry `damage`."""
        content = asdict(self)
        if self.damage is None:
            del content["damage"]
        content["lost"] = [
            {**loss, "start": round(loss["start"], 6), "end": round(loss["end"], 6)} for loss in content["lost"]
        ]
        content["restarts"] = [round(time, 6) for time in self.restarts]
        return content

    def notes(self) -> list[str]:
        """Return what a reader of the times must know, in words; empty where all is as usual."""
        notes = [f"truncated or damaged: {self.damage}"] if self.damage else []
        if self.origin == "assumed":
            notes.append(f"assumed {self.rate:g} frames per second: the file states no rate and has no time stamps")
        elif self.origin == "rate":
            notes.append(f"assumed {self.rate:g} frames per second, as the file states: it has no usable time stamps")
        if self.lost:
            shown = "; ".join(map(str, self.lost[:_LISTED]))
            more = f"; and {len(self.lost) - _LISTED} more jumps" if len(self.lost) > _LISTED else ""
            notes.append(f"the time stamps jump: {shown}{more}; later times are those of the stamps")
        if self.restarts:
            places = ", ".join(clock(time, 1) for time in self.restarts[:_LISTED])
            more = f" and {len(self.restarts) - _LISTED} more" if len(self.restarts) > _LISTED else ""
            notes.append(f"the time stamps start again at {places}{more}, as in joined recordings; the clock goes on")
        return notes


@dataclass
class _Jump:
    """A long interval, until enough intervals after it are known to judge it."""

    frame: int
    before: list[float]
    end: float
    interval: float
    after: list[float] = field(default_factory=list)

    def judge(self) -> Loss | None:
        """Return the loss, or None where the rhythm around the jump is not steady."""
        usual = _median(self.before if len(self.before) >= _WINDOW // 4 else self.before + self.after)
        if not self.after or usual <= 0 or self.interval <= JUMP * usual:
            return None
        for intervals in (self.before, self.after):
            near = sum(abs(interval - usual) <= _NEAR * usual for interval in intervals)
            if near < _STEADY * len(intervals):
                return None
        start = self.end - self.interval + usual
        return Loss(self.frame, start, self.end, round(self.interval / usual) - 1)


class FrameClock:
    """Turns the time stamps of frames in display order into seconds that never decrease.

    Args:
        rate: Frames per second that the file states, or that are assumed.
        assumed: Whether the rate is assumed.
        zero: Time stamp of the file's beginning in seconds, where players show 0; the first frame's where None.

    Attributes:
        frames: Number of frames so far.
        time: Time of the last frame in seconds.
    """

    def __init__(self, rate: float, *, assumed: bool = False, zero: float | None = None) -> None:
        self.rate, self.assumed = rate, assumed
        self.frames = 0
        self.time = 0.0
        self._zero = zero
        self._offset = 0.0  # time stamp that is shown at 0 s
        self._last: float | None = None  # the last stamp that the clock followed
        self._lower: float | None = None  # a stamp that went back, until the next one tells a restart from an error
        self._stamped = 0  # frames whose time is their stamp
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._jumps: list[_Jump] = []
        self._lost: list[Loss] = []
        self._restarts: list[float] = []

    def feed(self, stamp: float | None) -> float:
        """Take the time stamp of the next frame in seconds, None where it has none, and return its time."""
        before, self.frames = self.time, self.frames + 1
        if self._last is None:
            self.time = (self.frames - 1) / self.rate
            if stamp is not None:
                if self.frames == 1 and self._zero is not None and 0 <= stamp - self._zero <= _LATEST_START:
                    self.time = stamp - self._zero
                self._follow(stamp)
        elif stamp is not None and stamp > self._last:
            self.time = max(self.time, stamp - self._offset)
            self._stamped, self._last, self._lower = self._stamped + 1, stamp, None
        else:
            self.time += self.usual
            if stamp is not None and self._lower is not None and stamp > self._lower:
                self._restarts.append(before)
                self._follow(stamp)
            else:
                self._lower = stamp
        if self.frames > 1:
            self._watch(self.time - before)
        return self.time

    @property
    def usual(self) -> float:
        """The usual interval between two frames in seconds: the median of the last ones."""
        return _median(list(self._recent)) if len(self._recent) >= _WINDOW // 4 else 1 / self.rate

    def seconds_of(self, stamp: float) -> float:
        """Return the time of a stamp near the last frame."""
        return stamp - self._offset

    def losses(self) -> list[Loss]:
        """Return all jumps so far, however many there are."""
        return self._lost + [loss for jump in self._jumps if (loss := jump.judge())]

    def report(self) -> ClockReport:
        """Return where the times so far come from, and what is lost."""
        lost = self.losses()
        if len(lost) > max(_MANY, _RARE * self.frames):
            lost = []
        origin: Literal["stamps", "rate", "assumed"] = "stamps"
        if self.assumed or self._stamped <= 1 + self.frames // 100:
            origin = "assumed" if self.assumed else "rate"
        return ClockReport(origin, self.rate, tuple(lost), tuple(self._restarts))

    def _follow(self, stamp: float) -> None:
        self._offset, self._last, self._lower = stamp - self.time, stamp, None
        self._stamped += 1

    def _watch(self, interval: float) -> None:
        for jump in self._jumps:
            jump.after.append(interval)
        if self._jumps and len(self._jumps[0].after) == _WINDOW:
            loss = self._jumps.pop(0).judge()
            self._lost += [loss] if loss else []
        if self._recent and interval > JUMP * min(self._recent):
            self._jumps.append(_Jump(self.frames - 1, list(self._recent), self.time, interval))
        self._recent.append(interval)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
