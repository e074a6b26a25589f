"""The source of a video: what it was recorded or cut from.

Videos of one source look alike, so a split keeps them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from iefvad.utils.errors import UserError

_CLIP = re.compile(r"(.+)_\d{3,}")
_FILM = re.compile(r"(.+?)__#.*")


def source_of(name: str) -> str:
    """Return the source that the name of a video tells.

    ``yard_003`` is the clip 3 of ``yard``, as `iefvad data cut` names clips, and ``Film__#00-10-55_...`` is a part of
    ``Film``, as in XD-Violence. Any other video is a source of its own. The folder belongs to the source.

    Args:
        name: Name of the video without suffix.
    """
    match = _FILM.fullmatch(name) or _CLIP.fullmatch(name)
    return match[1] if match else name


def matched_source(name: str, pattern: re.Pattern[str]) -> str | None:
    """Return the first group of a pattern in the name, or the whole match; None where the name does not match."""
    match = pattern.search(name)
    if match is None:
        return None
    return (match[1] if pattern.groups else match[0]) or None


def compiled(pattern: str) -> re.Pattern[str]:
    """Compile the pattern of `--source-pattern`.

    Raises:
        UserError: It is not a regular expression.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"--source-pattern {pattern!r} is not a regular expression ({error}); correct it") from None


def similar_pairs(features: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Return the pairs of videos that look alike.

    Args:
        features: Mean image features, one row per video, (N, D).
        threshold: Minimum cosine of two rows after the mean of all rows is taken away.
    """
    rows = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(rows), 512):  # bounded memory for tens of thousands of videos
        first, second = np.nonzero(rows[start : start + 512] @ rows.T >= threshold)
        pairs += [(int(a) + start, int(b)) for a, b in zip(first, second, strict=True) if a + start < b]
    return pairs


def joined(sources: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Return the sources after those of each pair of videos became one; the first name stands for all."""
    parent: dict[str, str] = {source: source for source in sources}

    def root(source: str) -> str:
        while parent[source] != source:
            parent[source] = parent[parent[source]]
            source = parent[source]
        return source

    for first, second in pairs:
        a, b = sorted((root(sources[first]), root(sources[second])))
        parent[b] = a
    return [root(source) for source in sources]


def sizes(sources: Sequence[str]) -> Mapping[str, int]:
    """Return the number of videos of each source, the largest first."""
    names, counts = np.unique(np.array(sources, dtype=object), return_counts=True)
    return dict(sorted(zip(names.tolist(), counts.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0])))
