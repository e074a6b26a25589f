"""Video files and folders of frames to uint8 frames, 16-frame segments and the field's ten crops.

In reading order: `frames` (segments, resizing, crops), `opening` (what counts as a video file), `clock` (times from
time stamps), `folders` (of frames), `finding` (the search for both), `damage`, `matroska`,
`orientation`, `decoding`, `segments`.
"""

from iefvad.video.clock import ClockReport, FrameClock, Loss
from iefvad.video.decoding import VideoInfo, frame_rate, probe, read_frames, timed_frames
from iefvad.video.finding import VIDEO_SUFFIXES, find_videos, require_rate
from iefvad.video.folders import hash_folder
from iefvad.video.frames import CROP, HEIGHT, SEGMENT, WIDTH, crop_boxes, crops, resize, ten_crop
from iefvad.video.opening import LARGEST_LIMIT, MAX_PIXELS, silence_ffmpeg, unreadable
from iefvad.video.orientation import Upright
from iefvad.video.segments import LIMITS, MAX_FRAMES, Segments

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
