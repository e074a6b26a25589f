"""Processes that decode and resize videos ahead of the encoder: both ends of the pipe.

A process is a plain `python`, told by a line of JSON which video to decode, that answers with segments of raw bytes. It
imports no torch (it starts in a quarter of a second), takes no shared memory (containers have little), is held back by
the full pipe, and ends when the pipe is closed, however its parent ended. What crashes it fails one video alone.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from iefvad.utils.errors import UserError
from iefvad.utils.prefetch import ahead
from iefvad.video import HEIGHT, SEGMENT, WIDTH, Segments

SHAPE = (SEGMENT, HEIGHT, WIDTH, 3)
"""Shape of a segment, uint8 RGB."""

_AHEAD = 4  # segments that a process decodes before anybody takes them: 4 MB each
_PIPE = 1 << 20  # bytes; the usual 64 KiB would cost a switch between processes 64 times a segment
_HEAD = struct.Struct("<cI")  # kind and length of what follows
_READY, _OPENED, _SEGMENT, _ENDED, _FAILED = b"R", b"O", b"S", b"E", b"F"

# The child finds modules where its parent does, and runs nothing else of its parent's (multiprocessing would import the
# parent's main module, and torch with it).
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from iefvad.extraction.decoding import serve; serve()"
)


@dataclass
class Opened:
    """A video was opened: frames per second, and the container's claim of its number of frames, if it makes one."""

    fps: float
    frames: int | None


@dataclass
class Ended:
    """A video was decoded to its end: frames decoded, and frames left over after the last segment."""

    frames: int
    frames_dropped: int


class DecoderCrashError(Exception):
    """The decoding process ended in the middle of a video; the message says how."""


class DecodingProcess:
    """One process that decodes one video after another. Start it, call `decode` once a video, then `close`."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _START, json.dumps(sys.path)]
        # A session of its own: Ctrl-C in a terminal is for the parent alone, which then ends this process.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._replies = self._process.stdin, self._process.stdout
        _widen(self._replies.fileno())
        self._ready = False

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def decode(
        self, path: Path, settings: dict[str, Any], buffer: Callable[[], np.ndarray]
    ) -> Iterator[Opened | np.ndarray | Ended]:
        """Decode a video: yields `Opened`, its segments, each in an array of `SHAPE` taken from `buffer`, and `Ended`.

        settings: `tail` and `on_truncated` as of `Segments`. Raises UserError for a video that cannot be read,
        DecoderCrashError if the process ends (it is then of no more use), and RuntimeError if it does not even start.
        """
        request = {"path": str(path), "tail": settings["tail"], "on_truncated": settings["on_truncated"]}
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
                    yield Ended(content["frames"], content["frames_dropped"])
                    return
                else:
                    raise UserError(content["reason"])
        except (EOFError, OSError) as error:
            raise DecoderCrashError(
                f"decoding {path} ended the process that did it ({self._end()}); leave it out, or convert it"
            ) from error

    def kill(self) -> None:
        """End the process at once; a `decode` in another thread then raises."""
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
        return json.loads(text)

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
        killed = "; out of memory, perhaps" if code == -signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{killed}"


def serve() -> None:
    """Main of the process: decode what standard input names until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not come between
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
    os._exit(0)  # whatever a decoder's threads still do


def _decode(request: dict[str, Any], send: Callable[[bytes, Any], None]) -> None:
    try:
        segments = Segments(request["path"], tail=request["tail"], on_truncated=request["on_truncated"])
        send(_OPENED, {"fps": segments.info.fps, "frames": segments.info.frames})
        with contextlib.closing(ahead(segments, _AHEAD)) as decoded:
            for segment in decoded:
                send(_SEGMENT, segment.data.cast("B"))
        send(_ENDED, {"frames": segments.frames_read, "frames_dropped": segments.frames_dropped})
    except UserError as error:
        send(_FAILED, {"reason": str(error)})
    except BrokenPipeError:
        raise
    except Exception as error:  # of a library, at one video out of thousands: say it, and go on with the others
        send(_FAILED, {"reason": f"{request['path']} cannot be decoded ({type(error).__name__}: {error})"})


def _write(stream: BinaryIO, content: memoryview) -> None:
    while content:
        content = content[stream.write(content) :]


def _widen(descriptor: int) -> None:
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
