"""Video files to uint8 frames, 16-frame segments and the field's ten crops.

In reading order: `frames` (segments, resizing, crops), `finding` (the search for files), `clock` (times from time
stamps), `decoding`, `segments`.
"""

from iefvad.video.clock import ClockReport, FrameClock, Loss
from iefvad.video.decoding import (
    VideoInfo,
    frame_rate,
    probe,
    read_frames,
    silence_ffmpeg,
    timed_frames,
    upright,
)
from iefvad.video.finding import VIDEO_SUFFIXES, find_videos
from iefvad.video.frames import CROP, HEIGHT, SEGMENT, WIDTH, crop_boxes, crops, resize, ten_crop
from iefvad.video.segments import Segments

__all__ = [
    "CROP",
    "HEIGHT",
    "SEGMENT",
    "VIDEO_SUFFIXES",
    "WIDTH",
    "ClockReport",
    "FrameClock",
    "Loss",
    "Segments",
    "VideoInfo",
    "crop_boxes",
    "crops",
    "find_videos",
    "frame_rate",
    "probe",
    "read_frames",
    "resize",
    "silence_ffmpeg",
    "ten_crop",
    "timed_frames",
    "upright",
]
