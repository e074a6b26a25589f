"""Opening a video file, and what does not count as one.

FFmpeg recognises far more than videos: text as the art of old terminals, playlists that name other files, pictures,
songs with a cover. It gets the content of one regular file through Python, and may open nothing else: no other file, no
network.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import av.logging

from iefvad.utils.errors import UserError
from iefvad.utils.files import NotAFileError, open_regular
from iefvad.video.limits import LARGEST_LIMIT, MAX_PIXELS

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0\r", b"v=0\n", b"[playlist]", b"[Reference]", b"<asx", b"<ASX", b"RTSPtext")
_TEXT_CODECS = frozenset({"ansi", "bintext", "idf", "xbin"})
_COVERS = ("attached_pic", "timed_thumbnails", "still_image")
_HEAD = 4096


def silence_ffmpeg() -> None:
    """Keep FFmpeg's messages from Python, as PyAV does by default; call it before a video is opened.

    Older versions of torchvision switch them on for the whole process when they are imported. A decoder's thread then
    needs the interpreter's lock for a message, and a decoder that is closed early waits for its threads with that lock
    held: a deadlock.
    """
    av.logging.set_level(None)


class VideoFile:
    """A regular file as PyAV reads it.

    Attributes:
        name: "video" and the suffix of the file, which helps FFmpeg to recognise it.
        size: Size in bytes.
        error: The last error of reading. FFmpeg takes some of them for the end of the file.
    """

    def __init__(self, path: Path) -> None:
        """Open a file. Raises OSError, also for what is not a regular file."""
        self._file = open_regular(path)
        self.name = "video" + path.suffix.encode("ascii", "ignore").decode()[:8].replace("%", "")
        self.size = os.fstat(self._file.fileno()).st_size
        self.error: OSError | None = None

    def read(self, count: int) -> bytes:
        """Read up to `count` bytes."""
        try:
            return self._file.read(count) or b""
        except OSError as error:
            self.error = error
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the place of the next read and return it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place of the next read."""
        return self._file.tell()

    def head(self) -> bytes:
        """Return the first bytes of the file."""
        with contextlib.suppress(OSError):
            self.seek(0)
            return self.read(_HEAD)
        return b""

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # of a share that has gone
            self._file.close()


def require_pixels(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    """Check the size of a picture, (width, height), before it is decoded.

    Raises:
        UserError: It has more pixels than `max_pixels`.
    """
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            f"{path} has pictures of {width}x{height} pixels, more than the {max_pixels} of --max-pixels; leave it out,"
            " or raise --max-pixels"
        )


@contextlib.contextmanager
def opened(
    path: Path, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream, VideoFile]]:
    """Open a video file.

    Args:
        path: The file.
        max_pixels: Maximum number of pixels per frame. Decoders refuse larger frames before they allocate memory.

    Yields:
        The container, its best video stream, and the file.

    Raises:
        UserError: The file cannot be read, or has no moving pictures: text, playlists, sound, covers. A picture is only
            known by its number of frames, so it is opened.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, not a video file")
        file = VideoFile(path)
    except OSError as error:
        raise unreadable(path, error) from None
    with contextlib.closing(file):
        if file.size == 0:
            raise UserError(f"{path} is empty (0 bytes); fetch it again or leave it out")
        with _container(path, file, max_pixels) as container:
            stream = _moving(path, container)
            codec = stream.codec_context
            size = (codec.width, codec.height)
            require_pixels(path, size if all(size) else _stated_size(path), max_pixels)
            codec.options = {**codec.options, "max_pixels": ffmpeg_limit(max_pixels)}
            yield container, stream, file


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file or folder that the file system does not give."""
    remedy = "check the disk or the network share it is on"
    if isinstance(error, FileNotFoundError):
        what = "is a link to a file that is missing" if os.path.islink(path) else "does not exist"
        return UserError(f"{path} {what}; check the path")
    if isinstance(error, NotAFileError):
        return UserError(f"{path} is {error.strerror}; leave it out")
    if isinstance(error, PermissionError):
        remedy = "check its permissions"
    return UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}")


def no_motion(path: Path, what: str) -> UserError:
    """Return the error for a file that is not a video."""
    return UserError(f"{path} has no moving pictures: {what}; leave it out, or give a video")


def _container(path: Path, file: VideoFile, max_pixels: int) -> av.container.InputContainer:
    silence_ffmpeg()
    try:
        # No protocol has this name, so FFmpeg can open nothing but the file that it is given.
        options = {"protocol_whitelist": "none", "max_pixels": ffmpeg_limit(max_pixels)}
        container = av.open(file, mode="r", options=options, metadata_errors="replace")
        assert isinstance(container, av.container.InputContainer)
        return container
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if file.error is not None:
            raise unreadable(path, file.error) from None
        raise UserError(f"{path} cannot be opened as a video: {_kind(file)}") from error


def ffmpeg_limit(max_pixels: int) -> str:
    """Return the limit for FFmpeg, which counts the edges that it adds to pictures, too."""
    return str(min(LARGEST_LIMIT, max_pixels * 5 // 4 + (1 << 16)))


def _stated_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from headers alone, or zeros: with a limit, FFmpeg does not tell what is beyond it."""
    options = {"protocol_whitelist": "none", "skip_frame": "all", "max_pixels": str(LARGEST_LIMIT)}
    with (
        contextlib.suppress(av.error.FFmpegError, OSError, ValueError),
        contextlib.closing(VideoFile(path)) as file,
        av.open(file, mode="r", options=options, metadata_errors="replace") as container,
    ):
        stream = container.streams.best("video")
        if isinstance(stream, av.VideoStream) and stream.codec_context is not None:
            return stream.codec_context.width, stream.codec_context.height
    return 0, 0


def _kind(file: VideoFile) -> str:
    """Say what a file is that FFmpeg cannot open."""
    head = file.head()
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_PLAYLISTS) or b"urn:mpeg:dash:schema" in head:
        return "it is a playlist, which has no moving pictures itself; give the videos that it names"
    if _is_text(head):
        return "it is text, with no moving pictures; leave it out, or give a video"
    return (
        "it is another kind of file, or it is truncated so that its index is missing; fetch it again, convert it, or"
        " leave it out"
    )


def _is_text(head: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        text = head[: len(head) - 4 if len(head) == _HEAD else len(head)].decode("utf-8", "strict")
        return all(letter.isprintable() or letter in "\t\r\n\f\x1b" for letter in text)
    return False


def _moving(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        kinds = {"audio": "sound", "subtitle": "subtitles"}
        found = sorted({kinds.get(other.type, "data") for other in container.streams})
        raise no_motion(path, f"it has no video track, only {' and '.join(found) or 'other data'}")
    codec = stream.codec_context
    if codec is None:
        raise UserError(f"{path} has a kind of video that this FFmpeg cannot decode; convert it, or leave it out")
    if codec.name in _TEXT_CODECS or container.format.name == "tty":
        raise no_motion(path, "it is text")
    # PyAV before 12 does not show what a stream is for. There, a cover is recognised as a single picture.
    disposition = getattr(stream, "disposition", 0)
    if any(disposition & getattr(type(disposition), name, 0) for name in _COVERS):
        raise no_motion(path, "its only picture is a cover")
    return stream
