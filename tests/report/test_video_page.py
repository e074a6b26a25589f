"""The page of one video, from no segment to hours of video."""

from __future__ import annotations

import base64
import re

import cv2
import numpy as np
import pytest

from iefvad.report.video_page import write_timeline
from iefvad.scoring.video_scores import VideoScores, intervals_above
from tests.report.test_run_page import NASTY, check


def page_of(path, video, *, threshold=0.5, **more):
    intervals = more.pop("intervals", None)
    if intervals is None:
        intervals = intervals_above(video.scores, video.fps, threshold)
    write_timeline(path, title=f"title {NASTY}", video=video, intervals=intervals, threshold=threshold, **more)
    return check(path)


def test_page_names_intervals_peak_and_notes(tmp_path):
    w = np.array([0.4, 0.5, 0.6, 0.5])
    video = VideoScores(NASTY, (), 16.0, None, np.array([0.1, 0.875, 0.6, 0.2]), w, 1 - w, w)
    text, page = page_of(tmp_path / "t.html", video, notes=["partial segment dropped", NASTY])
    assert "<script" not in text
    assert "1 interval is flagged in 4 s" in page.text and "peaks at 0.88, at 0:00:01" in page.text
    for expected in ("0:00:01.0", "0:00:03.0", "2.0", "0.8750", "50.0%", "w_img", "gain", "partial segment dropped"):
        assert expected in page.text, expected
    assert page.text.count(NASTY) >= 3


def test_a_name_that_is_not_utf8(tmp_path):
    """File names of Linux are bytes; Python holds those that are not UTF-8 as lone surrogates."""
    _, page = page_of(tmp_path / "t.html", VideoScores("caf\udce9", (), 30.0, None, np.array([0.1])))
    assert "caf%E9" in page.text


def test_nothing_flagged(tmp_path):
    _, page = page_of(tmp_path / "t.html", VideoScores("v", (), 30.0, None, np.array([0.1, 0.2, 0.3])))
    assert "Nothing is flagged" in page.text and "No score reaches the threshold of 0.5" in page.text
    assert "w_img" not in page.text


@pytest.mark.parametrize("segments", [0, 1, 2])
def test_tiny_videos(tmp_path, segments):
    _, page = page_of(tmp_path / "t.html", VideoScores("v", (), 30.0, None, np.full(segments, 0.9)))
    assert ("shorter than one segment" in page.text) == (segments == 0)


def test_twenty_thousand_segments_stay_small(tmp_path):
    random = np.random.default_rng(0)
    values = random.random(20_000)
    w = random.random(20_000)
    video = VideoScores("long", (), 25.0, None, values, w, 1 - w, w)
    text, page = page_of(tmp_path / "t.html", video, threshold=0.6)
    assert len(text) < 1_500_000
    assert text.count("<tr>") == 201  # the head and the 200 highest of thousands
    assert "200 of the highest peaks" in page.text and "3:33:20" in page.text
    starts = re.findall(r"<td>(\d:\d\d:\d\d\.\d)</td><td>\d:", text)
    assert starts == sorted(starts) and len(starts) == 200


def test_thumbnails_carry_colour_time_and_score(tmp_path):
    image = np.zeros((90, 1000, 3), np.uint8)
    image[:, :, 0] = 200  # red in RGB
    video = VideoScores("v", (), 16.0, None, np.array([0.25, 0.75]))
    strided = np.repeat(image, 2, axis=0)[::2]
    text, page = page_of(tmp_path / "t.html", video, thumbnails=[(1.0, strided), (0.5, image[:1, :1])])
    assert "0:00:01.0, score 0.750" in page.text and "0:00:00.5, score 0.250" in page.text
    data = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]*)", text)[1])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (29, 320, 3)
    blue, _, red = decoded.reshape(-1, 3).mean(axis=0)
    assert red > 180 and blue < 20  # JPEG is lossy, swapped channels are not


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_thumbnail_of_another_kind_is_refused(tmp_path, bad):
    video = VideoScores("v", (), 16.0, None, np.array([0.25]))
    with pytest.raises(ValueError, match="thumbnail"):
        page_of(tmp_path / "t.html", video, thumbnails=[(0.0, bad)])
    assert not list(tmp_path.iterdir())
