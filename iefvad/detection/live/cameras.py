"""Which cameras are watched: addresses of the command line, and YAML files with names and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from iefvad.detection.config import DetectConfig
from iefvad.detection.live.connections import is_live
from iefvad.utils.addresses import file_stem, shown
from iefvad.utils.errors import UserError
from iefvad.utils.files import read_regular
from iefvad.utils.plain_yaml import LARGEST, AliasError, DuplicateError, Loader
from iefvad.utils.text import few

SETTINGS: dict[str, type] = {
    "threshold": float,
    "low": float,
    "merge_gap": float,
    "min_length": float,
    "retries": int,
    "retry_seconds": float,
    "timeout": float,
}
"""Settings of `DetectConfig` that a camera may have for itself, and their types."""

_LONGEST_NAME = 100  # letters, so that every file system takes the names of its files
_EXAMPLE = "entrance: rtsp://host/stream"


@dataclass(frozen=True)
class Camera:
    """A camera or stream to watch.

    Attributes:
        name: Its name in messages, files and pages; no other camera has it.
        address: Address of a stream, number of a camera, or a video device.
        stem: First part of the names of its result files.
        settings: Settings of its own, by name; see `SETTINGS`.
    """

    name: str
    address: str
    stem: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def configured(self, config: DetectConfig) -> DetectConfig:
        """Return the settings of this camera: its own, and the given ones for all others.

        Raises:
            UserError: a number is out of range.
        """
        try:
            return dataclasses.replace(config, **self.settings).check()
        except UserError as error:
            raise UserError(f"camera {self.name}: {error}") from error


def find_cameras(given: Sequence[str]) -> list[Camera]:
    """Find live input among names of inputs.

    Args:
        given: Addresses, camera numbers, YAML files of cameras, video files or folders. An address that is given twice
            counts once.

    Returns:
        The cameras, in order; none where all are video files or folders.

    Raises:
        UserError: there are cameras and something else, or a YAML file of cameras is wrong.
    """
    lists = [text for text in given if _is_list(text)]
    addresses = [text for text in given if is_live(text)]
    others = [text for text in given if text not in lists and text not in addresses]
    if not lists and not addresses:
        return []
    if others:
        raise UserError(
            f"cameras and video files in one call ({few(shown(text) for text in given)}): start one"
            " `iefvad detect` for the cameras, and another one for the files."
        )
    cameras: list[Camera] = []
    for text in dict.fromkeys(given):
        if text in lists:
            cameras += read_cameras(text)
        else:
            cameras.append(Camera(shown(text), text, file_stem(text)))
    return _distinct(cameras)


def read_cameras(path: str | Path) -> list[Camera]:
    """Read a YAML file of cameras: name → address, or name → mapping with `address` and settings of `SETTINGS`.

    Raises:
        UserError: the file cannot be read, or something in it is wrong.
    """
    try:
        document = yaml.load(read_regular(path, LARGEST).decode(), Loader=Loader)  # a safe loader
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a list of cameras{_place(error)}; write `{_EXAMPLE}` per line.") from error
    if not isinstance(document, dict) or not document:
        raise UserError(f"{path} contains no cameras; write `{_EXAMPLE}` per line.")
    return [_camera(str(name), entry, path) for name, entry in document.items()]


def _camera(name: str, entry: Any, path: str | Path) -> Camera:
    where = f"{path}, camera {name}"
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise UserError(f"{path}: a name of a camera must have 1 to {_LONGEST_NAME} printable letters, not {name!r}.")
    values = dict(entry) if isinstance(entry, dict) else {"address": entry}
    address = values.pop("address", None)
    if isinstance(address, int) and not isinstance(address, bool):
        address = str(address)
    if not isinstance(address, str) or not address:
        raise UserError(f"{where}: the address is missing; write `{name}: rtsp://host/stream`.")
    if not is_live(address):
        raise UserError(
            f"{where}: {shown(address)} is neither an address such as rtsp://host/stream nor the number of a camera."
        )
    unknown = [str(key) for key in values if key not in SETTINGS]
    if unknown:
        raise UserError(f"{where}: unknown setting {few(unknown)}; known are address, {', '.join(SETTINGS)}.")
    settings: dict[str, Any] = {}
    for key, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (SETTINGS[key] is int and not isinstance(value, int)):
            raise UserError(f"{where}: {key} must be {'a whole number' if SETTINGS[key] is int else 'a number'}.")
        settings[key] = SETTINGS[key](value)
    stem = file_stem(f"rtsp://{name}") if name.isascii() else file_stem(f"rtsp://{name.encode('punycode').decode()}")
    return Camera(name, address, stem or "camera", settings)


def _distinct(cameras: list[Camera]) -> list[Camera]:
    """Give every camera its own name and file name.

    Two addresses may look the same without their credentials. Two cameras of a YAML file with one address are a
    mistake.
    """
    owners: dict[str, str] = {}
    names: set[str] = set()
    stems: set[str] = set()
    result = []
    for camera in cameras:
        if camera.address in owners:
            raise UserError(f"{owners[camera.address]} and {camera.name} are the same camera: leave one out.")
        name, stem, number = camera.name, camera.stem, 2
        while name in names or stem.lower() in stems:  # some file systems ignore case
            name, stem, number = f"{camera.name} ({number})", f"{camera.stem}_{number}", number + 1
        owners[camera.address] = name
        names.add(name)
        stems.add(stem.lower())
        result.append(dataclasses.replace(camera, name=name, stem=stem))
    return result


def _is_list(text: str) -> bool:
    return not is_live(text) and text.lower().endswith((".yaml", ".yml"))


def _place(error: Exception) -> str:
    """Return the line of an error. Its whole message quotes the file, perhaps with a password."""
    mark = getattr(error, "problem_mark", None)
    problem = error.problem if isinstance(error, (AliasError, DuplicateError)) else None
    return ("" if mark is None else f", line {mark.line + 1}") + (f": {problem}" if problem else "")
