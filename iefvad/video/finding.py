"""The search for videos, which are files or folders of frames, in files and folders."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from iefvad.utils.addresses import shown
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike
from iefvad.video.folders import RATE_REMEDY, check_rate, is_frame_folder, is_picture

_SUFFIXES = "3gp asf avi flv m2ts m4v mjpeg mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Suffixes, in lower case, of the files that count as videos in a folder."""


def find_videos(paths: Sequence[PathLike]) -> list[Path]:
    """List the videos in files and folders.

    What cannot be read (a dangling link, a folder without permission, a share that drops) is listed, so that it fails
    when it is decoded and the others go on.

    Args:
        paths: A file is taken with any suffix. A folder with pictures is one video. Another folder is searched
            recursively for the suffixes in `VIDEO_SUFFIXES` and for folders of numbered pictures; links are followed.
            Hidden entries are skipped, and so is `NAME_gt` beside a folder of frames `NAME`, which has UCSD's masks.

    Returns:
        Files and folders of frames, those of a folder in sorted order. What is reached twice is listed once.

    Raises:
        UserError: A path does not exist, a folder contains no videos, or there are no videos at all.
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        kind = _kind(given)
        if kind == "missing":
            raise UserError(f"{shown(os.fspath(given))} does not exist; check the path{_instead(given)}")
        files = _videos_below(given) if kind == "folder" else [given]
        if not files:
            raise UserError(
                f"{given} contains no video files and no folders of numbered pictures (known suffixes:"
                f" {' '.join(sorted(VIDEO_SUFFIXES))})"
            )
        for file in files:
            found.setdefault(_real(file), file)
    if not found:
        raise UserError("no videos were given; name video files or folders that contain some")
    return list(found.values())


def require_rate(videos: Sequence[Path], fps: float | None) -> None:
    """Check, before anything is decoded, that the frame rate of folders of frames is known.

    Raises:
        UserError: It is missing or out of range.
    """
    folders = [video for video in videos if _kind(video) == "folder" and _has_pictures(video)]
    if folders and fps is None:
        others = f", as are {len(folders) - 1} more" if len(folders) > 1 else ""
        raise UserError(f"{folders[0]} is a folder of frames{others}, and pictures tell no frame rate: {RATE_REMEDY}.")
    if fps is not None:
        check_rate(fps)


def _kind(path: Path) -> str:
    """Return "folder", "missing", or "file" for all else, such as a dangling link and what a share does not tell."""
    try:
        return "folder" if stat.S_ISDIR(os.stat(path).st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "file" if os.path.islink(path) else "missing"
    except OSError as error:
        return "missing" if error.errno == errno.ENAMETOOLONG else "file"


def _has_pictures(folder: Path) -> bool:
    try:
        return any(is_picture(name) for name in os.listdir(folder))
    except OSError:
        return False


def _instead(path: Path) -> str:
    return f", or give the folder {path.parent}" if "%" in path.name and _kind(path.parent) == "folder" else ""


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return os.path.abspath(path)


def _videos_below(root: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()  # a link to a parent folder would never end

    def unreadable(error: OSError) -> None:
        found.append(Path(error.filename or root))

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = _real(Path(folder))
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        beside = set(subfolders)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".") and not (name.endswith("_gt") and name[:-3] in beside)
        ]
        videos = [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
        ]
        given = folder == os.fspath(root) and not subfolders
        if not names and not subfolders and Path(folder).suffix.lower() in VIDEO_SUFFIXES:
            videos = [Path(folder)]  # a mistake, which must be told and not end the others
        if not videos and is_frame_folder(names, given=given):
            videos = [Path(folder)]
        found += videos
    return sorted(found)
