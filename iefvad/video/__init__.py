"""Video files and folders of frames to uint8 frames, 16-frame segments and the field's ten crops.

In reading order: `frames` (segments, resizing, crops), `opening` (what counts as a video file), `clock` (times from
time stamps), `folders` (of frames), `finding` (the search for both), `damage`, `matroska`,
`orientation`, `decoding`, `segments`. `limits` are numbers that options need.

Names are loaded when they are first used: av and cv2 take a while.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iefvad.video.clock import ClockReport, FrameClock, Loss
    from iefvad.video.decoding import VideoInfo, frame_rate, probe, read_frames, timed_frames
    from iefvad.video.finding import VIDEO_SUFFIXES, find_videos, require_rate
    from iefvad.video.folders import hash_folder
    from iefvad.video.frames import CROP, HEIGHT, WIDTH, crop_boxes, crops, resize, ten_crop
    from iefvad.video.limits import LARGEST_LIMIT, MAX_FRAMES, MAX_PIXELS, SEGMENT
    from iefvad.video.opening import silence_ffmpeg, unreadable
    from iefvad.video.orientation import Upright
    from iefvad.video.segments import LIMITS, Segments

__all__ = [
    "CROP",
    "HEIGHT",
    "LARGEST_LIMIT",
    "LIMITS",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "SEGMENT",
    "VIDEO_SUFFIXES",
    "WIDTH",
    "ClockReport",
    "FrameClock",
    "Loss",
    "Segments",
    "Upright",
    "VideoInfo",
    "crop_boxes",
    "crops",
    "find_videos",
    "frame_rate",
    "hash_folder",
    "probe",
    "read_frames",
    "require_rate",
    "resize",
    "silence_ffmpeg",
    "ten_crop",
    "timed_frames",
    "unreadable",
]

_HOMES = {
    "CROP": "frames",
    "HEIGHT": "frames",
    "LARGEST_LIMIT": "limits",
    "LIMITS": "segments",
    "MAX_FRAMES": "limits",
    "MAX_PIXELS": "limits",
    "SEGMENT": "limits",
    "VIDEO_SUFFIXES": "finding",
    "WIDTH": "frames",
    "ClockReport": "clock",
    "FrameClock": "clock",
    "Loss": "clock",
    "Segments": "segments",
    "Upright": "orientation",
    "VideoInfo": "decoding",
    "crop_boxes": "frames",
    "crops": "frames",
    "find_videos": "finding",
    "frame_rate": "decoding",
    "hash_folder": "folders",
    "probe": "decoding",
    "read_frames": "decoding",
    "require_rate": "finding",
    "resize": "frames",
    "silence_ffmpeg": "opening",
    "ten_crop": "frames",
    "timed_frames": "decoding",
    "unreadable": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
