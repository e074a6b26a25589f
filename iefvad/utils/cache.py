"""The folder of what this package makes once and keeps."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(cache: str | None = None) -> Path:
    """Return `cache`, else $IEFVAD_CACHE, else the user's cache folder."""
    if cache:
        return Path(cache)
    if named := os.environ.get("IEFVAD_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iefvad"
