"""Videos for benchmarks: one that is made up, a texture that moves across the picture, with noise; or given frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np

FPS = 30


def write_clip(path: Path, *, frames: int, size: tuple[int, int] = (320, 240), seed: int = 0) -> None:
    """Make up `frames` pictures of `size` (width, height; even numbers) and encode them; every segment has events."""
    write_frames(path, _moving(frames, size, seed))


def write_frames(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Encode frames, uint8 RGB (H, W, 3) of one size, as H.264; an odd last row or column is left out."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        for picture in frames:
            height, width = (side // 2 * 2 for side in picture.shape[:2])
            if not stream.codec_context.is_open:
                stream.width, stream.height = width, height
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _moving(count: int, size: tuple[int, int], seed: int) -> Iterator[np.ndarray]:
    width, height = size
    random = np.random.default_rng(seed)
    cells = random.integers(0, 256, (height // 4, width // 2, 3), dtype=np.uint8)
    texture = cv2.resize(cells, (2 * width, 2 * height))
    for number in range(count):
        top, left = number % height, 3 * number % width
        picture = texture[top : top + height, left : left + width].astype(np.int16)
        picture += random.integers(-6, 7, picture.shape, dtype=np.int16)
        yield picture.clip(0, 255).astype(np.uint8)
