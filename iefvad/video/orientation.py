"""Decoded frames to upright RGB pictures."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

_EMPTY = av.VideoFrame(2, 2, "gray")


class Upright:
    """Converts the decoded frames of one stream to RGB and rotates them as their display matrix says.

    Attributes:
        rotation: Degrees counter-clockwise by which the last frame was rotated: 0, 90, 180 or 270.
    """

    def __init__(self) -> None:
        self.rotation, self._mirrored = 0, False
        self._converter = VideoReformatter()  # one for all frames, because its set-up costs more than its use
        self._known = False
        self._stated: float | None = None  # the rotation that PyAV tells of the last frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as uint8 (H, W, 3) RGB."""
        # Reading side data costs as much as some small frames. So it is done once, and again if the rotation changes.
        stated: float | None = getattr(frame, "rotation", None)  # PyAV before 14 does not tell it
        if not self._known or stated is None or stated != self._stated:
            self.rotation, self._mirrored = _orientation(_matrix(frame))
            self._known, self._stated = True, stated
        image = self._converter.reformat(frame, format="rgb24").to_ndarray()
        if self._mirrored:
            image = image[:, ::-1]
        return np.ascontiguousarray(np.rot90(image, self.rotation // 90))  # rows of odd widths are padded


def _matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """Return the display matrix of a frame, 9 numbers row by row, or None."""
    try:
        side_data: Any = frame.side_data
    except ValueError:  # a kind of side data that is newer than PyAV
        return None
    matrix = side_data.get("DISPLAYMATRIX")
    numbers = None if matrix is None else tuple(np.frombuffer(bytes(matrix), np.int32).tolist())
    # In PyAV, a frame and its side data refer to each other. Such a frame, of megabytes, would live until Python looks
    # for garbage, which it seldom does in a process with many objects: one frame per video or connection. Made anew
    # for an empty frame, the side data let go of this one.
    type(side_data).__init__(side_data, _EMPTY)
    return numbers


def _orientation(matrix: tuple[int, ...] | None) -> tuple[int, bool]:
    """Reduce a display matrix to (degrees counter-clockwise, whether mirrored left to right before the rotation).

    The 3x3 matrix maps the stored (x, y) to (a*x + c*y, b*x + d*y); a, b is its first row and c, d its second
    (libavutil/display.h). Other angles are rounded to the nearest quarter turn.
    """
    if matrix is None:
        return 0, False
    a, b, _, c, d = matrix[:5]
    mirrored = a * d - b * c < 0
    if mirrored:  # without the mirroring of x, the rest is a pure rotation
        a, b = -a, -b
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (0 if a + d >= 0 else 180), mirrored
    return (90 if c - b > 0 else 270), mirrored
