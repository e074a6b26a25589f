"""For the tests of detection: small videos, a small model in memory, and servers that send videos."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from iefvad.checkpoints.hub import IEFVAD
from iefvad.detection.config import DetectConfig
from iefvad.detection.detector import Detector
from iefvad.encoders.encoder import build_encoder
from iefvad.extraction.stream import DEFAULTS
from iefvad.model.config import ModelConfig


def write_video(path: Path, *, frames: int = 160, fps: int = 25, seed: int = 0, burst: range = range(0)) -> Path:
    """Write a video of a textured still picture, 128 x 96. A block flickers in the segments of `burst`."""
    random = np.random.default_rng(seed)
    still = cv2.GaussianBlur(random.integers(0, 255, (96, 128, 3), dtype=np.uint8), (0, 0), 3)
    form = {".ts": "mpegts"}.get(path.suffix)
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "20", "g": "25"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(frames):
            picture = still.copy()
            if index // 16 in burst:
                picture[30:70, 40:90] = 255 * (index % 2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def small_model(chunk: int = 8, **config) -> IEFVAD:
    """Return an untrained network on the fixed descriptor. Its scores vary with the picture, which is enough here."""
    torch.manual_seed(0)
    encoder = build_encoder(device="cpu")
    model = IEFVAD(ModelConfig(**{"dim": encoder.dim, "heads": 2, "refine_steps": 1, **config})).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(4.0)  # spread the scores
    settings = {**DEFAULTS, **encoder.settings}
    model.provenance = {"encoder": settings, "chunk": chunk, "threshold": 0.5, "method": "ief", "test_crops": "5"}
    return model


def small_detector(*, live: bool = False, model: IEFVAD | None = None, **settings) -> Detector:
    return Detector(model or small_model(), DetectConfig(device="cpu", **settings), live=live)


@contextlib.contextmanager
def tcp_server(*replies: bytes | Callable[[socket.socket], None], keep: bool = False) -> Iterator[str]:
    """Send one reply per connection, then close it. The server ends after the last one, or repeats it with `keep`."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    stop = threading.Event()

    def serve() -> None:
        listener.settimeout(0.1)
        left = list(replies)
        while left and not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):
                reply = left[0] if keep and len(left) == 1 else left.pop(0)
                if callable(reply):
                    reply(connection)
                else:
                    connection.sendall(reply)
                connection.shutdown(socket.SHUT_WR)
        listener.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        stop.set()
        thread.join(5)


def paced(data: bytes, seconds: float, then: float = 0.0) -> Callable[[socket.socket], None]:
    """Send `data` evenly over some seconds, like a camera, then keep the connection open."""

    def send(connection: socket.socket) -> None:
        for part in range(50):
            connection.sendall(data[len(data) * part // 50 : len(data) * (part + 1) // 50])
            time.sleep(seconds / 50)
        silent(then)(connection)

    return send


def silent(seconds: float) -> Callable[[socket.socket], None]:
    """Send nothing for some seconds, or until the other side closes the connection."""

    def wait(connection: socket.socket) -> None:
        connection.settimeout(seconds or None)
        with contextlib.suppress(OSError):
            while seconds and connection.recv(4096):
                pass

    return wait


@contextlib.contextmanager
def http_server(data: bytes, *, breaks: int = 0, breaks_at: float = 0.5) -> Iterator[str]:
    """Serve `data` as /video.mp4. The first `breaks` requests get only a fraction of it."""
    left = [breaks]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            cut = len(data)
            if left[0] > 0:
                left[0] -= 1
                cut = int(len(data) * breaks_at)
            with contextlib.suppress(OSError):
                self.wfile.write(data[:cut])

        def log_message(self, *arguments) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/video.mp4"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def faststart(path: Path) -> bytes:
    """Return the bytes of an MP4 with its index at the beginning, so that it can be read without seeking."""
    target = path.with_name(f"front_{path.name}")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    return target.read_bytes()
