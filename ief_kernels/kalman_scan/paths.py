"""Which of the two Triton paths a scan takes: one loop over time for each lane (b, d), or chunks of time side by side.

With few lanes the latency of a step bounds the loop. Chunks read the inputs twice instead, in three launches. Nothing
here imports triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from .. import _arguments

# Estimated for an H100; no GPU has timed it. A step of the loop takes 80 to 100 ns where rows are loaded far enough
# ahead, and up to 250 ns where the loop waits for memory. Two launches more take 4 to 12 µs. Chunks of √T steps take
# 3·√T steps instead of T, so that they win from 70 to 190 steps on. The loop moves 20 bytes per lane and step, chunks
# 28, at 2.5 to 3 TB/s, so that bytes decide above 7,000 to 20,000 lanes.
FEW_LANES = 8192
LONG = 128
SHORTEST_CHUNK, LONGEST_CHUNK = 16, 256
# In half precision the loop keeps the float32 state (8 bytes) after so many steps for the backward pass.
KEPT_EVERY = 32
SMALLEST_EPS = 1e-30  # what a chunk knows of the past, up to 1/(2·eps), is a float32 number


class Path(NamedTuple):
    """The path of one scan.

    Attributes:
        name: "sequential" or "chunks".
        chunk: number of steps in one chunk (all T when sequential).
        reason: why this path, for `explain`.
    """

    name: str
    chunk: int
    reason: str


_forced: tuple[str, int | None] | None = None


@contextmanager
def forced_path(name: str, chunk: int | None = None) -> Iterator[None]:
    """Make every scan in this process take this path where it can (for tests and timing).

    Args:
        name: "sequential" or "chunks".
        chunk: number of steps in one chunk; None: `chunk_length`.

    Raises:
        ValueError: there is no path of that name, or `chunk` is not an integer of at least 1.
    """
    global _forced
    if name not in ("sequential", "chunks"):
        raise ValueError(f"unknown path {name!r}; paths are 'sequential' and 'chunks'")
    if chunk is not None:
        chunk = _arguments.integer("chunk", chunk, 1)
    before, _forced = _forced, (name, chunk)
    try:
        yield
    finally:
        _forced = before


def chunk_length(steps: int) -> int:
    """Return the largest power of two up to √T, within bounds: about as many steps in a chunk as chunks."""
    chunk = SHORTEST_CHUNK
    while chunk < LONGEST_CHUNK and 4 * chunk * chunk <= steps:
        chunk *= 2
    return chunk


def choose_path(batch: int, steps: int, dim: int, *, robust: bool, eps: float) -> Path:
    """Choose the path of a scan over (B, T, D) by these facts alone."""
    lanes = batch * dim
    name, chunk = _forced or (None, None)
    if robust:
        return Path("sequential", steps, "a robust update is not associative")
    if not eps >= SMALLEST_EPS:
        return Path("sequential", steps, f"chunks need eps of at least {SMALLEST_EPS}")
    if name == "sequential":
        return Path(name, steps, "forced")
    if name == "chunks":
        return Path(name, chunk or chunk_length(steps), "forced")
    if steps < LONG:
        return Path("sequential", steps, f"T = {steps} is below {LONG}")
    if lanes > FEW_LANES:
        return Path("sequential", steps, f"{lanes} lanes are more than {FEW_LANES}")
    return Path("chunks", chunk_length(steps), f"{lanes} lanes are at most {FEW_LANES} and T = {steps} at least {LONG}")


def kept_every(batch: int, steps: int, dim: int, *, robust: bool, eps: float) -> int:
    """Return the number of steps from one state that is kept for the backward pass to the next, in half precision.

    Chunks keep every state: their lanes are few, and another launch to compute states again would cost more than the
    bytes.
    """
    return 1 if choose_path(batch, steps, dim, robust=robust, eps=eps).name == "chunks" else KEPT_EVERY


def describe(facts: dict[str, Any]) -> str:
    """Describe the path of a call with these facts (`shape`, `nu`, `eps`), for `explain`."""
    shape = facts.get("shape")
    if shape is None or len(shape) != 3:
        return f"kernel; sequential, or in chunks for T ≥ {LONG} and at most {FEW_LANES} lanes"
    path = choose_path(*shape, robust=facts.get("nu") is not None, eps=facts.get("eps", 1e-8))
    size = f" of {path.chunk} steps" if path.name == "chunks" else ""
    return f"kernel, {path.name}{size}: {path.reason}"
