"""index.html of a detection run over several videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from iefvad.detection.addresses import INDEX, address, address_of_video
from iefvad.detection.result import Detection
from iefvad.detection.threshold import Rule
from iefvad.report.index_page import LISTED, Entry, write_index
from iefvad.report.pictures import jpeg
from iefvad.report.strip import strip
from iefvad.utils.files import rescued

_WIDE = 220  # pixels of a picture


class Overview:
    """Gathers what the index shows of each video: some ten kilobytes, and a picture for some flagged intervals."""

    def __init__(self, folder: Path, model: str, rule: Rule, described: str) -> None:
        """Begin an index.

        Args:
            folder: Folder of the results.
            model: Name of the model.
            rule: How scores become flagged intervals.
            described: The rule in words.
        """
        self.folder = folder
        self._title = f"Detections of {model}"
        self._rule, self._described = rule, described
        self._entries: list[Entry] = []
        self._failed: list[str] = []

    def add(self, detection: Detection, page: Path) -> None:
        """Add a video whose own page lies at `page`."""
        scores = detection.scores
        pictures: dict[int, bytes] = {}
        for number, (start, end, _) in enumerate(detection.intervals):
            inside = [image for at, image in detection.pictures if start - 1e-6 <= at < end]
            if inside and len(pictures) < LISTED:
                pictures[number] = jpeg(_small(inside[0]))
        self._entries.append(
            Entry(
                name=scores.source or scores.name,
                page=address(page, self.folder),
                video=address_of_video(detection, self.folder),
                seconds=scores.seconds,
                peak=scores.peak if scores.scores.size else None,
                strip=strip(scores, detection.intervals, self._rule.threshold),
                intervals=detection.intervals,
                pictures=pictures,
            )
        )

    def fail(self, message: str) -> None:
        """Add a video that could not be scored, with the reason."""
        self._failed.append(message)

    def write(self) -> Path | None:
        """Write the index where it is of use, that is for more than one video, and return its path.

        Raises:
            UserError: it cannot be written.
        """
        if len(self._entries) + len(self._failed) < 2 or not self._entries:
            return None

        def write(folder: Path) -> Path:
            path = folder / INDEX
            write_index(path, self._entries, title=self._title, failed=self._failed, rule=self._described)
            return path

        return rescued(write, self.folder, "the index of the videos")


def _small(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if width <= _WIDE:
        return image
    return np.asarray(cv2.resize(image, (_WIDE, max(1, round(height * _WIDE / width))), interpolation=cv2.INTER_AREA))
