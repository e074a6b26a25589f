"""Settings of `iefvad features export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iefvad.utils.options import option


@dataclass
class ExportConfig:
    """Settings of `iefvad features export`."""

    out: str | None = option(None, "folder to write to [required]")
    image_folder: str = option("rgb", "folder in it for the image features")
    event_folder: str = option("event", "folder in it for the event features")
    dtype: Literal["float32", "float16"] = option("float32", "number type of the files; stores contain float16")
