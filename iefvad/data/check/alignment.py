"""Finds where each video starts in a gt.npy, whose lengths per video are not written anywhere.

The annotation of a video gives its labels for every number of segments T. So the file shows which T are possible: those
for which the labels agree with the file. One pass through the list forwards and one backwards keep, for each video, the
starts that belong to at least one complete reading of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iefvad.data.annotations import frame_truth
from iefvad.video import SEGMENT


@dataclass(frozen=True)
class Alignment:
    """Result of `align` for N videos.

    Attributes:
        starts: (N, 2), first and last possible start of each video in segments. None if the annotations do not fit the
            file in this order.
        segments: Number of segments in the file.
        stuck: Position of the first video that does not fit, N if the file is longer than all videos, or None.
        reached: Segment before which `stuck` cannot start.
    """

    starts: np.ndarray | None
    segments: int
    stuck: int | None = None
    reached: int = 0

    def lengths(self) -> dict[int, int]:
        """Return {position: T} of the videos whose start and end are both certain."""
        if self.starts is None:
            return {}
        bounds = np.concatenate([self.starts, [[self.segments, self.segments]]])
        certain = bounds[:, 0] == bounds[:, 1]
        return {
            index: int(bounds[index + 1, 0] - bounds[index, 0])
            for index in range(len(bounds) - 1)
            if certain[index] and certain[index + 1]
        }


def align(gt: np.ndarray, videos: Sequence[Sequence[tuple[int, int]]]) -> Alignment:
    """Fit annotated videos to frame labels.

    Every video has at least one segment. Its length is otherwise free, and its intervals are clipped to it.

    Args:
        gt: Frame labels, 0 or 1, (16·ΣT,).
        videos: Half-open intervals in frames of each video, in the order of the list.
    """
    segments = len(gt) // SEGMENT
    codes = _codes(np.asarray(gt[: segments * SEGMENT]))
    positive = np.append(np.flatnonzero(codes), segments)
    following = positive[np.searchsorted(positive, np.arange(segments + 1))]  # next segment that has an abnormal frame
    patterns = [_pattern(intervals, segments) for intervals in videos]
    possible = np.zeros((len(videos) + 1, segments + 1), bool)
    possible[0, 0] = True
    for index, pattern in enumerate(patterns):
        starts = np.flatnonzero(possible[index, :segments])
        ends = _reach(codes, following, pattern, starts)
        change = np.zeros(segments + 2, np.int64)
        np.add.at(change, starts + 1, 1)
        np.add.at(change, ends + 1, -1)
        possible[index + 1] = np.cumsum(change)[: segments + 1] > 0
        if not possible[index + 1].any():
            return Alignment(None, segments, index, int(starts[0]) if len(starts) else segments)
    if not possible[-1, segments]:
        return Alignment(None, segments, len(videos), int(np.flatnonzero(possible[-1]).max()))
    bounds = np.zeros((len(videos), 2), np.int64)
    good = np.zeros(segments + 1, bool)
    good[segments] = True
    for index in reversed(range(len(videos))):
        starts = np.flatnonzero(possible[index, :segments])
        ends = _reach(codes, following, patterns[index], starts)
        before = np.concatenate([[0], np.cumsum(good)])
        kept = starts[before[ends + 1] - before[starts + 1] > 0]
        bounds[index] = kept[0], kept[-1]
        good = np.zeros(segments + 1, bool)
        good[kept] = True
    return Alignment(bounds, segments)


def _reach(codes: np.ndarray, following: np.ndarray, pattern: np.ndarray, starts: np.ndarray) -> np.ndarray:
    # The last possible end of the video for each start: until there, its labels agree with the file.
    shown = np.flatnonzero(pattern)
    ends: np.ndarray = following[starts]
    if len(shown) == 0:
        return ends
    first, count = int(shown[0]), len(codes)
    ends = np.minimum(following[starts], starts + first)
    for index in np.flatnonzero(following[starts] == starts + first):
        begin = int(starts[index]) + first
        found = codes[begin : begin + len(pattern) - first]
        wrong = np.flatnonzero(found != pattern[first : first + len(found)])
        if len(wrong):
            ends[index] = begin + wrong[0]
        else:
            ends[index] = following[min(begin + len(found), count)]
    return ends


def _pattern(intervals: Sequence[tuple[int, int]], segments: int) -> np.ndarray:
    # No video is longer than the file.
    length = min(max((end for _, end in intervals), default=0), SEGMENT * segments)
    return _codes(frame_truth(intervals, SEGMENT * -(-length // SEGMENT)))


def _codes(labels: np.ndarray) -> np.ndarray:
    # The 16 labels of each segment as one number.
    pairs: np.ndarray = np.packbits(labels.astype(bool).reshape(-1, SEGMENT), axis=1).astype(np.uint16)
    codes: np.ndarray = pairs @ np.array([256, 1], np.uint16)
    return codes
