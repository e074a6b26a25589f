"""Damage to decoded frames, as a bad camera or transmission causes it (`docs/specification.md#robustness`).

The damage of a frame depends on the name of its video and its number alone, not on what is computed beside it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import cv2
import numpy as np

from iefvad.utils.errors import UserError

KINDS = "blur=SIGMA, dark=GAIN, noise=SIGMA, drop=FRACTION, dead-event"
"""What a text of corruptions may contain, in the order in which they are applied."""

_DEAD_EVENT = "dead-event"


@dataclass(frozen=True)
class Corruptions:
    """What is done to each frame, in this order. None: it is left out.

    Attributes:
        blur: Standard deviation of a Gaussian blur in pixels of the resized frame, above 0 and at most 50.
        dark: Factor of all values, at least 0 and below 1.
        noise: Standard deviation of Gaussian noise in grey levels, above 0 and at most 255.
        drop: Fraction of the frames that are lost, above 0 and at most 1. The frame before stays on.
        dead_event: Event maps are zero.
    """

    blur: float | None = None
    dark: float | None = None
    noise: float | None = None
    drop: float | None = None
    dead_event: bool = False

    @classmethod
    def parse(cls, text: str | None) -> Corruptions:
        """Read a text such as `dark=0.3,noise=5,dead-event`.

        Raises:
            UserError: A name is unknown or given twice, or a value is missing or out of its range.
        """
        found: dict[str, float] = {}
        dead = False
        for word in text.split(",") if text else ():
            name, equals, value = word.strip().partition("=")
            if name in found or (dead and name == _DEAD_EVENT):
                raise UserError(f"--corrupt {text}: {name} is given twice; give it once.")
            if name == _DEAD_EVENT and not equals:
                dead = True
            elif name in _RANGES and equals:
                found[name] = _number(name, value, f"--corrupt {text}")
            else:
                raise UserError(f"--corrupt {text}: {word.strip()!r} is not a corruption; there are {KINDS}.")
        return cls(**found, dead_event=dead)

    def __str__(self) -> str:
        """Return the text that `parse` reads, always in the same order and with the shortest numbers."""
        words = [
            f"{name}={np.format_float_positional(value, trim='-')}"
            for name in _RANGES
            if (value := getattr(self, name)) is not None
        ]
        return ",".join([*words, *[_DEAD_EVENT] * self.dead_event])


# Lowest and highest value, and whether each of both is allowed.
_RANGES = {
    "blur": (0.0, 50.0, False, True),
    "dark": (0.0, 1.0, True, False),
    "noise": (0.0, 255.0, False, True),
    "drop": (0.0, 1.0, False, True),
}


def _number(name: str, text: str, given: str) -> float:
    low, high, with_low, with_high = _RANGES[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not ((low < value < high) or (with_low and value == low) or (with_high and value == high)):
        lower, upper = "at least" if with_low else "above", "at most" if with_high else "below"
        raise UserError(f"{given}: {name} must be {lower} {low:g} and {upper} {high:g}, not {text!r}.")
    return value


class FrameCorruption:
    """Damages the frames of one video, one after another from the first.

    Args:
        corruptions: What is done.
        name: Name of the video. It seeds noise and the choice of lost frames.
    """

    def __init__(self, corruptions: Corruptions, name: str) -> None:
        self._wanted, self._name = corruptions, name
        self._number = 0
        self._before: np.ndarray | None = None
        self._levels: np.ndarray | None = None
        if corruptions.dark is not None:
            self._levels = np.rint(np.arange(256) * corruptions.dark).astype(np.uint8)

    def apply(self, frame: np.ndarray) -> None:
        """Damage the next frame, uint8 (H, W, 3), in place."""
        number, wanted = self._number, self._wanted
        self._number += 1
        if wanted.drop is not None and self._before is not None and self._lost(number, wanted.drop):
            frame[:] = self._before
            return
        if wanted.blur is not None:
            side = 2 * math.ceil(3 * wanted.blur) + 1
            frame[:] = cv2.GaussianBlur(
                frame, (side, side), wanted.blur, sigmaY=wanted.blur, borderType=cv2.BORDER_REFLECT_101
            )
        if self._levels is not None:
            frame[:] = self._levels[frame]
        if wanted.noise is not None:
            noise = self._random(number).standard_normal(frame.shape, np.float32)
            noise *= np.float32(wanted.noise)
            noise += frame
            frame[:] = np.rint(noise, out=noise).clip(0, 255)
        if wanted.drop is not None:
            self._before = frame.copy()

    def _lost(self, number: int, fraction: float) -> bool:
        return int.from_bytes(self._seed("drop", number)[:8], "big") < fraction * 2**64

    def _random(self, number: int) -> np.random.Generator:
        return np.random.default_rng(np.frombuffer(self._seed("noise", number), np.uint32))

    def _seed(self, use: str, number: int) -> bytes:
        return hashlib.sha256(f"{use}\0{number}\0{self._name}".encode(errors="surrogateescape")).digest()
