"""Segments of frames: their size, the resized picture and the field's ten crops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

WIDTH, HEIGHT = 340, 256
"""Size in pixels to which every frame is resized. The aspect ratio is not kept."""
CROP = 224
"""Side of a crop in pixels."""


def resize(frames: np.ndarray, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """Resize frames with cv2's bilinear interpolation. The aspect ratio is not kept.

    Args:
        frames: uint8 (n, H, W) or (n, H, W, 3).
        size: (width, height) in pixels.

    Returns:
        uint8 (n, height, width) or (n, height, width, 3).

    Raises:
        TypeError: The dtype is not uint8.
        ValueError: The shape is different.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[3] != 3) or 0 in frames.shape[1:3]:
        raise ValueError(f"frames must be (n, H, W) or (n, H, W, 3), got {frames.shape}")
    width, height = size
    out = np.empty((len(frames), height, width, *frames.shape[3:]), np.uint8)
    for source, target in zip(frames, out, strict=True):
        resize_into(source, target)
    return out


def crop_boxes() -> list[tuple[int, int, bool]]:
    """Return (top, left, mirrored) of the ten crops in pixels, in the field's order.

    The order is centre, top left, top right, bottom left, bottom right, then the same five mirrored.
    """
    bottom, right = HEIGHT - CROP, WIDTH - CROP
    corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [(top, left, mirrored) for mirrored in (False, True) for top, left in corners]


def crops(images: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Cut crops from full-size images.

    Args:
        images: (n, 256, 340) or (n, 256, 340, 3) of any dtype.
        indices: Crop numbers, positions in `crop_boxes`.

    Returns:
        (n, len(indices), 224, 224) or (n, len(indices), 224, 224, 3) of the same dtype.

    Raises:
        ValueError: The shape is different, or an index is outside 0..9.
    """
    images = np.asarray(images)
    if images.ndim < 3 or images.shape[1:3] != (HEIGHT, WIDTH):
        raise ValueError(f"images must be (n, {HEIGHT}, {WIDTH}[, 3]), got {images.shape}")
    boxes = crop_boxes()
    if any(not 0 <= index < len(boxes) for index in indices):
        raise ValueError(f"crop indices lie in 0..{len(boxes) - 1}, got {list(indices)}")
    out = np.empty((len(images), len(indices), CROP, CROP, *images.shape[3:]), images.dtype)
    # With columns and channels merged, a window is copied row by row instead of pixel by pixel. A mirrored crop is a
    # window of the mirrored picture, which is made once for all crops.
    channels = math.prod(images.shape[3:])
    wide = images.reshape(len(images), HEIGHT, WIDTH * channels)
    mirrored_wide: np.ndarray = wide
    if any(boxes[index][2] for index in indices):
        mirrored_wide = _mirror(images).reshape(wide.shape)
    rows = out.reshape(len(images), len(indices), CROP, CROP * channels)
    for slot, index in enumerate(indices):
        top, left, mirrored = boxes[index]
        source, left = (mirrored_wide, WIDTH - CROP - left) if mirrored else (wide, left)
        rows[:, slot] = source[:, top : top + CROP, left * channels : (left + CROP) * channels]
    return out


def _mirror(images: np.ndarray) -> np.ndarray:
    """Mirror images (n, H, W[, C]) left to right. cv2 is fifty times as fast as numpy here."""
    out = np.empty(images.shape, images.dtype)
    for source, target in zip(np.ascontiguousarray(images), out, strict=True):
        # cv2 does not know every dtype, so a pixel is passed as bytes.
        pixels, place = (array.view(np.uint8).reshape(*array.shape[:2], -1) for array in (source, target))
        cv2.flip(pixels, 1, dst=place)
    return out


def ten_crop(frames: np.ndarray) -> np.ndarray:
    """Resize uint8 frames (n, H, W, 3) and cut the ten crops, uint8 (n, 10, 224, 224, 3)."""
    return crops(resize(frames), range(10))


def resize_into(frame: np.ndarray, out: np.ndarray) -> None:
    """Resize one frame, uint8 (H, W) or (H, W, 3), into an array of another size."""
    height, width = out.shape[:2]
    if frame.shape == out.shape:
        out[:] = frame
    else:
        cv2.resize(np.ascontiguousarray(frame), (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
