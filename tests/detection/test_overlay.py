"""The overlay video: every frame of the original at its rate, with a red frame where it is flagged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from iefvad.detection import overlay
from iefvad.detection.outputs import write_results
from iefvad.detection.overlay import write_overlay
from iefvad.scoring.video_scores import VideoScores
from iefvad.utils.errors import UserError
from iefvad.video import probe, read_frames
from tests.helpers.detecting import small_detector, write_video


def scores_of(values: list[float], fps: float) -> VideoScores:
    return VideoScores("v", (), fps, None, np.array(values))


def is_red(frame: np.ndarray) -> bool:
    """Tell whether the left edge of a frame is red; the videos here have no strong colours."""
    red, green, blue = frame[20:200, :3].reshape(-1, 3).mean(0)
    return bool(red > 180 and green < 110 and blue < 110)


@pytest.mark.parametrize(("suffix", "fps", "codec"), [("mp4", 25, "libx264"), ("mkv", 12, "mpeg4")])
def test_frames_rate_and_red_frame(tmp_path, monkeypatch, suffix, fps, codec):
    if codec == "mpeg4":
        monkeypatch.setattr(overlay.av, "codecs_available", {"mpeg4"})
    clip = write_video(tmp_path / f"clip.{suffix}", frames=70, fps=fps)
    scores = scores_of([0.2, 0.9, 0.8, 0.1], fps)
    target = tmp_path / "out" / "overlay.mp4"
    write_overlay(target, clip, scores, [(16 / fps, 48 / fps, 0.9)], 0.5)
    frames = list(read_frames(target))
    assert len(frames) == 70, "the frames behind the last score are there too"
    assert [is_red(frame) for frame in frames] == [16 <= index < 48 for index in range(70)]
    assert frames[0].shape == (4 * 96 + 64, 512, 3)  # enlarged to be read, the panel below
    with av.open(str(target)) as container:
        assert container.streams.video[0].average_rate == fps
        assert container.streams.video[0].codec_context.name.startswith({"libx264": "h264"}.get(codec, codec))
    # The picture itself is that of the original.
    original = next(read_frames(clip)).astype(int)
    shown = frames[0][8:376:4, 8:504:4].astype(int)
    assert np.abs(shown - original[2:94, 2:126]).mean() < 12  # codec and enlargement blur a little
    assert [path.name for path in target.parent.iterdir()] == ["overlay.mp4"]


def test_odd_sizes(tmp_path):
    path = tmp_path / "odd.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 531, 97, "yuv420p"
        for _ in range(16):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((97, 531, 3), 90, np.uint8), format="rgb24"))
            )
        container.mux(stream.encode())
    write_overlay(tmp_path / "o.mp4", path, scores_of([0.5], 10.0), [], 0.9)
    info = probe(tmp_path / "o.mp4")
    assert (info.width, info.height) == (532, 97 + 65)


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError):
        write_overlay(tmp_path / "o.mp4", tmp_path / "absent.mp4", scores_of([0.5], 25.0), [], 0.9)
    assert not list(tmp_path.iterdir())


def test_detection_writes_one_where_asked(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", frames=40)
    detector = small_detector(overlay=True)
    paths = write_results(detector(clip), tmp_path / "out", "clip", detector)
    assert [path.name for path in paths][-1] == "clip_overlay.mp4"
    assert len(list(read_frames(Path(paths[-1])))) == 40


def test_overlay_and_terminal_do_without_matplotlib():
    """Watching a camera must not wait for a plotting library."""
    code = (
        "import sys, iefvad.detection.overlay, iefvad.detection.terminal; assert 'iefvad.video' in sys.modules;"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('matplotlib', 'jinja2')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
