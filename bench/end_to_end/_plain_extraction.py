"""Extraction as one writes it first: each of the ten crops decoded and processed on its own, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from iefvad.encoders.encoder import Encoder
from iefvad.extraction.encoding import event_batch
from iefvad.video import CROP, HEIGHT, SEGMENT, WIDTH, crop_boxes, read_frames

LUMA = np.array([2989.0, 5870.0, 1140.0])  # in 1e-4 grey levels, so that float64 sums are exact


def crop(frame: np.ndarray, index: int) -> np.ndarray:
    """One crop of one frame: uint8 (H, W, 3) of any size → (224, 224, 3)."""
    top, left, mirrored = crop_boxes()[index]
    view = cv2.resize(frame, (WIDTH, HEIGHT))[top : top + CROP, left : left + CROP]
    return np.ascontiguousarray(view[:, ::-1] if mirrored else view)


def image_crops(frames: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) → (n, 10, 224, 224, 3): every crop resized and cut on its own."""
    return np.stack([[crop(frame, index) for index in range(10)] for frame in frames])


def segment_events(pixels: np.ndarray, threshold: float = 10.0, clamp: int = 10) -> np.ndarray:
    """The event map of a segment's crop, uint8 (n, H, W, 3) → float32 (H, W), one whole array per step.

    The first frame is the last one of the segment before, where there is one.
    """
    luma = (pixels * LUMA).sum(-1)
    events = np.abs(np.diff(luma, axis=0)) > threshold * 10_000
    return (np.minimum(events.sum(0), clamp) / clamp).astype(np.float32)


def ten_crop_events(frames: np.ndarray) -> np.ndarray:
    """uint8 (n, H, W, 3) → (n // 16, 10, 224, 224): every crop resized, cut and differenced on its own."""
    maps = [
        segment_events(np.stack([crop(frame, index) for frame in frames[start : start + SEGMENT]]))
        for start in range(0, len(frames) - SEGMENT + 1, SEGMENT)
        for index in range(10)
    ]
    return np.stack(maps).reshape(-1, 10, CROP, CROP)


def extract(path: Path, encoder: Encoder, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Image and event features of a video, float32 (crops, segments, D) each, for the default event settings."""
    pairs = [_one_crop(path, encoder, index) for index in indices]
    return torch.stack([image for image, _ in pairs]), torch.stack([event for _, event in pairs])


def _one_crop(path: Path, encoder: Encoder, index: int) -> tuple[Tensor, Tensor]:
    image: list[Tensor] = []
    event: list[Tensor] = []
    maps: list[np.ndarray] = []
    before: list[np.ndarray] = []
    for pixels in _segments(path, index):
        image.append(encoder.encode_image(torch.from_numpy(pixels)).mean(0).cpu())
        maps.append(segment_events(np.stack([*before, *pixels])))
        before = [pixels[-1]]
        if len(maps) == event_batch(encoder):
            event.append(encoder.encode_event(torch.from_numpy(np.stack(maps))).cpu())
            maps = []
    if maps:
        event.append(encoder.encode_event(torch.from_numpy(np.stack(maps))).cpu())
    return torch.stack(image), torch.cat(event)


def _segments(path: Path, index: int) -> Iterator[np.ndarray]:
    """One crop of a video's whole segments, uint8 (16, 224, 224, 3)."""
    views: list[np.ndarray] = []
    for frame in read_frames(path):
        views.append(crop(frame, index))
        if len(views) == SEGMENT:
            yield np.stack(views)
            views = []
