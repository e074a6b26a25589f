"""The page that lists the videos of one detection run, the highest score first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from iefvad.report.images import data_uri
from iefvad.report.page import write_page
from iefvad.scoring.video_scores import Interval
from iefvad.utils.text import clock, duration

LISTED = 12  # flagged intervals per video; its own page has the others
PICTURES = 6_000_000  # bytes of pictures on the page, before base64


@dataclass(frozen=True)
class Entry:
    """One video of the index.

    Attributes:
        name: Name of the video.
        page: Address of its own page, relative to the index.
        video: Address of the video file; None for a folder of frames.
        seconds: Scored seconds.
        peak: Highest score and the start of its segment in seconds; None without a segment.
        strip: Its scores as inline SVG.
        intervals: Flagged intervals.
        pictures: JPEG files by the number of the interval that they show.
    """

    name: str
    page: str
    video: str | None
    seconds: float
    peak: tuple[float, float] | None
    strip: Markup
    intervals: Sequence[Interval] = ()
    pictures: dict[int, bytes] = field(default_factory=dict)


def write_index(
    path: str | Path, entries: Sequence[Entry], *, title: str, failed: Sequence[str] = (), rule: str
) -> None:
    """Write the index as a self-contained HTML page. All text is escaped.

    Pictures are shown up to a limit in bytes: those of the highest peaks first, each video's first one before any
    second one.

    Args:
        path: The HTML file.
        entries: The videos, in any order.
        title: Title of the page.
        failed: One message per video without a result.
        rule: What is flagged, as a sentence part.

    Raises:
        UserError: the file cannot be written.
    """
    ordered = sorted(entries, key=lambda entry: -entry.peak[0] if entry.peak else 1.0)
    shown = _affordable(ordered)
    flagged = sum(bool(entry.intervals) for entry in ordered)
    count = sum(len(entry.intervals) for entry in ordered)
    seconds = sum(entry.seconds for entry in ordered)
    lead = f"{flagged} of {len(ordered)} videos have flagged intervals, in {duration(seconds)} of video."
    write_page(
        path,
        "index.html",
        title=title,
        lead=lead,
        tiles=[
            (str(len(ordered)), "videos scored"),
            (str(flagged), "with flagged intervals"),
            (str(count), "flagged intervals"),
            (duration(seconds), "of video"),
        ],
        rule=rule,
        rows=[_row(entry, shown[number]) for number, entry in enumerate(ordered)],
        failed=failed,
    )


def _row(entry: Entry, shown: set[int]) -> dict[str, object]:
    peak = entry.peak
    listed = [(number, interval) for number, interval in enumerate(entry.intervals) if number in shown]
    others = [(number, interval) for number, interval in enumerate(entry.intervals) if number not in shown]
    # Where not all intervals fit, those of the highest peaks are listed, in order of time.
    listed += sorted(others, key=lambda item: -item[1][2])[: max(0, LISTED - len(listed))]
    moments = []
    for number, (start, end, top) in sorted(listed, key=lambda item: item[1][0]):
        picture = data_uri(entry.pictures[number], "image/jpeg") if number in shown else None
        moments.append((moment(entry.video, start), picture, f"{clock(start)} to {clock(end)}", f"{top:.3f}"))
    return {
        "name": entry.name,
        "page": entry.page,
        "video": entry.video,
        "at": moment(entry.video, peak[1]) if peak else None,
        "peak": f"{peak[0]:.3f}" if peak else "–",
        "when": clock(peak[1]) if peak else "",
        "length": clock(entry.seconds),
        "strip": entry.strip,
        "moments": moments,
        "hidden": len(entry.intervals) - len(listed),
        "flagged": sum(end - start for start, end, _ in entry.intervals) / entry.seconds if entry.seconds else 0.0,
    }


def moment(video: str | None, seconds: float) -> str | None:
    """Return the address of a video at a time, as a media fragment that browsers' players follow."""
    return None if video is None else f"{video}#t={seconds:.1f}"


def _affordable(entries: Sequence[Entry]) -> list[set[int]]:
    """Numbers of the intervals of each entry whose pictures are shown."""
    ranked = []
    for place, entry in enumerate(entries):
        best = sorted(entry.pictures, key=lambda number: -entry.intervals[number][2])[:LISTED]
        ranked += [(turn, place, number) for turn, number in enumerate(best)]
    shown: list[set[int]] = [set() for _ in entries]
    left = PICTURES
    for _, place, number in sorted(ranked):
        left -= len(entries[place].pictures[number])
        if left < 0:
            break
        shown[place].add(number)
    return shown
