"""Damage of the structure of a Matroska or WebM file.

FFmpeg skips what it cannot read in such a file, without a word to its caller. Here the elements are walked through, and
the checksums are compared that some writers add to each group of frames (RFC 8794, RFC 9559).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from iefvad.utils.files import open_regular

_HEADER, _SEGMENT, _CLUSTER, _CHECKSUM, _VOID = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xBF, 0xEC
_IN_SEGMENT = frozenset({_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367})
_IN_CLUSTER = frozenset({0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0x5854, 0xAF, _VOID, _CHECKSUM})
_HEAD = 12  # bytes of the longest head of an element: 4 of its name, 8 of its size
_LARGEST = 256 << 20  # bytes of an element whose checksum is compared


class _FlawError(Exception):
    """An element is damaged. The message says where."""


def flaw(path: Path) -> str | None:
    """Return where the structure of a Matroska file is damaged, in words, or None.

    What comes after the first damaged place is not looked at. Frames themselves are only covered by checksums.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        try:
            for name, start, end in _elements(file, 0, size, frozenset({_HEADER, _SEGMENT})):
                if name == _SEGMENT:
                    _segment(file, start, end)
        except _FlawError as error:
            return str(error)
    return None


def _segment(file: BinaryIO, start: int, end: int) -> None:
    place = start
    while place < end:
        for name, first, last in _elements(file, place, end, _IN_SEGMENT):
            place = last
            if name == _CLUSTER:
                place = _cluster(file, first, last)
                if place != last:  # a cluster of unknown size ended before the end of the segment
                    break
            else:
                _compare(file, first, last)
        else:
            return


def _cluster(file: BinaryIO, start: int, end: int) -> int:
    """Look at the frames of a cluster and return where it ends."""
    _compare(file, start, end)
    place = start
    while place < end:
        name, _, last = _element(file, place, end)
        if name in _IN_SEGMENT:
            return place
        if name not in _IN_CLUSTER:
            raise _FlawError(_where(place))
        place = last
    return end


def _elements(file: BinaryIO, start: int, end: int, known: frozenset[int]) -> Iterator[tuple[int, int, int]]:
    """Yield name, start and end of the content of each element between two places."""
    place = start
    while place < end:
        name, first, last = _element(file, place, end)
        if name not in known and name not in (_VOID, _CHECKSUM):
            raise _FlawError(_where(place))
        yield name, first, last
        place = last


def _element(file: BinaryIO, place: int, end: int) -> tuple[int, int, int]:
    file.seek(place)
    head = file.read(min(_HEAD, end - place))
    name_length = 9 - head[0].bit_length() if head else 9
    if name_length > 4 or len(head) <= name_length:
        raise _FlawError(_where(place))
    name = int.from_bytes(head[:name_length], "big")
    size_length = 9 - head[name_length].bit_length()
    first = name_length + size_length
    if size_length > 8 or len(head) < first:
        raise _FlawError(_where(place))
    mask = (1 << 7 * size_length) - 1
    size = int.from_bytes(head[name_length:first], "big") & mask
    if size == mask and name in (_SEGMENT, _CLUSTER):  # unknown: written while it was recorded
        return name, place + first, end
    if place + first + size > end:
        raise _FlawError(_where(place))
    return name, place + first, place + first + size


def _compare(file: BinaryIO, start: int, end: int) -> None:
    """Compare the checksum of an element, where it has one and a size."""
    file.seek(start)
    if end - start > _LARGEST or end - start < 6 or (head := file.read(6))[:2] != b"\xbf\x84":
        return
    if zlib.crc32(file.read(end - start - 6)) != int.from_bytes(head[2:], "little"):
        raise _FlawError(f"its data between bytes {start} and {end} do not match their checksum")


def _where(place: int) -> str:
    return f"its structure is damaged at byte {place}"
