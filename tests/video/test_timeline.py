"""Times and single pictures of a video without decoding it from the beginning: the same as the decoder's."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from iefvad.utils.errors import UserError
from iefvad.video import timed_frames
from iefvad.video.timeline import Pictures, read_timeline
from tests.helpers.video_files import make_video


def write(path: Path, times: list[float], codec: str = "libx264", **options: str) -> Path:
    """Write a video whose frames are shown at these times; each has a brightness of its own."""
    with av.open(str(path), "w") as container:
        fixed = codec in ("mpeg2video", "mpeg4")  # which know a few rates alone
        stream = container.add_stream(codec, rate=25 if fixed else 10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not fixed:
            stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = options
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), min(4 * number + 10, 255), np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


VARIABLE = list(np.cumsum([0.0, *np.random.default_rng(0).uniform(0.02, 0.3, 59)]))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.mp4", "libx264", {"bf": "3", "g": "12"}),
        ("open.mkv", "libx264", {"bf": "3", "g": "12", "x264-params": "open-gop=1"}),
        ("v.webm", "libvpx", {"g": "12"}),
        ("t.ts", "mpeg2video", {"bf": "2", "g": "12"}),
    ],
)
def test_times_and_pictures_are_the_decoders(tmp_path, name, codec, options):
    rate = [number / 25 for number in range(60)]
    path = write(tmp_path / name, rate if codec == "mpeg2video" else VARIABLE, codec, **options)
    decoded = list(timed_frames(path, on_truncated="keep"))
    timeline = read_timeline(path)
    np.testing.assert_allclose(timeline.times, [time for _, time in decoded], atol=1e-6)
    assert timeline.end > timeline.times[-1]
    pictures = Pictures(path, timeline)
    for number in (0, 1, 2, 40, 41, 13, 59, 12, 11, 0):
        shown = pictures.at((timeline.times[number] + timeline.seconds(number + 1)) / 2)
        np.testing.assert_array_equal(shown, decoded[number][0], err_msg=f"frame {number}")
    assert np.array_equal(pictures.at(1e6), decoded[-1][0]) and np.array_equal(pictures.at(-5), decoded[0][0])
    pictures.close()


def test_files_without_stamps_and_folders(tmp_path):
    for path in (make_video(tmp_path / "a.avi", 30), make_video(tmp_path / "raw.m4v", 30)):
        decoded = [frame for frame, _ in timed_frames(path)]
        timeline = read_timeline(path)
        pictures = Pictures(path, timeline)
        assert len(timeline.times) == 30
        for number in (29, 3, 4, 20):
            np.testing.assert_array_equal(pictures.at(timeline.times[number]), decoded[number])
        pictures.close()
    reordered = write(tmp_path / "b.avi", [number / 25 for number in range(60)], "mpeg4", bf="2", g="12")
    decoded = [frame for frame, _ in timed_frames(reordered)]
    timeline = read_timeline(reordered)
    pictures = Pictures(reordered, timeline)
    for number in (50, 51, 3, 4, 59, 12, 12, 0):
        np.testing.assert_array_equal(pictures.at(timeline.times[number]), decoded[number], err_msg=str(number))
    import cv2

    (tmp_path / "frames").mkdir()
    for number in range(5):
        cv2.imwrite(str(tmp_path / "frames" / f"{number:03d}.png"), np.full((20, 30, 3), 40 * number, np.uint8))
    timeline = read_timeline(tmp_path / "frames", 10)
    assert timeline.times == [0.0, 0.1, 0.2, 0.3, 0.4] and timeline.end == pytest.approx(0.5)
    assert Pictures(tmp_path / "frames", timeline, 10).at(0.25).max() == 80


def test_intervals_become_the_frames_that_are_shown_in_them():
    from iefvad.video.timeline import Timeline

    timeline = Timeline([0.0, 0.1, 0.5, 0.6], 0.7, 5.0)
    assert timeline.frames(0.0, 0.7) == (0, 4) and timeline.frames(0.3, 0.5) == (1, 2)
    assert timeline.frames(0.3, 0.51) == (1, 3) and timeline.frames(0.6, 0.6) == (3, 4)
    for first, last in ((0, 1), (1, 3), (3, 4)):
        assert timeline.frames(timeline.seconds(first), timeline.seconds(last)) == (first, last), "nothing creeps"


@pytest.mark.parametrize("content", [b"", b"text", bytes(5000)])
def test_what_is_no_video(tmp_path, content):
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(UserError):
        read_timeline(tmp_path / "x.mp4")


def test_pictures_of_a_damaged_file_are_what_decodes(tmp_path):
    path = write(tmp_path / "v.mkv", VARIABLE, g="10")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    timeline = read_timeline(path)
    pictures = Pictures(path, timeline)
    assert all(pictures.at(time).shape == (48, 64, 3) for time in timeline.times[::7])
