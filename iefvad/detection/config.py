"""Settings of `iefvad detect` and `iefvad calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.utils.options import checked, option
from iefvad.utils.values import COUNT, NATURAL, NOT_NEGATIVE, POSITIVE, RATE, Range
from iefvad.video.limits import LARGEST_LIMIT, MAX_FRAMES, MAX_PIXELS

GROUPS = {
    "threshold": "what is flagged",
    "hop": "sliding windows",
    "tail": "reading videos",
    "retries": "live input",
    "thumbnails": "results",
}
"""First option of each group of the help → title of the group."""

LIVE_ONLY = ("retries", "retry_seconds", "timeout", "duration")
FILES_ONLY = ("on_truncated", "fps", "max_pixels", "max_frames", "overlay")
"""Options that have no effect on the other kind of input."""


@dataclass
class DetectConfig:
    """Settings of `iefvad detect`."""

    threshold: float | None = option(
        None,
        "score from which a segment is flagged [default: from calibration.json in RUN, which `iefvad calibrate` writes;"
        " without it the model's own threshold, which 1% of its held-out normal segments exceed]",
    )
    low: float | None = option(
        None,
        "a flagged interval ends when the score falls below this [default: from the calibration, or --threshold]",
    )
    merge_gap: float | None = option(
        None,
        "join flagged intervals with gaps of at most this many seconds [default: from the calibration, or 0]",
        NOT_NEGATIVE,
    )
    min_length: float | None = option(
        None,
        "leave out flagged intervals shorter than this many seconds [default: from the calibration, or 0]",
        NOT_NEGATIVE,
    )
    calibration: str | None = option(None, "calibration file [default: calibration.json in RUN]")

    hop: int | None = option(
        None,
        "number of segments scored at a time. If it is smaller than what the model sees at once, the model's window"
        " slides [default: for files all that the model sees at once, as in evaluation; for live input 1]",
        COUNT,
    )
    context: int | None = option(
        None,
        "number of earlier segments that the attention also sees [default: what the model sees at once, minus --hop]",
        NATURAL,
    )

    tail: Literal["drop", "repeat"] = option(
        "repeat", "last segment of fewer than 16 frames: leave it out, or fill it by repeating its last frame"
    )
    on_truncated: Literal["error", "keep"] = option(
        "error", "truncated video: report an error, or score the part that can be decoded"
    )
    fps: float | None = option(
        None,
        "frames per second of folders of frames (NAME/000.jpg, 001.jpg ...); video files have their own rate",
        RATE,
    )
    max_pixels: int = option(
        MAX_PIXELS,
        "maximum number of pixels per frame; a video or picture with more is not decoded",
        Range(1, LARGEST_LIMIT),
    )
    max_frames: int = option(MAX_FRAMES, "maximum number of frames per video", COUNT)
    image_weights: str | None = option(
        None, "weights of the image encoder (as for `iefvad extract`), if they have moved since the features were made"
    )
    event_weights: str | None = option(None, "weights of the event encoder, if they have moved")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    retries: int = option(5, "give up after this many attempts to reconnect that bring no frame", NATURAL)
    retry_seconds: float = option(
        1.0, "seconds to wait before the first attempt; each further wait is twice as long, at most 30 s", NOT_NEGATIVE
    )
    timeout: float = option(
        10.0,
        "a connection counts as lost after this many seconds without an answer or a frame",
        Range(above=0, most=1e6),
    )
    duration: float | None = option(None, "stop live input after this many seconds [default: at Ctrl-C]", POSITIVE)
    webhook: str | None = option(
        None, "post the start and the end of each alarm of live input as JSON to this http or https address"
    )
    serve: str | None = option(
        None,
        "HOST:PORT, such as 127.0.0.1:8000: show cameras, scores and alarms of live input on a web page there (pip"
        " install 'iefvad[serve]')",
    )

    thumbnails: int = option(
        8,
        "number of pictures in the HTML timeline: of flagged intervals, then of other high scores; those that"
        " show the same are left out",
        Range(0, 10_000),
    )
    overlay: bool = option(False, "also write the video with its score and flagged intervals drawn in (files only)")
    out: str | None = option(None, "folder for the results [default: RUN/detections]")

    def check(self) -> DetectConfig:
        """Check the numbers and return the settings themselves.

        Raises:
            UserError: a number is out of range.
        """
        return checked(self)


@dataclass
class CalibrateConfig:
    """Settings of `iefvad calibrate`."""

    false_alarms_per_hour: float = option(1.0, "maximum false alarms per hour of normal video", NOT_NEGATIVE)
    low_share: float = option(
        0.8, "a flagged interval ends when the score falls below this fraction of the threshold", Range(above=0, most=1)
    )
    merge_gap: float = option(2.0, "join flagged intervals with gaps of at most this many seconds", NOT_NEGATIVE)
    min_length: float = option(0.0, "leave out flagged intervals shorter than this many seconds", NOT_NEGATIVE)
    hop: int | None = option(
        None,
        "number of segments scored at a time; use the value that `iefvad detect` will use, which is 1 for live input"
        " [default: as for files]",
        COUNT,
    )
    context: int | None = option(
        None, "number of earlier segments that the attention also sees [default: as in `iefvad detect`]", NATURAL
    )
    tail: Literal["drop", "repeat"] = option(
        "repeat", "last segment of fewer than 16 frames: leave it out, or fill it by repeating its last frame"
    )
    on_truncated: Literal["error", "keep"] = option(
        "error", "truncated video: report an error, or score the part that can be decoded"
    )
    fps: float | None = option(
        None,
        "frames per second of folders of frames (NAME/000.jpg, 001.jpg ...); video files have their own rate",
        RATE,
    )
    max_pixels: int = option(
        MAX_PIXELS,
        "maximum number of pixels per frame; a video or picture with more is not decoded",
        Range(1, LARGEST_LIMIT),
    )
    max_frames: int = option(MAX_FRAMES, "maximum number of frames per video", COUNT)
    image_weights: str | None = option(
        None, "weights of the image encoder (as for `iefvad extract`), if they have moved since the features were made"
    )
    event_weights: str | None = option(None, "weights of the event encoder, if they have moved")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    out: str | None = option(None, "folder for calibration.json [default: RUN, where `iefvad detect` looks for it]")
