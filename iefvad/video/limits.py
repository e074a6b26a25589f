"""Sizes that options and results name. This module loads nothing."""

SEGMENT = 16
"""Frames per segment."""
MAX_PIXELS = 40_000_000
"""Maximum number of pixels per frame: 8K video has 33 million."""
LARGEST_LIMIT = 2**31 - 1
"""The largest maximum that FFmpeg takes."""
MAX_FRAMES = 10_000_000
"""Maximum number of frames of a video: four and a half days at 25 frames per second."""
