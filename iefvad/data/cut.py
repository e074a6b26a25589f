"""Cuts stored recordings into clips: features are copied, and nothing is decoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from iefvad.data.clips import Clip, Marks, marks_within
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.video import SEGMENT


def cut_stored(
    source: FeatureStore, name: str, marks: Marks, out: Path, *, segments: int = 30, overlap: int = 0
) -> list[Clip]:
    """Cut a stored recording into clips, and store them.

    The last clip has the segments that remain.

    Args:
        source: Store of the recording.
        name: Name of the recording in it.
        marks: Its abnormal intervals.
        out: Folder of the store of the clips.
        segments: Number of segments per clip.
        overlap: Number of segments that a clip shares with the one before it.

    Returns:
        The clips, in order.

    Raises:
        UserError: `overlap` is not less than `segments`, or a store cannot be read or written.
    """
    require_step(segments, overlap)
    image, event, sidecar = source.read(name)
    clips = FeatureStore(out, settings=source.settings, create=True)
    made = []
    rate = sidecar.fps or 1.0
    last_start = max(sidecar.segments - overlap, 1)
    for index, start in enumerate(range(0, last_start, segments - overlap)):
        part = slice(start, min(start + segments, sidecar.segments))
        clip, count = f"{name}_{index:03d}", part.stop - part.start
        first, last = SEGMENT * part.start, SEGMENT * part.stop
        clips.write(
            clip,
            image[:, part],
            event[:, part],
            dataclasses.replace(
                sidecar,
                name=clip,
                source_hash=f"{sidecar.source_hash}:{part.start}-{part.stop}",
                frames=SEGMENT * count,
                segments=count,
                frames_dropped=0,
                event_density=sidecar.event_density[part],
                starts=_shifted(sidecar.starts, part, sidecar.starts),
                ends=_shifted(sidecar.ends, part, sidecar.starts),
                clock=None if sidecar.clock is None else sidecar.clock | {"lost": [], "restarts": []},
            ),
        )
        starts, ends = sidecar.starts, sidecar.ends
        begin = starts[part.start] if starts else first / rate
        end = ends[part.stop - 1] if ends else last / rate
        made.append(
            Clip(f"{clip}.mp4", name, first, last, round(begin, 3), round(end, 3), marks_within(marks, first, last))
        )
    clips.write_index()
    return made


def require_step(length: float, overlap: float) -> None:
    """Make sure that each clip begins after the one before it. Raises UserError."""
    if overlap >= length:
        raise UserError(f"--overlap {overlap:g} must be less than the length of a clip, {length:g}")


def _shifted(times: list[float] | None, part: slice, starts: list[float] | None) -> list[float] | None:
    """Return the times of a part, counted from its beginning."""
    if times is None or starts is None:
        return None
    return [round(time - starts[part.start], 6) for time in times[part]]
