"""What the page shows: the latest scores and alarms of each camera, in bounded memory."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iefvad.detection.live.channel import Channel, LiveAlarm, LiveScore
from iefvad.utils.advice import Advice
from iefvad.video import SEGMENT

SCORES = 160
"""Number of latest scores of each camera that are shown."""
ALARMS = 50
"""Number of latest alarms that are shown."""


@dataclass
class Seen:
    """What one browser has been sent.

    Attributes:
        version: Version of the board up to which it was sent.
        cameras: What was last sent of each camera's state.
    """

    version: int = -1
    cameras: dict[int, dict[str, Any]] = field(default_factory=dict)


class Board:
    """Gathers what the page shows. Scoring writes to it, and the threads of the page read from it.

    Nothing is queued for a browser: each asks for what is new since its last message, so a slow browser skips what it
    has missed and needs no memory.
    """

    def __init__(self, channels: Sequence[Channel], title: str, warnings: Sequence[Advice] = ()) -> None:
        """Show these cameras.

        Args:
            channels: The cameras.
            title: Title of the page.
            warnings: What is doubtful about the model or the threshold, shown at the top.
        """
        self.title, self.warnings = title, list(warnings)
        self._channels = list(channels)
        self._index = {channel.name: number for number, channel in enumerate(self._channels)}
        self._run = secrets.token_hex(4)  # tells a browser that detection was started again
        self._lock = threading.Lock()
        self._version = 0
        self._scores: list[deque[tuple[int, list[float]]]] = [deque(maxlen=SCORES) for _ in self._channels]
        self._latest: list[LiveScore | None] = [None] * len(self._channels)
        self._alarms: dict[int, tuple[int, dict[str, Any]]] = {}  # id → version and what is shown
        self._open: dict[str, int] = {}  # camera → id of its alarm that goes on
        self._pictures: dict[int, np.ndarray] = {}
        self._next = 0

    def add(self, scored: LiveScore) -> None:
        """Show a scored segment and its alarms."""
        number = self._index[scored.camera]
        with self._lock:
            self._version += 1
            point = [round(scored.start, 3), round(scored.end, 3), round(float(scored.row[0]), 4)]
            self._scores[number].append((self._version, point))
            self._latest[number] = scored
            for alarm in scored.alarms:
                self._add_alarm(alarm, number)

    def _add_alarm(self, alarm: LiveAlarm, camera: int) -> None:
        if alarm.kind == "start":
            self._next += 1
            self._open[alarm.camera] = self._next
        identity = self._open.get(alarm.camera, 0)
        if not identity or (identity not in self._alarms and alarm.kind == "end"):
            return
        shown = {
            "id": identity,
            "camera": camera,
            "start": round(alarm.start, 3),
            "end": round(alarm.end, 3),
            "began": round(alarm.began, 3),
            "peak": round(alarm.peak, 4),
            "over": alarm.kind == "end",
            "picture": alarm.picture is not None,
        }
        self._alarms[identity] = (self._version, shown)
        if alarm.picture is not None:
            self._pictures[identity] = alarm.picture
        if alarm.kind == "end":
            del self._open[alarm.camera]
        while len(self._alarms) > ALARMS:
            oldest = min(self._alarms)
            del self._alarms[oldest]
            self._pictures.pop(oldest, None)

    def picture(self, identity: int) -> np.ndarray | None:
        """Return the picture of an alarm, uint8 RGB (H, W, 3); None where there is none any more."""
        with self._lock:
            return self._pictures.get(identity)

    def news(self, seen: Seen) -> dict[str, Any] | None:
        """Return what a browser has not been sent yet, ready for JSON, and note that it was. None if nothing is new.

        The first message has everything, and the names of the cameras.
        """
        first = seen.version < 0
        with self._lock:
            scores = [[point for version, point in kept if version > seen.version] for kept in self._scores]
            alarms = [shown for version, shown in self._alarms.values() if version > seen.version]
            latest = list(self._latest)
            total = self._next
            seen.version = self._version
        cameras = []
        for number, channel in enumerate(self._channels):
            state = _state(channel, latest[number])
            entry: dict[str, Any] = {"camera": number}
            if state != seen.cameras.get(number):
                seen.cameras[number] = state
                entry |= state
            if first:
                entry |= {"name": channel.name, "threshold": channel.rule.threshold, "low": channel.rule.low}
            if scores[number]:
                entry["scores"] = scores[number]
            if len(entry) > 1:
                cameras.append(entry)
        if not (first or cameras or alarms):
            return None
        message: dict[str, Any] = {"cameras": cameras, "alarms": alarms, "total": total}
        if first:
            message |= {"run": self._run, "keep": SCORES, "keep_alarms": ALARMS}
        return message


def _state(channel: Channel, latest: LiveScore | None) -> dict[str, Any]:
    source = channel.source
    span = 0.0 if latest is None else latest.end - latest.start
    return {
        "state": source.state,
        "trouble": channel.trouble or "",
        "fps": round(SEGMENT / span if span > 0 else channel.fps, 1),
        "delay": None if latest is None else round(1000 * latest.latency),
        "dropped": source.health.dropped,
        "lost": source.health.lost.total(),
        "score": None if latest is None else round(float(latest.row[0]), 4),
    }
