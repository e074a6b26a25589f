"""The search for video files in files and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike

_SUFFIXES = "3gp asf avi flv m2ts m4v mjpeg mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Suffixes, in lower case, of the files that count as videos in a folder."""


def find_videos(paths: Sequence[PathLike]) -> list[Path]:
    """List the video files in files and folders.

    Args:
        paths: A file is taken with any suffix. A folder is searched recursively for the suffixes in `VIDEO_SUFFIXES`;
            links are followed, and hidden entries are skipped.

    Returns:
        Files, those of a folder in sorted order. A file that is reached twice is listed once.

    Raises:
        UserError: A path does not exist, a folder contains no videos, or there are no videos at all.
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        if given.is_file():
            files = [given]
        elif given.is_dir():
            files = _videos_below(given)
            if not files:
                raise UserError(f"{given} contains no video files (known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))})")
        else:
            raise UserError(f"{given} does not exist; check the path")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise UserError("no videos were given; name video files or folders that contain some")
    return list(found.values())


def _videos_below(root: Path) -> list[Path]:
    files: list[Path] = []
    seen: set[str] = set()  # a link to a parent folder would never end
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
        ]
    return sorted(files)
