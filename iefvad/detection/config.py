"""Settings of `iefvad detect`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.utils.errors import UserError
from iefvad.utils.options import option

GROUPS = {
    "threshold": "what is flagged",
    "hop": "sliding windows",
    "tail": "reading videos",
    "retries": "live input",
    "thumbnails": "results",
}
"""First option of each group of the help, and the group's title."""


@dataclass
class DetectConfig:
    """Settings of `python -m iefvad.detect`."""

    threshold: float | None = option(
        None,
        "score at which a segment is flagged [default: calibration.json in RUN, written by `iefvad calibrate`; without"
        " it the model's own, which 1% of its held-out normal segments exceed]",
    )
    low: float | None = option(
        None, "a flagged interval goes on until the score falls under this [default: the calibration's, or --threshold]"
    )
    merge_gap: float | None = option(
        None, "flagged intervals closer than this many seconds become one [default: the calibration's, or 0]"
    )
    min_length: float | None = option(
        None, "flagged intervals shorter than this many seconds are left out [default: the calibration's, or 0]"
    )
    calibration: str | None = option(None, "calibration file [default: calibration.json in RUN]")

    hop: int | None = option(
        None,
        "segments scored at a time: fewer than the model sees at once make its window slide [default: for files all,"
        " the protocol of evaluation; 1 for live input]",
    )
    context: int | None = option(
        None,
        "segments before these that the attention also sees [default: as many as the model sees at once, less hop]",
    )

    tail: Literal["drop", "repeat"] = option(
        "repeat", "a last segment of fewer than 16 frames: leave it out, or fill it with its last frame"
    )
    on_truncated: Literal["error", "keep"] = option(
        "error", "a video that breaks off: report an error, or score what there is"
    )
    image_weights: str | None = option(
        None, "image encoder weights, where the path of the run's features does not hold here"
    )
    event_weights: str | None = option(None, "event encoder weights, likewise")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    retries: int = option(5, "attempts to connect again, one after another without a frame, before giving up")
    retry_seconds: float = option(
        1.0, "wait before the first of them; each further wait is twice as long, at most 30 s"
    )
    timeout: float = option(10.0, "seconds without an answer or a frame after which a connection counts as lost")
    duration: float | None = option(None, "stop a live input after this many seconds [default: at Ctrl-C]")

    thumbnails: int = option(8, "pictures of the highest segments in the HTML timeline")
    overlay: bool = option(False, "also write the video with its score and what is flagged drawn in (files only)")
    out: str | None = option(None, "folder for the results [default: RUN/detections]")

    def check(self) -> DetectConfig:
        """Raise UserError for a number that makes no sense; returns itself."""
        for name in ("merge_gap", "min_length", "retries", "retry_seconds", "thumbnails"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"--{name.replace('_', '-')} must be 0 or more, not {value}.")
        for name in ("timeout", "duration"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} must be greater than 0 seconds, not {value}.")
        return self
