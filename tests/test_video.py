"""Decoding, segments and crops, on videos written here and on real ones."""

from __future__ import annotations

import gc
import json
import re
import struct
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import cv2
import numpy as np
import pytest

from iefvad import video
from iefvad.utils.errors import UserError
from iefvad.video import Segments, crop_boxes, crops, find_videos, probe, read_frames, resize, ten_crop
from tests.helpers.video_files import make_video

COLOURS = np.array([(230, 40, 40), (40, 210, 40), (40, 40, 220), (220, 220, 40)], np.uint8)


def picture(width: int, height: int) -> np.ndarray:
    """Four quarters of different colours: red, green / blue, yellow."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    return COLOURS[rows[:, None] * 2 + columns[None, :]]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    times: Sequence[int] | None = None,
    audio: bool = False,
    movflags: str | None = None,
) -> Path:
    """Encode RGB frames. ``times`` are time stamps in milliseconds."""
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if audio:
            sound = container.add_stream("aac", rate=44100)
            tone = np.zeros((1, 1024), np.float32)
            for index in range(30):
                chunk = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
                chunk.rate, chunk.pts = 44100, 1024 * index
                container.mux(sound.encode(chunk))
            container.mux(sound.encode(None))
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def noise(count: int, width: int = 64, height: int = 48, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    shorter = path.with_name(f"cut_{path.name}")
    shorter.write_bytes(data[: int(len(data) * share)])
    return shorter


def close_to(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Chroma is halved and quantised: inside the quarters, levels must agree within 12, at their borders not."""
    difference = np.abs(actual.astype(int) - expected.astype(int)).max(-1)
    return actual.shape == expected.shape and np.mean(difference <= 12) > 0.8


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "width", "height"),
    [
        ("mp4", "libx264", "yuv420p", 64, 48),
        ("mp4", "libx264", "yuv444p", 65, 47),
        ("avi", "mpeg4", "yuv420p", 65, 47),
        ("avi", "mjpeg", "yuvj420p", 33, 50),
        ("mkv", "libx264", "yuv444p", 1 + 64, 48),
    ],
)
def test_frames_of_odd_and_even_sizes(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str, width: int, height: int
) -> None:
    image = picture(width, height)
    path = write_video(tmp_path / f"a.{suffix}", [image] * 5, codec=codec, pix_fmt=pix_fmt)
    frames = list(read_frames(path))
    assert len(frames) == 5
    for frame in frames:
        assert frame.dtype == np.uint8 and frame.flags.c_contiguous
        assert close_to(frame, image)
    info = probe(path)
    assert (info.width, info.height, info.fps, info.rotation) == (width, height, 25.0, 0)


def test_even_sizes_decode_as_cv2(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(6))
    capture = cv2.VideoCapture(str(path))
    for frame in read_frames(path):
        ok, expected = capture.read()
        assert ok
        # Both hand the conversion to swscale; another build may round differently by one level.
        assert np.abs(frame.astype(int) - expected[..., ::-1]).max() <= 1


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3))
    path = write_video(tmp_path / "grey.mkv", [np.ascontiguousarray(ramp)] * 3, codec="ffv1", pix_fmt="gray")
    frames = list(read_frames(path))
    assert len(frames) == 3
    assert frames[0].shape == (48, 64, 3)
    np.testing.assert_array_equal(frames[0][..., 0], frames[0][..., 2])
    # Lossless; converting to grey and back may clip to the limited range's 220 steps and back.
    assert np.abs(frames[0].astype(int) - ramp).max() <= 2


def matrix_bytes(a: int, b: int, c: int, d: int) -> bytes:
    one = 1 << 16
    return struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)


