"""Small pictures of moments of a video, as JPEG. This module needs no plotting library."""

from __future__ import annotations

import cv2
import numpy as np

_WIDEST = 320  # pixels


def jpeg(image: np.ndarray, *, widest: int = _WIDEST) -> bytes:
    """Return a picture as a JPEG file.

    Args:
        image: uint8 RGB (H, W, 3).
        widest: Maximum width in pixels; a wider picture is made smaller.

    Raises:
        ValueError: the picture has another dtype or shape.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"a thumbnail must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    if width > widest:
        size = (widest, max(1, round(height * widest / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise ValueError("the thumbnail could not be encoded")
    return data.tobytes()
