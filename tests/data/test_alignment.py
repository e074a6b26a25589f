"""Finding the lengths of videos from gt.npy and their annotations."""

from __future__ import annotations

import numpy as np
import pytest

from iefvad.data.annotations import frame_truth
from iefvad.data.check.alignment import align

Intervals = tuple[tuple[int, int], ...]


def concatenated(videos: list[tuple[Intervals, int]]) -> np.ndarray:
    return np.concatenate([frame_truth(intervals, 16 * length) for intervals, length in videos])


@pytest.mark.parametrize(
    ("videos", "certain"),
    [
        ([(((5, 20),), 3)], {0: 3}),
        ([((), 7)], {0: 7}),
        ([(((0, 3),), 2), (((1, 9),), 4)], {0: 2, 1: 4}),
        (
            [((), 2), (((30, 40),), 3), ((), 4), (((3, 9),), 1)],
            {0: 2, 3: 1},
        ),  # those in the middle are open
        ([((), 2), ((), 4), (((2, 30),), 5)], {2: 5}),
        ([(((10, 90),), 4), (((0, 5),), 1)], {0: 4, 1: 1}),  # cut off at the end of the video
        ([(((10, 90),), 4), (((0, 90),), 1)], {}),  # and running on into the next video
    ],
)
def test_lengths_that_follow(videos: list[tuple[Intervals, int]], certain: dict[int, int]) -> None:
    fit = align(concatenated(videos), [intervals for intervals, _ in videos])
    assert fit.starts is not None
    assert fit.lengths() == certain
    begin = 0
    for (low, high), (_, length) in zip(fit.starts, videos, strict=True):
        assert low <= begin <= high
        begin += length


def test_random_lengths_are_always_possible() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        videos: list[tuple[Intervals, int]] = []
        for _ in range(int(random.integers(1, 8))):
            ends = np.sort(random.integers(0, 200, 2 * int(random.integers(0, 3))))
            intervals = tuple((int(start), int(end)) for start, end in ends.reshape(-1, 2))
            videos.append((intervals, int(random.integers(1, 10))))
        fit = align(concatenated(videos), [intervals for intervals, _ in videos])
        assert fit.starts is not None
        begins = np.cumsum([0, *(length for _, length in videos[:-1])])
        assert ((fit.starts[:, 0] <= begins) & (begins <= fit.starts[:, 1])).all()
        for index, length in fit.lengths().items():
            assert length == videos[index][1]


def test_what_does_not_fit_is_named() -> None:
    videos: list[tuple[Intervals, int]] = [(((5, 20),), 3), ((), 2), (((3, 40),), 4)]
    gt = concatenated(videos)
    changed = gt.copy()
    changed[16 * 5 + 30] = 0
    fit = align(changed, [intervals for intervals, _ in videos])
    assert fit.starts is None
    assert fit.lengths() == {}
    assert fit.stuck == 3  # all begin, none leads to the end
    exchanged = align(gt, [videos[2][0], (), videos[0][0]])
    assert (exchanged.starts, exchanged.stuck) == (None, 0)
    assert align(gt[:16], [intervals for intervals, _ in videos]).starts is None
    assert align(gt, [intervals for intervals, _ in videos[:2]]).starts is None
    assert align(np.zeros(0), []).starts is not None
