"""Processes that decode and resize videos ahead of the encoder. This module has both ends of the pipe.

Each process is a plain `python`. One line of JSON tells it which video to decode, and it answers with segments as raw
bytes. It does not import torch, so it starts in a quarter of a second. It needs no shared memory, which is scarce in
containers. A full pipe makes it wait. It ends when the pipe is closed, even if its parent was killed. A crash of the
process fails only one video.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from iefvad.utils.errors import UserError
from iefvad.utils.prefetch import ahead
from iefvad.video import HEIGHT, LIMITS, SEGMENT, WIDTH, Segments

SHAPE = (SEGMENT, HEIGHT, WIDTH, 3)
"""Shape (frames, height, width, channels) of a segment, uint8 RGB."""

_AHEAD = 4  # segments that a process decodes in advance: 4 MB each
_PIPE = 1 << 20  # bytes; the usual 64 KiB would cost 64 switches between processes per segment
_HEAD = struct.Struct("<cI")  # kind and length of what follows
_READY, _OPENED, _SEGMENT, _ENDED, _FAILED = b"R", b"O", b"S", b"E", b"F"

# The child searches modules where its parent does, and runs nothing else of its parent. (multiprocessing would import
# the parent's main module, and torch with it.)
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from iefvad.extraction.decoding import serve; serve()"
)


@dataclass
class Opened:
    """Message: a video was opened. `fps` is frames per second, `frames` what the container claims, or None."""

    fps: float
    frames: int | None


@dataclass
class Ended:
    """Message: a video was decoded to its end.

    Attributes:
        frames: Number of decoded frames.
        frames_dropped: Number of frames after the last segment.
        starts: Start of each segment in seconds.
        ends: End of each segment in seconds.
        clock: Where the times come from, as `iefvad.video.ClockReport.as_dict` returns it.
    """

    frames: int
    frames_dropped: int
    starts: list[float]
    ends: list[float]
    clock: dict[str, Any]

    @classmethod
    def of(cls, segments: Segments) -> Ended:
        """Return the message about segments that were all read. Times are rounded to microseconds."""
        starts, ends = ([round(time, 6) for time in times] for times in (segments.starts, segments.ends))
        return cls(segments.frames_read, segments.frames_dropped, starts, ends, segments.clock.as_dict())


class DecoderCrashError(Exception):
    """The decoding process ended in the middle of a video. The message says how."""


class DecodingProcess:
    """One process that decodes one video after another.

    Construct it, call `decode` once per video, then `close`.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        # In a session of its own, it does not receive Ctrl-C from the terminal. The parent does, and then ends it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._replies = self._process.stdin, self._process.stdout
        _widen(self._replies.fileno())
        self._ready = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def decode(
        self, path: Path, settings: dict[str, Any], buffer: Callable[[], np.ndarray]
    ) -> Iterator[Opened | np.ndarray | Ended]:
        """Decode one video.

        Args:
            path: The video file, or a folder of frames.
            settings: `tail`, `on_truncated` and perhaps `fps`, `corrupt`, `name` and `LIMITS`, as for
                `iefvad.video.Segments`.
            buffer: Returns an array of `SHAPE` to put the next segment in.

        Yields:
            `Opened`, then each segment (an array from `buffer`), then `Ended`.

        Raises:
            UserError: The video cannot be read.
            DecoderCrashError: The process ended. This object cannot be used any more.
            RuntimeError: The process did not start.
        """
        request = {"path": str(path)} | {key: settings.get(key) for key in ("fps", "corrupt")}
        request["name"] = settings.get("name", "")
        request |= {key: settings[key] for key in ("tail", "on_truncated")}
        request |= {key: settings[key] for key in LIMITS if key in settings}
        try:
            if not self._ready:
                self._reply()
                self._ready = True
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the decoding process did not start ({self._end()})") from error
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            while True:
                kind, length = self._head()
                if kind == _SEGMENT:
                    array = buffer()
                    self._read(array.data.cast("B"))
                    yield array
                    continue
                content = self._content(length)
                if kind == _OPENED:
                    yield Opened(content["fps"], content["frames"])
                elif kind == _ENDED:
                    yield Ended(**content)
                    return
                else:
                    raise UserError(content["reason"])
        except (EOFError, OSError) as error:
            raise DecoderCrashError(
                f"decoding {path} crashed the decoding process ({self._end()}); leave the video out, or convert it"
            ) from error

    def kill(self) -> None:
        """End the process at once. A `decode` that runs in another thread then raises an error."""
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        self.kill()
        self._process.wait()
        for stream in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                stream.close()

    def _reply(self) -> tuple[bytes, dict[str, Any]]:
        kind, length = self._head()
        return kind, self._content(length)

    def _head(self) -> tuple[bytes, int]:
        head = bytearray(_HEAD.size)
        self._read(memoryview(head))
        return _HEAD.unpack(head)

    def _content(self, length: int) -> dict[str, Any]:
        text = bytearray(length)
        self._read(memoryview(text))
        content: dict[str, Any] = json.loads(text)
        return content

    def _read(self, target: memoryview) -> None:
        while target:
            count = self._replies.readinto(target)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            target = target[count:]

    def _end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        code = self._process.returncode
        if code is None:
            return "no answer"
        if code >= 0:
            return f"exit status {code}"
        killed = "; perhaps out of memory" if code == -signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{killed}"


def serve() -> None:
    """Run the decoding process: decode the videos that standard input names until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # text that libraries print must not mix with the replies
    cv2.setNumThreads(1)
    lock = threading.Lock()

    def send(kind: bytes, content: memoryview | dict[str, Any]) -> None:
        body = memoryview(json.dumps(content).encode()) if isinstance(content, dict) else content
        with lock:
            _write(replies, memoryview(_HEAD.pack(kind, body.nbytes)))
            _write(replies, body)

    try:
        send(_READY, {})
        for line in sys.stdin.buffer:
            _decode(json.loads(line), send)
    except BrokenPipeError:
        pass
    os._exit(0)  # does not wait for threads of the decoder


def _decode(request: dict[str, Any], send: Callable[[bytes, Any], None]) -> None:
    try:
        segments = Segments(**request)
        send(_OPENED, {"fps": segments.info.fps, "frames": segments.info.frames})
        with contextlib.closing(ahead(segments, _AHEAD)) as decoded:
            for segment in decoded:
                send(_SEGMENT, segment.data.cast("B"))
        send(_ENDED, asdict(Ended.of(segments)))
    except UserError as error:
        send(_FAILED, {"reason": str(error)})
    except BrokenPipeError:
        raise
    except Exception as error:  # a library fails at one video of thousands: report it and continue with the others
        send(_FAILED, {"reason": f"{request['path']} cannot be decoded ({type(error).__name__}: {error})"})


def _write(stream: BinaryIO, content: memoryview) -> None:
    while content:
        content = content[stream.write(content) :]


def _widen(descriptor: int) -> None:
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
