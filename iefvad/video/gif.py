"""Damage of a GIF file, whose decoder in FFmpeg tells nothing.

Colours and codes of pictures have no checksum: only the blocks around them can be looked at, and codes that cannot be.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageSequence

from iefvad.utils.files import open_regular

_PICTURE, _EXTENSION, _END = 0x2C, 0x21, 0x3B
_FIRST_BLOCK = {0xF9: 4, 0xFF: 11, 0x01: 12}  # size in bytes of the first block of an extension
_LARGEST_CODE = 11  # bits


class _FlawError(Exception):
    """A block is damaged."""


def flaw(path: Path) -> str | None:
    """Return where a GIF file is damaged, in words, or None.

    Raises:
        OSError: The file cannot be read.
    """
    return _structure(path) or _codes(path)


def _codes(path: Path) -> str | None:
    with open_regular(path) as file, Image.open(file, formats=("GIF",)) as image:
        for number, picture in enumerate(ImageSequence.Iterator(image), 1):
            try:
                picture.load()
            except (OSError, ValueError, EOFError):
                return f"its picture {number} cannot be decoded"
    return None


def _structure(path: Path) -> str | None:
    with open_regular(path) as file:
        place = 0
        try:
            if _take(file, 6) not in (b"GIF87a", b"GIF89a"):
                raise _FlawError
            _skip_colours(file, _take(file, 7)[4])
            while True:
                place = file.tell()
                kind = _take(file, 1)[0]
                if kind == _END:
                    return None
                if kind == _EXTENSION:
                    label = _take(file, 1)[0]
                    _skip_blocks(file, _FIRST_BLOCK.get(label))
                elif kind == _PICTURE:
                    _skip_colours(file, _take(file, 9)[8])
                    if not 1 <= _take(file, 1)[0] <= _LARGEST_CODE:
                        raise _FlawError
                    _skip_blocks(file)
                else:
                    raise _FlawError
        except _FlawError:
            return f"its structure is damaged at byte {place}"


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _FlawError
    return data


def _skip_colours(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        _take(file, 3 << (flags & 7) + 1)


def _skip_blocks(file: BinaryIO, first: int | None = None) -> None:
    while size := _take(file, 1)[0]:
        if first is not None and size != first:
            raise _FlawError
        first = None
        _take(file, size)
