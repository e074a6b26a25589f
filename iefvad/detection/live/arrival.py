"""The clock of live input: when frames arrived, and how many come per second."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST_PAUSE = 1.0  # seconds without a frame that are nothing unusual, at any frame rate
_FRAMES_OF_PAUSE = 5.0  # the same as a number of frames, for slow cameras
_SURE = 15  # intervals between frames after which a measured rate is better than none
_ODD = 0.1  # fraction by which the measured rate must differ from the told one to be worth a word


@dataclass(frozen=True)
class Lost:
    """A stretch of time without scored frames.

    Attributes:
        start: Its start in seconds.
        seconds: Its length.
        frames: Number of frames that would have come in this time, estimated from the frame rate.
        reason: What happened, in words.
    """

    start: float
    seconds: float
    frames: int
    reason: str


class Arrivals:
    """Measures the frame rate of a source from the arrival of its frames, and notices when frames are missing.

    A frame covers the time from the arrival of the frame before it to its own. So segments follow each other without
    gaps, and the end of a segment is known when its last frame has arrived.

    Attributes:
        told: Frames per second that the source tells; 0 where it tells none.
        last: Arrival of the latest frame in seconds of any clock; None at the start and after `interrupt`.
    """

    def __init__(self) -> None:
        """Start before the first frame."""
        self.told = 0.0
        self.last: float | None = None
        self._stamp: float | None = None
        self._paused = False
        self._intervals, self._seconds = 0, 0.0

    def interrupt(self) -> None:
        """Say that the next frame does not follow the latest one: the connection was lost in between."""
        self.last = self._stamp = None
        self._paused = False

    def add(self, arrival: float, stamp: float | None = None) -> bool:
        """Take the next frame and return whether it follows the latest one.

        It does not where a pause lies between them. It does where the frames are only late, as their stamps show, and
        where pauses follow each other, which is a slower camera.

        Args:
            arrival: Arrival of the frame in seconds.
            stamp: Its presentation time in seconds. It is used only where the source tells a rate: without one, FFmpeg
                makes stamps up.
        """
        last, self.last = self.last, arrival
        before, self._stamp = self._stamp, stamp
        if last is None:
            return True
        pause = arrival - last
        limit = max(_LONGEST_PAUSE, _FRAMES_OF_PAUSE / self.measured) if self.measured else float("inf")
        paused, self._paused = self._paused, pause > limit
        if pause > limit and not paused:
            late = self.told > 0 and stamp is not None and before is not None and stamp - before < limit
            if not late:
                return False
        self._intervals, self._seconds = self._intervals + 1, self._seconds + pause
        return True

    @property
    def measured(self) -> float:
        """Frames per second that arrived; 0 until it is known."""
        return self._intervals / max(self._seconds, 1e-6) if self._intervals >= _SURE else 0.0

    @property
    def fps(self) -> float:
        """Frames per second: measured, or as the source tells until then; 0 until either is known."""
        return self.measured or self.told

    def remark(self) -> str | None:
        """Say in words where the rate comes from, if the source tells none or another one than arrives."""
        if not self.measured:
            return None
        if not self.told:
            return f"the source tells no frame rate; {self.measured:.3g} frames/s arrive"
        if abs(self.measured - self.told) > _ODD * self.told:
            return f"the source tells {self.told:.3g} frames/s; {self.measured:.3g} arrive"
        return None
