"""Damage that decoders conceal, and sizes that are looked at before decoding."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from iefvad.cli.extract import main as extract
from iefvad.extraction import jobs
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.video import Segments, Upright, find_videos, gif, read_frames, segments
from iefvad.video.clock import FrameClock
from iefvad.video.damage import Damage
from iefvad.video.decoding import Decoder
from iefvad.video.matroska import flaw
from iefvad.video.opening import opened
from tests.helpers.video_files import make_video


def damaged(path: Path) -> Path:
    """Let random bytes replace some of the pictures."""
    data, random = bytearray(path.read_bytes()), np.random.default_rng(0)
    for place in random.integers(len(data) // 4, len(data) * 3 // 4, 4):
        data[place : place + 24] = random.bytes(24)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_concealed_damage_is_told(tmp_path: Path, name: str) -> None:
    path = damaged(make_video(tmp_path / "in" / name))
    told = []
    for threads in (False, True):
        decoder = Decoder(path, threads=threads, keep=True)
        assert sum(1 for _ in decoder) > 30
        told.append(decoder.damage)
    assert told[0] == told[1] and told[0] is not None
    with pytest.raises(UserError, match="truncated or damaged"):
        list(read_frames(path))


def test_extraction_says_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(make_video(tmp_path / "in" / "a.mp4"))
    arguments = [str(tmp_path / "in"), "--quiet", "--out"]
    assert extract([*arguments, str(tmp_path / "s"), "--on-truncated", "keep"]) == 0
    assert "a: truncated or damaged: " in capsys.readouterr().err
    assert "damage" in (FeatureStore(tmp_path / "s").sidecar("a").clock or {})
    assert extract([*arguments, str(tmp_path / "t")]) == 1


def test_the_structure_of_matroska(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv")
    assert flaw(path) is None
    damaged(path)
    assert flaw(path) is not None


def test_damage_of_the_structure_alone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(make_video(tmp_path / "a.mkv"))
    assert sum(1 for _ in decoder) == 40 and decoder.damage is None
    monkeypatch.setattr("iefvad.video.matroska.flaw", lambda path: "its structure is torn")
    decoder = Decoder(tmp_path / "a.mkv")
    assert sum(1 for _ in decoder) == 40 and "its structure is torn" in (decoder.damage or "")


def test_a_decoder_that_marks_nothing_is_strict(tmp_path: Path) -> None:
    path, random = tmp_path / "a.avi", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for _ in range(20):
            picture = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    damaged(path)
    with pytest.raises(UserError, match="truncated or damaged"):
        list(read_frames(path))


def test_frames_before_the_first_key_frame_are_no_damage() -> None:
    frame_clock = FrameClock(25.0)
    damage = Damage(Path("a.ts"), frame_clock, "mpegts", 1 / 90_000)
    for corrupt, key, flawed in ((True, False, 0), (True, False, 0), (False, True, 0), (True, False, 1)):
        frame_clock.feed(None)
        damage.look(SimpleNamespace(is_corrupt=corrupt, key_frame=key, pts=None))
        assert damage.flawed == flawed


@pytest.mark.parametrize(("whole", "flawed"), [(True, 1), (False, 0)])
def test_a_key_frame_that_damage_makes_another_kind_is_damage(whole: bool, flawed: int) -> None:
    frame_clock = FrameClock(25.0)
    damage = Damage(Path("a.mp4"), frame_clock, "mp4", 1 / 25)
    damage.watch(SimpleNamespace(size=9, pts=0, dts=None, pos=None, is_keyframe=whole, is_discard=False))
    frame_clock.feed(None)
    damage.look(SimpleNamespace(is_corrupt=True, key_frame=False, pts=0))
    assert damage.flawed == flawed


@pytest.mark.parametrize(
    ("codec", "told"),
    [("flv", "1 of its 3 packets gave no pictures"), ("h264", None), ("hevc", None)],
)
def test_packets_without_pictures_are_told_where_each_has_one(codec: str, told: str | None) -> None:
    frame_clock = FrameClock(25.0)
    damage = Damage(Path("a.flv"), frame_clock, "mp4", 1 / 25, codec)
    for pts in range(3):
        damage.watch(SimpleNamespace(size=9, pts=pts, dts=None, pos=None, is_keyframe=not pts, is_discard=False))
    for pts in (0, 2):
        frame_clock.feed(None)
        damage.look(SimpleNamespace(is_corrupt=False, key_frame=not pts, pts=pts))
    assert damage.tail() == told


def test_an_error_that_threads_drop_at_the_end_is_told() -> None:
    frame_clock = FrameClock(25.0)
    damage = Damage(Path("a.mp4"), frame_clock, "mp4", 1 / 25, "hevc")
    for pts in (0, 1, 2, 3):
        damage.watch(SimpleNamespace(size=9, pts=pts, dts=None, pos=None, is_keyframe=not pts, is_discard=False))
    frame_clock.feed(None)
    damage.look(SimpleNamespace(is_corrupt=False, key_frame=True, pts=0))
    assert damage.tail() == "its last 3 packets gave no pictures"


def test_decoders_have_the_limit_for_pictures_that_grow(tmp_path: Path) -> None:
    with opened(make_video(tmp_path / "a.mp4", frames=2), 10_000) as (_, stream, _):
        assert 10_000 <= int(stream.codec_context.options["max_pixels"]) < 2_000_000


def test_large_frames_and_long_videos_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4", size=(64, 48))
    with pytest.raises(UserError, match="64x48 pixels, more than the 3071 of --max-pixels"):
        Segments(path, max_pixels=3071)
    with pytest.raises(UserError, match="more than the 39 frames of --max-frames"):
        list(Segments(path, max_frames=39))
    assert len(list(Segments(path, max_pixels=3072, max_frames=40))) == 2
    with pytest.raises(UserError, match="1280x1024 pixels, more than the 1000"):  # the decoder refuses it, too
        Segments(make_video(tmp_path / "b.mp4", frames=2, size=(1280, 1024)), max_pixels=1000)
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), np.zeros((48, 64, 3), np.uint8))
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(UserError, match="--max-pixels"):
        Segments(tmp_path, fps=25, max_pixels=3071)


def test_any_error_costs_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_video(tmp_path / "in" / name, frames=20)
    probe, state_of, states = segments.probe, jobs.state_of, iter(range(100))

    def failing(path: Path, **more: object) -> object:
        if Path(path).name == "a.mp4":
            raise MemoryError
        return probe(path, **more)

    monkeypatch.setattr(segments, "probe", failing)
    monkeypatch.setattr(jobs, "state_of", lambda path: next(states) if path.name == "c.mp4" else state_of(path))
    assert extract([str(tmp_path / "in"), "--out", str(tmp_path / "s"), "--quiet"]) == 1
    assert FeatureStore(tmp_path / "s").names() == ["b"]
    failed = (tmp_path / "s" / "failed.csv").read_text()
    assert "more memory" in failed and "changed while it was read" in failed


def test_an_empty_folder_named_like_a_video_is_listed(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").mkdir()
    assert find_videos([tmp_path]) == [tmp_path / "x.mp4"]


def test_a_frame_is_freed_when_its_orientation_was_read(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=3)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            with av.open(str(path)) as container:
                upright = Upright()
                for frame in container.decode(video=0):
                    upright(frame)
        alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert alive < 10  # it was one per opened file


def test_the_structure_of_gif(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    pictures = [Image.fromarray(np.full((48, 64, 3), 10 * number, np.uint8)) for number in range(20)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    assert gif.flaw(path) is None and len(list(read_frames(path))) == 20
    data = path.read_bytes()
    data = path.read_bytes()
    path.write_bytes(data[:-1])  # without the mark of the end
    assert gif.flaw(path) == f"its structure is damaged at byte {len(data) - 1}"
    with pytest.raises(UserError, match="structure is damaged"):
        list(read_frames(path))


def test_the_codes_of_gif(tmp_path: Path) -> None:
    """Blocks have their sizes still, but a code of a picture does not exist."""
    path, random = tmp_path / "a.gif", np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (48, 64), np.uint8)) for _ in range(20)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    data = path.read_bytes()
    path.write_bytes(data[:-200] + b"\xff" * 32 + data[-168:])
    assert gif.flaw(path) == "its picture 20 cannot be decoded"
    with pytest.raises(UserError, match="picture 20 cannot be decoded"):
        list(read_frames(path))


def test_damaged_jpeg_pictures_are_told(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), picture)
    assert len(list(read_frames(tmp_path, fps=25))) == 4
    data = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(data[: len(data) // 2] + data[-2:])  # half of the data is missing
    with pytest.raises(UserError, match=r"0\.jpg has a damaged picture"):
        list(read_frames(tmp_path, fps=25))


def test_another_codec_within_a_transport_stream_is_told(tmp_path: Path) -> None:
    parts = []
    for codec in ("mpeg2video", "libx264"):
        path = make_video(tmp_path / f"{codec}.ts", codec=codec)
        assert len(list(read_frames(path))) > 30
        parts.append(path.read_bytes())
    cut = len(parts[0]) * 2 // 3 // 188 * 188
    path.write_bytes(parts[0][:cut] + parts[1][cut:])
    with pytest.raises(UserError, match="packets gave no pictures"):
        list(read_frames(path))
