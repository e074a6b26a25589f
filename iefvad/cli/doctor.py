"""`iefvad doctor`: what a bug report needs, about the application and its operators."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from iefvad.cli.command import command
from iefvad.utils.cache import cache_folder
from iefvad.utils.options import make_parser

_CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mjpeg")
"""Codecs of most cameras and video data sets."""


def _packages() -> Iterator[str]:
    yield f"iefvad {_version('iefvad')}"
    for requirement in metadata.requires("iefvad") or []:
        needed, _, condition = requirement.partition(";")
        name = re.split(r"[^\w.-]", needed, maxsplit=1)[0]
        found = _version(name)
        if "extra" not in condition:
            yield f"{name} {found}"
        elif not re.search("test|docs", condition) and found != "not installed":
            yield f"{name} {found} (optional)"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _video() -> Iterator[str]:
    import av

    yield "FFmpeg " + ", ".join(f"{name} {'.'.join(map(str, of))}" for name, of in sorted(av.library_versions.items()))
    missing = [name for name in _CODECS if name not in av.codecs_available]
    yield "decoders: " + ("all of the usual ones" if not missing else f"without {', '.join(missing)}")
    yield "hardware decoders: " + (", ".join(av.codec.hwaccel.hwdevices_available()) or "none")


def _disk() -> Iterator[str]:
    for title, folder in (("cache", cache_folder()), ("working folder", Path())):
        existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
        free = shutil.disk_usage(existing).free / 2**30
        writable = "" if os.access(existing, os.W_OK) else ", cannot be written to"
        yield f"{title}: {free:.1f} GiB free{writable}" + ("" if title != "cache" else f" ({folder})")


_SECTIONS: dict[str, Callable[[], Iterator[str]]] = {"packages": _packages, "video": _video, "disk": _disk}


def report() -> Iterator[str]:
    """Yield the lines of the report. A section that fails says so in one line, and the next one follows."""
    for title, section in _SECTIONS.items():
        yield f"{title}:"
        try:
            for line in section():
                yield f"  {line}"
        except Exception as error:  # whatever is broken on a machine, the rest of the report is wanted
            yield f"  failed: {type(error).__name__}: {error}"
    from ief_kernels import doctor

    yield from doctor.report()


@command("doctor")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `iefvad doctor` and return the exit status, which is 0."""
    make_parser(
        "doctor",
        "Print what a bug report needs: versions, codecs, caches, disk, compilers, threads, devices, and which backend"
        " serves each operator. It changes nothing and sends nothing.",
    ).parse_args(argv)
    for line in report():
        print(line)
    return 0
