"""What counts as a video file, by its content and not by its name."""

from __future__ import annotations

import os
import socket
import threading
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from iefvad.utils.errors import UserError
from iefvad.video import Segments, probe, read_frames

PICTURES = list(np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8))


def encode(path: Path, codec: str, pix_fmt: str, *, form: str | None = None, rate: int = 10, count: int = 20) -> Path:
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for picture in PICTURES[:count]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def song(path: Path, codec: str) -> Path:
    """Sound with a cover."""
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream(codec, rate=16000), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in [*cover.encode(av.VideoFrame.from_ndarray(PICTURES[0], format="rgb24")), *cover.encode()]:
            container.mux(packet)
        for index in range(20):
            chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts = 16000, 1024 * index
            container.mux(sound.encode(chunk))
        container.mux(sound.encode())
    return path


def sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return path


def text(content: str):
    return lambda path: path.write_text(content)


def still(path: Path) -> None:
    path.write_bytes(cv2.imencode(path.suffix, PICTURES[0])[1].tobytes())


SUBTITLES = "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 50
HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("words.txt", text("hello world\n" * 300), "it is text"),
        ("readme.nfo", text("hello world\n" * 300), "it is text"),
        ("words.mp4", text("hello world\n" * 300), "it is text"),
        ("straße.csv", text("ä,ö,ü\n1,2,3\n" * 600), "it is text"),
        ("film.srt", text(SUBTITLES), "only subtitles"),
        ("sound.wav", sound, "only sound"),
        ("song.mp4", lambda path: song(path, "aac"), "cover"),
        ("song.flac", lambda path: song(path, "flac"), "cover"),
        ("still.jpg", still, "one still picture"),
        ("still.png", still, "one still picture"),
        ("still.bmp", still, "one still picture"),
        ("still.tiff", still, "one still picture"),
        ("still.webp", still, "one still picture"),
        ("jpg.mp4", lambda path: path.write_bytes(cv2.imencode(".jpg", PICTURES[0])[1].tobytes()), "one still picture"),
        ("one.gif", lambda path: encode(path, "gif", "rgb8", count=1), "one still picture"),
        ("one.mkv", lambda path: encode(path, "mjpeg", "yuvj420p", count=1), "one still picture"),
    ],
)
def test_what_has_no_moving_pictures(tmp_path: Path, name: str, make, reason: str) -> None:
    path = tmp_path / name
    make(path)
    for tail in ("drop", "repeat"):
        with pytest.raises(UserError, match=reason) as caught:
            list(Segments(path, tail=tail))
        message = str(caught.value)
        assert message.startswith(str(path)) and "no moving pictures" in message and "\n" not in message
    with pytest.raises(UserError, match="no moving pictures"):
        list(read_frames(path))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "form", "rate"),
    [
        ("slow.mp4", "libx264", "yuv420p", None, 1),
        ("slow.avi", "mjpeg", "yuvj420p", None, 1),
        ("animated.gif", "gif", "rgb8", None, 10),
        ("animated.png", "apng", "rgb24", "apng", 10),
        ("camera.mjpg", "mjpeg", "yuvj420p", "mpjpeg", 10),
        ("camera.mjpeg", "mjpeg", "yuvj420p", "mjpeg", 10),
        ("pictures.mov", "png", "rgb24", None, 10),
        ("raw.h264", "libx264", "yuv420p", "h264", 10),
        ("plain.y4m", "rawvideo", "yuv420p", "yuv4mpegpipe", 10),
        ("film.txt", "libx264", "yuv420p", "mp4", 10),
        ("film", "libx264", "yuv420p", "matroska", 10),
    ],
)
def test_what_moves_is_a_video_whatever_its_codec_and_name(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, form: str | None, rate: int
) -> None:
    path = encode(tmp_path / name, codec, pix_fmt, form=form, rate=rate)
    assert sum(1 for _ in read_frames(path)) == 20
    segments = Segments(path)
    assert len(list(segments)) == 1 and not segments.truncated


def test_a_video_with_a_cover_is_a_video(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        cover, stream = container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=10)
        cover.disposition = av.stream.Disposition.attached_pic
        for track, pix_fmt in ((cover, "yuvj420p"), (stream, "yuv420p")):
            track.width, track.height, track.pix_fmt = 64, 48, pix_fmt
        for track, count in ((cover, 1), (stream, 20)):
            for picture in PICTURES[:count]:
                container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(track.encode())
    assert sum(1 for _ in read_frames(path)) == 20


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", HLS.format("clip.ts")),
        ("list.mp4", HLS.format("http://127.0.0.1:{port}/clip.ts")),
        ("list.txt", "ffconcat version 1.0\nfile 'clip.ts'\n"),
        ("cat.mp4", "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/clip.ts'\n"),
        ("s.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 33\n"),
    ],
)
def test_a_playlist_opens_no_other_file_and_no_network(tmp_path: Path, name: str, content: str) -> None:
    encode(tmp_path / "clip.ts", "libx264", "yuv420p", form="mpegts")
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        thread = threading.Thread(target=lambda: asked.append(server.accept()[0].close()))
        path = tmp_path / name
        path.write_text(content.replace("{port}", str(server.getsockname()[1])))
        threading.excepthook, before = lambda _: None, threading.excepthook
        try:
            thread.start()
            with pytest.raises(UserError, match="is a playlist, which has no moving pictures"):
                probe(path)
            thread.join()
        finally:
            threading.excepthook = before
    assert not asked


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer that may never come."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="a pipe, a socket or a device"):
        probe(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket.mp4"))
        with pytest.raises(UserError, match="a pipe, a socket or a device"):
            probe(tmp_path / "socket.mp4")


def test_an_error_of_reading_is_not_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that drops: FFmpeg takes some errors for the end, which must not pass as a shorter video."""
    for form in ("mpegts", "matroska", "mp4", "avi"):
        path = encode(tmp_path / f"a.{form}", "mpeg4", "yuv420p", form=form)
        assert sum(1 for _ in read_frames(path)) == 20
        half = path.stat().st_size // 2
        with monkeypatch.context() as patch:
            patch.setattr("iefvad.video.opening.open_regular", lambda p, half=half: FailingFile(p, half))
            with pytest.raises(UserError, match="Input/output error") as caught:
                list(read_frames(path))
        assert str(caught.value).count("\n") == 0


class FailingFile:
    """A file whose storage fails beyond a place."""

    def __init__(self, path: Path, limit: int) -> None:
        self.file, self.limit = open(path, "rb", buffering=0), limit  # noqa: SIM115

    def read(self, count: int) -> bytes:
        place = self.file.tell()
        if place >= self.limit:
            raise OSError(5, "Input/output error")
        return self.file.read(min(count, self.limit - place))

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def test_a_title_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Strasse"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in PICTURES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert b"Strasse" in content
    path.write_bytes(content.replace(b"Strasse", b"Stra\xdfe "))
    assert sum(1 for _ in read_frames(path)) == 20
