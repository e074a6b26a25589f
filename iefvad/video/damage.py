"""What is damaged in a file, and whether frames that are missing were lost by it or before the file was written.

A jump in the time stamps alone is no damage: a camera or a network lost the frames. A jump near damaged data is.

A decoder fills what it cannot decode from pictures around it, and marks the frame. Some decoders mark nothing: they are
asked to refuse such a packet instead (`STRICT`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from iefvad.utils.text import clock
from iefvad.video.clock import JUMP, FrameClock, Loss

STRICT = frozenset({"ffv1", "gif", "hevc", "jpeg2000", "mjpeg"})
"""FFmpeg's names of decoders that do not mark frames with flaws, and can refuse them."""

_SYNCHRONISED = frozenset({"mpegts", "mpeg", "flv"})  # formats in which FFmpeg silently skips what it cannot read
_ONE_EACH = frozenset({"flv", "h263"})  # codecs in which each packet is one picture
_TAIL = 8  # packets after that of the last frame, in order of decoding: more than reordering explains
_MOST_PENDING = 4096
_REACH = 1.0  # seconds around a jump in which damaged data explain it


class Damage:
    """Watches the packets of a file for damaged data.

    Args:
        path: The file.
        frame_clock: The clock of its frames.
        kind: FFmpeg's name of its format.
        tick: Seconds per unit of a time stamp.
        codec: FFmpeg's name of its codec.

    Attributes:
        skipped: The last jump between two packets, or None.
        flawed: Number of decoded frames with flaws.
    """

    def __init__(self, path: Path, frame_clock: FrameClock, kind: str, tick: float, codec: str = "") -> None:
        self._path, self._clock, self._kind, self._tick = path, frame_clock, kind, tick
        self._codec = codec
        self.skipped: Loss | None = None
        self.flawed = 0
        self._first_flawed = 0.0  # seconds
        self._started = False
        self._whole = False  # it starts with a key frame
        self._flaws: list[float] = []  # seconds at which data were damaged
        self._marked: float | None = None  # time of a packet that is marked as corrupt
        self._since = 0  # packets since that one
        self._before: float | None = None  # time of the last packet that has one
        self._packets = 0  # since that packet
        self._fed = 0  # packets so far
        self._pending: dict[int, int] = {}  # stamp of a picture → number of its packet, of those not decoded yet
        self._shown: int | None = None  # number of the packet of the last frame
        self._stamp: int | None = None  # of the last frame
        self._place = 0  # of the last packet in the file
        # The place before a jump, and its time, until the place after it is known.
        self._doubt: tuple[int, float] | None = None

    def watch(self, packet: av.Packet[Any]) -> None:
        """Note a jump between two packets, and damage of the data between them."""
        self._packets += 1
        if packet.size:
            self._fed += 1
            self._whole = self._whole or (self._fed == 1 and packet.is_keyframe)
            if packet.pts is not None and not packet.is_discard and len(self._pending) < _MOST_PENDING:
                self._pending[packet.pts] = self._fed
        if packet.dts is not None:
            seconds = self._clock.seconds_of(packet.dts * self._tick)
            self._weigh(packet, seconds)
            if self._before is not None:
                lost = round((seconds - self._before) * self._clock.rate) - self._packets
                if lost >= JUMP:
                    start = self._before + self._packets / self._clock.rate
                    self.skipped = Loss(self._clock.frames, start, seconds, lost)
                    self._doubt = (self._place, seconds)
            self._before, self._packets = seconds, 0
        if packet.pos is not None and packet.pos >= 0:  # not every packet knows its place
            if self._doubt is not None and self._kind in _SYNCHRONISED:
                place, seconds = self._doubt
                if _is_torn(self._path, place, packet.pos, self._kind):
                    self.note(seconds)
            self._place, self._doubt = packet.pos, None

    def look(self, frame: av.VideoFrame) -> None:
        """Take the next frame, after the clock did, and note whether its picture is damaged.

        A recording that starts between two key frames begins with frames that refer to others that it does not have.
        They are no damage.
        """
        self._shown = self._pending.pop(frame.pts, None) if frame.pts is not None else None
        self._stamp = frame.pts
        if len(self._pending) > _MOST_PENDING // 2 and self._shown is not None:
            self._pending = {stamp: number for stamp, number in self._pending.items() if number > self._shown}
        if not frame.is_corrupt:
            self._started = True
            return
        self.note(self._clock.time)
        first = self._whole and self._shown == 1  # damage may have made another kind of picture of the key frame
        if not (self._started or frame.key_frame or first):
            return
        self._started = True
        if not self.flawed:
            self._first_flawed = self._clock.time
        self.flawed += 1

    def pictures(self) -> str | None:
        """Return how many frames have flaws, in words, or None."""
        if not self.flawed:
            return None
        frames = "1 frame has" if self.flawed == 1 else f"{self.flawed} frames have"
        return f"{frames} damaged pictures, from {clock(self._first_flawed, 1)} on"

    def note(self, seconds: float) -> None:
        """Note that data at a time in seconds are damaged."""
        if not self._flaws or abs(seconds - self._flaws[-1]) > 1:  # one per second is enough
            self._flaws.append(seconds)

    def lost(self) -> str | None:
        """Return which frames damaged data have cost, in words, or None."""
        for loss in self._clock.losses():
            if any(loss.start - _REACH <= flaw <= loss.end + _REACH for flaw in self._flaws):
                return f"its data are damaged and the time stamps jump: {loss}"
        return None

    def tail(self) -> str | None:
        """Return how many packets gave no pictures, in words, or None: they are damaged, or their kind changed.

        Without knowledge of the codec, only the end is looked at. Containers with edit lists are left out: there,
        pictures may be hidden on purpose.
        """
        if self._codec in _ONE_EACH and self._fed > self._clock.frames:
            return f"{self._fed - self._clock.frames} of its {self._fed} packets gave no pictures"
        if self._codec in STRICT and self._stamp is not None:  # threads of such a decoder may drop an error at the end
            after = sum(stamp > self._stamp for stamp in self._pending)
            if after > 1:
                return f"its last {after} packets gave no pictures"
        if self._kind not in _SYNCHRONISED or self._shown is None or self._fed - self._shown <= _TAIL:
            return None
        return f"its last {self._fed - self._shown} packets gave no pictures"

    def _weigh(self, packet: av.Packet[Any], seconds: float) -> None:
        """Take a packet that is marked as corrupt for a flaw, unless a key frame follows at once.

        Where transport streams were joined, the counter of their packets jumps, and the last packet before is marked.
        """
        if packet.is_corrupt:
            self._marked, self._since = seconds, 0
        elif self._marked is not None:
            self._since += 1
            if packet.is_keyframe:
                self._marked = None
            elif self._since == 2:  # FFmpeg may mark the packet before
                self.note(self._marked)
                self._marked = None


def _is_torn(path: Path, start: int, stop: int, kind: str) -> bool:
    """Return whether a part of a file is damaged: zeros, or no packets where a transport stream must have them."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(min(stop - start, 4 << 20))
    except OSError:  # the decoder meets it, too
        return False
    if bytes(1024) in data:
        return True
    if kind != "mpegts" or len(data) < 2048:
        return False
    values = np.frombuffer(data, np.uint8)
    # Every packet of 188 bytes starts with 0x47. Some devices put 4 bytes before it, or 16 after it.
    found = [float(np.mean(values[first::size] == 0x47)) for size in (188, 192, 204) for first in (0, 4)]
    return max(found) < 0.99
