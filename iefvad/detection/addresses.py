"""Addresses of files, for the pages of a folder of results."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from iefvad.detection.result import Detection

INDEX = "index.html"
"""File of the index of a folder of results."""


def address(file: str | Path, folder: str | Path) -> str:
    """Return the address of a file for a page in `folder`: relative where possible, percent-encoded byte by byte."""
    full = os.path.abspath(file)
    try:
        path = os.path.relpath(full, os.path.abspath(folder))
    except ValueError:  # on another drive
        return Path(full).as_uri()
    return quote(os.fsencode(path.replace(os.sep, "/")))


def address_of_video(detection: Detection, folder: str | Path) -> str | None:
    """Return the address of the video of a detection for a page in `folder`; None for what no browser can open."""
    video = detection.video
    return address(video, folder) if isinstance(video, Path) and not os.path.isdir(video) else None