# (a, b, c, d) of the display matrix: a stored point (x, y) is shown at (ax + cy, bx + dy).
ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), 0, lambda image: image),
    "quarter turn to the left": ((0, -1, 1, 0), 90, lambda image: np.rot90(image, 1)),
    "half turn": ((-1, 0, 0, -1), 180, lambda image: np.rot90(image, 2)),
    "quarter turn to the right": ((0, 1, -1, 0), 270, lambda image: np.rot90(image, 3)),
    "mirrored": ((-1, 0, 0, 1), 0, lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), 180, lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), 90, lambda image: image.transpose(1, 0, 2)),
    "transposed the other way": ((0, -1, -1, 0), 270, lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_rotation_metadata_is_applied(tmp_path: Path, orientation: str) -> None:
    entries, rotation, turned = ORIENTATIONS[orientation]
    image = picture(64, 32)
    path = write_video(tmp_path / "a.mp4", [image] * 17)
    data = path.read_bytes()
    identity = matrix_bytes(1, 0, 0, 1)
    track = data.index(b"tkhd")
    at = data.index(identity, track)
    path.write_bytes(data[:at] + matrix_bytes(*entries) + data[at + len(identity) :])
    expected = np.ascontiguousarray(turned(image))
    assert close_to(next(read_frames(path)), expected)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.rotation == rotation
    assert next(Segments(path, size=None)).shape[1:] == expected.shape


def test_decoded_frames_do_not_wait_for_the_garbage_collector(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(40))
    gc.collect()
    gc.disable()
    try:
        for _ in read_frames(path):
            pass
        alive = sum(type(found) is av.VideoFrame for found in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 2  # the first one, whose display matrix was read, and the last


def test_variable_rate_takes_every_frame_once(tmp_path: Path) -> None:
    images = [np.full((48, 64, 3), 10 + 6 * index, np.uint8) for index in range(40)]
    times = np.cumsum([20 if index % 3 else 200 for index in range(40)]).tolist()
    path = write_video(tmp_path / "vfr.mp4", images, times=times)
    levels = [float(frame.mean()) for frame in read_frames(path)]
    assert len(levels) == 40
    np.testing.assert_allclose(levels, [10 + 6 * index for index in range(40)], atol=3)  # lossy codec, flat pictures
    # 40 frames from 0.2 s to 3.32 s, the last shown for about as long as the one before
    assert probe(path).fps == pytest.approx(40 / 3.2, rel=0.08)


def test_audio_tracks_are_ignored(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(20), audio=True)
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 1
    assert sum(1 for _ in read_frames(path)) == 20


def test_segments_equal_frames_resized(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(35))
    frames = np.stack(list(read_frames(path)))
    segments = Segments(path)
    found = list(segments)
    assert [segment.shape for segment in found] == [(16, 256, 340, 3)] * 2
    np.testing.assert_array_equal(np.concatenate(found), resize(frames[:32]))
    assert (segments.frames_read, segments.frames_dropped, segments.truncated) == (35, 3, False)
    assert segments.info.frames == 35
    assert list(segments) == []


@pytest.mark.parametrize(("count", "length", "expected"), [(32, 16, 2), (33, 16, 3), (5, 16, 1), (7, 3, 3)])
def test_tail_repeat_fills_with_the_last_frame(tmp_path: Path, count: int, length: int, expected: int) -> None:
    path = write_video(tmp_path / "a.mp4", noise(count))
    frames = list(read_frames(path))
    segments = Segments(path, length=length, size=None, tail="repeat")
    found = np.concatenate(list(segments))
    assert len(found) == expected * length
    np.testing.assert_array_equal(found[:count], np.stack(frames))
    for frame in found[count:]:
        np.testing.assert_array_equal(frame, frames[-1])
    assert (segments.frames_read, segments.frames_dropped) == (count, 0)


def test_too_short_for_a_segment(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(9))
    segments = Segments(path)
    with pytest.raises(UserError, match=r"has 9 frames, fewer than the 16 .*--tail repeat"):
        list(segments)
    assert segments.frames_dropped == 9


def test_close_releases_the_file(tmp_path: Path) -> None:
    segments = Segments(write_video(tmp_path / "a.mp4", noise(40)))
    next(segments)
    segments.close()
    with pytest.raises(StopIteration):
        next(segments)


@pytest.mark.parametrize(("name", "value"), [("tail", "keep"), ("on_truncated", "drop"), ("length", 0)])
def test_segments_refuse_unknown_options(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Segments(tmp_path / "a.mp4", **{name: value})


TRUNCATED = [
    ("mp4", "libx264", "yuv420p", "faststart"),
    ("mp4", "libx264", "yuv420p", "frag_keyframe+empty_moov"),
    ("avi", "mpeg4", "yuv420p", None),
    ("avi", "mjpeg", "yuvj420p", None),
    ("mkv", "libx264", "yuv420p", None),
    ("webm", "libvpx", "yuv420p", None),
]


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt", "movflags"), TRUNCATED)
def test_truncated(tmp_path: Path, suffix: str, codec: str, pix_fmt: str, movflags: str | None) -> None:
    whole = write_video(tmp_path / f"a.{suffix}", noise(100), codec=codec, pix_fmt=pix_fmt, movflags=movflags)
    complete = Segments(whole, size=None)
    assert len(list(complete)) == 6
    assert not complete.truncated
    path = cut(whole, 0.6)
    with pytest.raises(UserError, match=r"truncated or damaged: \d+ frames decoded .*--on-truncated keep") as caught:
        list(read_frames(path))
    decoded = int(re.search(r"(\d+) frames decoded", str(caught.value))[1])
    assert 40 <= decoded <= 75
    with pytest.raises(UserError, match=f"{decoded} frames decoded"):
        list(Segments(path))
    kept = Segments(path, size=None, on_truncated="keep")
    assert len(list(kept)) == decoded // 16
    assert (kept.frames_read, kept.truncated) == (decoded, True)
    assert sum(1 for _ in read_frames(path, on_truncated="keep")) == decoded


def test_hole_in_the_middle(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", noise(100), movflags="faststart")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 20] = bytes(len(data) // 20)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"truncated or damaged: \d+ frames decoded"):
        list(read_frames(path))
    kept = Segments(path, on_truncated="keep")
    list(kept)
    assert 80 <= kept.frames_read < 100  # what follows the hole is used too
    assert kept.truncated


def test_trimmed_by_edit_list_is_not_truncated(tmp_path: Path) -> None:
    # A phone's trim keeps all frames in the file and shows some: here an edit list that ends after half the video.
    path = write_video(tmp_path / "a.mp4", [picture(64, 48)] * 100)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 8  # behind type, version and flags: entry count
    count, duration = struct.unpack(">2I", data[at : at + 8])
    assert count == 1
    data[at + 4 : at + 8] = struct.pack(">I", duration // 2)
    path.write_bytes(data)
    segments = Segments(path)
    list(segments)
    assert 48 <= segments.frames_read < 100
    assert not segments.truncated


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_text("not a video at all\n" * 50), "cannot be opened as a video"),
        (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "cannot be opened as a video"),
        (lambda path: path.write_bytes(b"\0" * 5000), "cannot be opened as a video"),
    ],
    ids=["missing", "folder", "empty", "text", "random", "zeros"],
)
def test_not_a_video(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "a.mp4"
    make(path)
    for use in (probe, Segments, lambda path: list(read_frames(path))):
        with pytest.raises(UserError, match=message) as caught:
            use(path)
        assert str(path) in str(caught.value)


def test_index_missing(tmp_path: Path) -> None:
    path = cut(write_video(tmp_path / "a.mp4", noise(30)), 0.7)  # an mp4 written plainly has its index last
    with pytest.raises(UserError, match=r"cannot be opened as a video.*index is\s+missing"):
        probe(path)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(UserError, match=r"no moving pictures.*no video track"):
        probe(path)


def test_no_frames(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.avi", noise(3), codec="mjpeg", pix_fmt="yuvj420p")
    path = tmp_path / "none.avi"
    path.write_bytes(whole.read_bytes()[: whole.read_bytes().index(b"movi") + 4])
    for use in (probe, Segments, lambda path: list(read_frames(path))):
        with pytest.raises(UserError, match=r"no video frames|truncated or damaged: 0 frames|cannot be opened"):
            use(path)


@pytest.mark.parametrize("name", ["a:b.mp4", "with space.mp4", "v=x__#1_label_B2-G-0.mp4", "prozent%02d.mp4"])
def test_strange_names(tmp_path: Path, name: str) -> None:
    assert sum(1 for _ in read_frames(write_video(tmp_path / "a.mp4", noise(3)).rename(tmp_path / name))) == 3


@pytest.mark.parametrize("shape", [(3, 240, 320, 3), (2, 47, 65, 3), (1, 256, 340, 3), (2, 97, 51), (0, 10, 10, 3)])
@pytest.mark.parametrize("size", [(340, 256), (33, 20)])
def test_resize_is_cv2(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    frames = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    result = resize(frames, size)
    assert result.shape == (shape[0], size[1], size[0], *shape[3:])
    for frame, expected in zip(frames, result, strict=True):
        np.testing.assert_array_equal(expected, cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR))


def test_resize_of_strided_frames() -> None:
    frames = np.random.default_rng(2).integers(0, 256, (4, 60, 80, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(frames[::2, ::-1, ::2]), resize(np.ascontiguousarray(frames[::2, ::-1, ::2])))


def test_resize_refuses_other_input() -> None:
    with pytest.raises(TypeError, match="uint8"):
        resize(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r"\(n, H, W, 3\)"):
        resize(np.zeros((1, 8, 8, 4), np.uint8))


def test_crop_boxes_in_the_field_s_order() -> None:
    five = [(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]
    assert crop_boxes() == [(*box, mirrored) for mirrored in (False, True) for box in five]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_crops(dtype: type, channels: tuple[int, ...]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (2, 256, 340, *channels)).astype(dtype)
    found = crops(images, [5, 0, 4])
    assert found.shape == (2, 3, 224, 224, *channels) and found.dtype == dtype
    np.testing.assert_array_equal(found[:, 1], images[:, 16:240, 58:282])
    np.testing.assert_array_equal(found[:, 0], images[:, 16:240, 58:282][:, :, ::-1])
    np.testing.assert_array_equal(found[:, 2], images[:, -224:, -224:])
    assert crops(images[:0], range(10)).shape == (0, 10, 224, 224, *channels)


def test_crops_refuse_other_input() -> None:
    with pytest.raises(ValueError, match="340"):
        crops(np.zeros((1, 240, 320, 3), np.uint8), [0])
    with pytest.raises(ValueError, match="10"):
        crops(np.zeros((1, 256, 340), np.uint8), [10])


def test_ten_crop_is_resize_then_crops() -> None:
    frames = np.random.default_rng(4).integers(0, 256, (2, 120, 161, 3), dtype=np.uint8)
    found = ten_crop(frames)
    assert found.shape == (2, 10, 224, 224, 3) and found.dtype == np.uint8
    for frame, ten in zip(frames, found, strict=True):
        whole = cv2.resize(frame, (340, 256))
        for index, (top, left, mirrored) in enumerate(crop_boxes()):
            window = whole[top : top + 224, left : left + 224]
            np.testing.assert_array_equal(ten[index], cv2.flip(window, 1) if mirrored else window)


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b/two.MP4", "b/deep/three.mkv", "a/one.avi", "b/readme.txt", "b/._two.mp4", "b/.cache/x.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/loop").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "odd.bin").touch()
    found = find_videos([tmp_path / "b", str(tmp_path / "odd.bin"), tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "b/deep/three.mkv",
        "b/two.MP4",
        "odd.bin",
        "a/one.avi",
    ]


def test_find_videos_finds_none(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UserError, match="contains no video files"):
        find_videos([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        find_videos([tmp_path / "absent.mp4"])
    with pytest.raises(UserError, match="does not exist"):
        find_videos([tmp_path / ("a" * 10_000)])  # longer than any name
    with pytest.raises(UserError, match="no videos were given"):
        find_videos([])


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = write_video(tmp_path / "a.avi", [picture(640, 480)] * 200, codec="mpeg4")  # 184 MB when decoded
    segments = Segments(path, size=None)
    for _ in range(2):
        next(segments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in segments) == 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 80e6


def test_real_videos(shared_data: Path) -> None:
    truth = json.loads((shared_data / "videos" / "frame_gt.json").read_text())["videos"]
    assert len(truth) >= 12
    for name, entry in truth.items():
        path = shared_data / "videos" / name
        segments = Segments(path, size=(32, 24))
        assert sum(1 for _ in segments) == entry["n_frames"] // 16, name
        assert (segments.frames_read, segments.truncated) == (entry["n_frames"], False), name
        assert segments.info.fps == entry["fps"], name
    assert find_videos([shared_data / "videos"]) == sorted(shared_data / "videos" / name for name in truth)


def test_known_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in video.VIDEO_SUFFIXES)


def test_ffmpeg_messages_never_call_python(tmp_path: Path) -> None:
    """As torchvision 0.21 leaves it: messages that need the interpreter's lock can block a video closed early."""
    path = make_video(tmp_path / "clip.mp4", 40)
    av.logging.set_level(av.logging.ERROR)
    try:
        next(iter(read_frames(path)))
        assert av.logging.get_level() is None
    finally:
        av.logging.set_level(None)
