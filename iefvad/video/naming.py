"""The names of videos, which are those of their features in a store and those of rows in lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from iefvad.utils.errors import UserError
from iefvad.utils.text import file_name
from iefvad.video.finding import find_videos


def name_videos(videos: Sequence[str | Path]) -> dict[str, Path]:
    """Find videos and name them: the path below the given folder, or the file's name, without its suffix.

    Characters that are no text are written as in `readable`, and a very long name is shortened as in `file_name`.

    Args:
        videos: Video files, folders of frames, and folders that are searched for both.

    Returns:
        {name in the store: file or folder of frames}.

    Raises:
        UserError: There are no videos, or two videos would have the same name.
    """
    named: dict[str, Path] = {}
    for given in map(Path, videos):
        for path in find_videos([given]):
            name = _name(path, given)
            other = named.setdefault(name, path)
            if os.path.realpath(other) != os.path.realpath(path):
                raise UserError(f"{other} and {path} would both be stored as {name}: rename one, or use two stores.")
    return named or {path.stem: path for path in find_videos(list(videos))}


def _name(path: Path, given: Path) -> str:
    """Return the name of a video in the store: its place below the given folder, without the suffix of a file."""
    below = Path(os.path.basename(os.path.realpath(path))) if path == given else path.relative_to(given)
    if path == given and path.name not in ("", ".."):
        below = Path(path.name)
    if not os.path.isdir(path):
        below = below.with_name(below.stem)
    return "/".join(file_name(part) for part in below.parts)
