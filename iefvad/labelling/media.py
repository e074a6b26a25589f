"""The videos that are labelled: their times, and their pictures for what browsers cannot play."""

from __future__ import annotations

import mimetypes
import threading
from collections import OrderedDict
from pathlib import Path

from iefvad.report.pictures import jpeg
from iefvad.utils.errors import UserError
from iefvad.utils.text import readable
from iefvad.video.timeline import Pictures, Timeline, read_timeline

_WIDEST = 960  # pixels of a picture that is sent
_OPEN = 4  # videos whose decoder stays open


class Media:
    """Times and pictures of named videos. Methods may be called from several threads.

    Args:
        paths: Name of each video → its file or folder of frames.
        fps: Frames per second of folders of frames.
        unusable: Name → why a video cannot be labelled.
    """

    def __init__(self, paths: dict[str, Path], fps: float | None, unusable: dict[str, str]) -> None:
        self.paths = paths
        self._fps = fps
        self._lock = threading.Lock()
        self._reading = {name: threading.Lock() for name in paths}
        self._timelines: dict[str, Timeline] = {}
        self._problems = dict(unusable)
        self._pictures: OrderedDict[str, Pictures] = OrderedDict()

    def problem(self, name: str) -> str:
        """Return why a video cannot be labelled, as far as it is known, or ""."""
        return self._problems.get(name, "")

    def timeline(self, name: str) -> Timeline:
        """Return the times of a video's frames, which are read once.

        Raises:
            UserError: It cannot be read, or its name cannot be used.
        """
        with self._reading[name]:
            if name in self._problems:
                raise UserError(self._problems[name])
            if name not in self._timelines:
                try:
                    self._timelines[name] = read_timeline(self.paths[name], self._fps)
                except UserError as error:
                    self._problems[name] = readable(error)
                    raise
            return self._timelines[name]

    def picture(self, name: str, seconds: float) -> bytes:
        """Return the picture at a time as JPEG.

        Raises:
            UserError: None can be decoded.
        """
        timeline = self.timeline(name)
        with self._lock:
            pictures = self._pictures.pop(name, None) or Pictures(self.paths[name], timeline, self._fps)
            self._pictures[name] = pictures
            closing = [self._pictures.popitem(last=False)[1] for _ in range(len(self._pictures) - _OPEN)]
        for old in closing:
            old.close()
        return jpeg(pictures.at(seconds), widest=_WIDEST)

    def kind(self, name: str) -> str:
        """Return the media type of a video file."""
        suffix = self.paths[name].suffix.lower()
        if suffix in (".mp4", ".m4v", ".mov"):
            return "video/mp4"
        return mimetypes.types_map.get(suffix, "video/x-matroska" if suffix == ".mkv" else "application/octet-stream")

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for pictures in self._pictures.values():
                pictures.close()
            self._pictures.clear()
