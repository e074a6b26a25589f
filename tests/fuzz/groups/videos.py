"""Damaged video files of each codec and container, odd names and kinds of files, picture folders, and bombs.

A damaged video must give the features of the whole one, or its damage must be told. The bytes of a video have no
checksum of their own in most containers: a change that leaves a stream which FFmpeg decodes without a message is what
the bytes honestly say now. So such a message, of a decoder with one thread, is what "must be told" means here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import random as random_module
import shutil
import socket
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
import cv2
import numpy as np

from iefvad.cli.main import main
from iefvad.extraction.jobs import FAILED
from iefvad.features.store import FeatureStore
from iefvad.utils.errors import UserError
from iefvad.video.segments import Segments
from tests.fuzz.case import Case, Ended, Limits, Outcome, judged
from tests.fuzz.mutators import changed_bytes
from tests.helpers.detecting import small_model

_FRAMES, _SIZE = 40, (64, 48)
_KINDS = {  # name: codec, pixel format, options
    "h264.mp4": ("libx264", "yuv420p", {"g": "12", "bf": "2"}),
    "h264m.mkv": ("libx264", "yuv420p", {"g": "12"}),
    "h264t.ts": ("libx264", "yuv420p", {"g": "12"}),
    "h264_slices.mp4": ("libx264", "yuv420p", {"g": "12", "x264-params": "slices=4"}),
    "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none:keyint=12"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "12"}),
    "mpeg4m.mp4": ("mpeg4", "yuv420p", {"g": "12"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "mjpegm.mkv": ("mjpeg", "yuvj420p", {}),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "12", "deadline": "realtime"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "12", "deadline": "realtime"}),
    "mpeg2.ts": ("mpeg2video", "yuv420p", {"g": "12"}),
    "mpeg2p.mpg": ("mpeg2video", "yuv420p", {"g": "12"}),
    "flv.flv": ("flv", "yuv420p", {"g": "12"}),
    "gif.m4v": ("gif", "rgb8", {}),
}
_TOLD = ("truncated or damaged", "time stamps jump", "start again", "usable time stamps", "states no rate")
_GOOD = ("good1.mp4", "good2.avi")
_SETTINGS = ["--workers", "1", "--quiet"]


def prepare(stock: Path) -> None:
    """Write one small video per kind, a folder of pictures, a model, and the features of all of them."""
    whole = stock / "whole"
    whole.mkdir()
    for name, (codec, form, options) in _KINDS.items():
        if codec in av.codecs_available:
            _write(whole / name, codec, form, options)
    for number, name in enumerate(_GOOD):
        _write(whole / name, "mpeg4", "yuv420p", {}, seed=number + 1)
    for suffix in (".jpg", ".png"):
        folder = whole / f"frames{suffix[1:]}"
        folder.mkdir()
        for number, picture in enumerate(_pictures(0)[:20]):
            cv2.imwrite(str(folder / f"{number:03}{suffix}"), picture)
    small_model().save_pretrained(stock / "model")
    store = stock / "store"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["extract", str(whole), "--fps", "10", "--out", str(store), *_SETTINGS]) == 0
    known = {path.name: _frames_of(path) for path in sorted(whole.iterdir())}
    (stock / "frames.json").write_text(json.dumps(known))


def case(number: int, random: random_module.Random, stock: Path) -> Case:
    """Return a case: most are damaged files that are only decoded, and one of each other kind comes early."""
    kinds: tuple[Callable[[random_module.Random, Path], Case], ...] = (
        _decoded, _extracted, _odd, _decoded, _bomb, _pictures_damaged, _decoded, _detected, _decoded, _odd,
    )  # fmt: skip
    return kinds[number % len(kinds)](random, stock)


def unchanged(stock: Path) -> list[Case]:
    """Return an extraction of all whole videos, and a detection in one."""
    whole = stock / "whole"
    names = list(_known(stock))

    def extracted(folder: Path, ended: Ended) -> Outcome:
        same = all(_tensors(folder / "store", name) == _features(stock, name) for name in names)
        return "silent" if judged(folder, ended) == "fine" and not same else judged(folder, ended)

    extract = ["extract", str(whole), "--fps", "10", "--out", "store", *_SETTINGS]
    detect = ["detect", str(stock / "model"), str(whole / _GOOD[0]), "--device", "cpu", "--out", "out"]
    return [
        Case("extract whole videos", lambda folder: None, lambda: main(extract), extracted),
        Case("detect in a whole video", lambda folder: None, lambda: main(detect)),
    ]


# Damaged files.


def _decoded(random: random_module.Random, stock: Path) -> Case:
    name, what, data = _damaged(random, stock)
    keep = random.random() < 0.5

    def act() -> int:
        try:
            segments = Segments(name, tail="repeat", on_truncated="keep" if keep else "error")
            found = [_digest(segment) for segment in segments]
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
        Path("found.json").write_text(json.dumps(found))
        for note in segments.clock.notes():
            print(note)
        return 0

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome != "fine":
            return outcome
        found = json.loads((folder / "found.json").read_text())
        return _same_or_told(found == _known(stock)[name], ended, folder / name, _known(stock)[name])

    options = "keep" if keep else "error"
    return Case(f"decode {name} ({options}): {what}", lambda folder: _put(folder / name, data), act, judge)


def _extracted(random: random_module.Random, stock: Path) -> Case:
    name, what, data = _damaged(random, stock)
    keep = ["--on-truncated", "keep"] if random.random() < 0.5 else []

    def arrange(folder: Path) -> None:
        _good(folder / "in", stock)
        _put(folder / "in" / name, data)

    def act() -> int:
        return main(["extract", "in", "--out", "store", *keep, *_SETTINGS])

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome in ("traceback", "hang", "crash"):
            return outcome
        if not _good_ones_are_there(folder / "store", stock):
            return "loss"
        stem = Path(name).stem
        store = FeatureStore(folder / "store")
        if stem not in store:
            listed = folder / "store" / FAILED
            return "refused" if ended.status == 1 and stem in listed.read_text() else "silent"
        same = _tensors(folder / "store", name) == _features(stock, name)
        return _same_or_told(same, ended, folder / "in" / name, _known(stock)[name])

    return Case(f"extract {name} among good ones {' '.join(keep)}: {what}", arrange, act, judge)


def _detected(random: random_module.Random, stock: Path) -> Case:
    name, what, data = _damaged(random, stock)
    keep = ["--on-truncated", "keep"] if random.random() < 0.5 else []
    command = random.choice(("detect", "detect", "calibrate"))

    def arrange(folder: Path) -> None:
        _good(folder / "in", stock)
        _put(folder / "in" / name, data)

    def act() -> int:
        if command == "calibrate":
            return main(
                ["calibrate", str(stock / "model"), "in", "--out", "out", "--false-alarms-per-hour", "0", *keep]
            )
        return main(["detect", str(stock / "model"), "in", "--out", "out", "--thumbnails", "0", *keep])

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome in ("traceback", "hang", "crash"):
            return outcome
        if command == "calibrate":
            if not all(f"{good}: " in ended.out for good in _GOOD) and "every threshold" not in ended.err:
                return "loss"
        elif not all((folder / "out" / f"{Path(good).stem}.json").is_file() for good in _GOOD):
            return "loss"
        if f"in/{name}" in ended.err:
            return "refused" if ended.status else "silent"
        same = _frames_of(folder / "in" / name) == _known(stock)[name]
        return _same_or_told(same, ended, folder / "in" / name, _known(stock)[name])

    return Case(f"{command} {name} among good ones {' '.join(keep)}: {what}", arrange, act, judge)


def _damaged(random: random_module.Random, stock: Path) -> tuple[str, str, bytes]:
    whole = stock / "whole"
    name = random.choice([name for name in _KINDS if (whole / name).is_file()])
    data = (whole / name).read_bytes()
    kind = random.choice(("any", "any", "payload", "splice", "header", "index"))
    if kind == "payload":
        place, length = random.randrange(len(data) // 5, len(data) * 4 // 5), random.choice((1, 8, 64, 400))
        return name, f"{length} random bytes at {place}", _over(data, place, random.randbytes(length))
    if kind == "splice":
        other = random.choice([other for other in _KINDS if (whole / other).is_file()])
        place = random.randrange(len(data))
        return name, f"from byte {place} on it is {other}", data[:place] + (whole / other).read_bytes()[place:]
    if kind == "header":
        place = random.randrange(min(len(data), 600))
        return name, f"byte {place} is another", _over(data, place, random.randbytes(1))
    if kind == "index":
        place = len(data) - 1 - random.randrange(min(len(data), 1500))
        return name, f"4 random bytes at {place}, near the end", _over(data, place, random.randbytes(4))
    what, data = changed_bytes(data, random)
    return name, what, data


def _over(data: bytes, place: int, new: bytes) -> bytes:
    return (data[:place] + new + data[place + len(new) :])[: len(data)]


def _same_or_told(same: bool, ended: Ended, path: Path, known: list[str]) -> Outcome:
    if same or any(word in ended.out + ended.err for word in _TOLD):
        return "fine"
    return "silent" if _ffmpeg_complains(path) else "fine"


def _ffmpeg_complains(path: Path) -> bool:
    """Return whether FFmpeg has an error to say about a file, when a decoder with one thread reads it."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=True) as messages, av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for packet in container.demux(stream):
                try:
                    packet.decode()
                except av.error.FFmpegError:
                    return True
        return any(level <= av.logging.ERROR for level, _, _ in messages)
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        return True
    finally:
        av.logging.set_level(None)


# Pictures, odd files and bombs.


def _pictures_damaged(random: random_module.Random, stock: Path) -> Case:
    name = random.choice(("framesjpg", "framespng"))
    folder = stock / "whole" / name
    victim = random.choice(sorted(path.name for path in folder.iterdir()))
    what, data = random.choice((
        lambda: changed_bytes((folder / victim).read_bytes(), random),
        lambda: ("16384 x 16384 pixels", _png_bomb(16384, 16384)),
        lambda: ("missing", b""),
    ))()  # fmt: skip
    keep = random.random() < 0.5

    def arrange(case: Path) -> None:
        _good(case / "in", stock)
        shutil.copytree(folder, case / "in" / name)
        (case / "in" / name / victim).unlink()
        if what != "missing":
            _put(case / "in" / name / victim, data)

    def act() -> int:
        keeping = ["--on-truncated", "keep"] if keep else []
        return main(["extract", "in", "--fps", "10", "--out", "store", *keeping, *_SETTINGS])

    def judge(case: Path, ended: Ended) -> Outcome:
        outcome = judged(case, ended)
        if outcome in ("traceback", "hang", "crash"):
            return outcome
        if not _good_ones_are_there(case / "store", stock):
            return "loss"
        if name not in FeatureStore(case / "store"):
            return "refused" if ended.status == 1 and name in (case / "store" / FAILED).read_text() else "silent"
        same = _tensors(case / "store", name) == _features(stock, name)
        told = any(word in ended.out + ended.err for word in _TOLD)
        # Where a JPEG picture has flaws, libjpeg tells it on stderr, and nothing else knows.
        return "fine" if same or told or name == "framesjpg" else "silent"

    return Case(f"extract {name} among good ones, {victim}: {what}", arrange, act, judge)


def _odd(random: random_module.Random, stock: Path) -> Case:
    good = (stock / "whole" / "h264.mp4").read_bytes()
    names = {
        "a name with a line break": "a\nb.mp4",
        "a name that is not UTF-8": os.fsdecode(b"caf\xe9.mp4"),
        "a name of 255 bytes": "n" * 251 + ".mp4",
        "a name with escape codes": "\x1b[31mred.mp4",
        "a name that begins with =": "=1+1.mp4",
        "a name that begins with -": "-x.mp4",
    }
    makers: dict[str, Callable[[Path], Any]] = {
        "a dangling link": lambda path: path.symlink_to("nothing.mp4"),
        "links in a circle": lambda path: (path.symlink_to("x2.mp4"), path.with_name("x2.mp4").symlink_to("x.mp4")),
        "a FIFO": os.mkfifo,
        "a link to a FIFO": lambda path: (os.mkfifo(path.with_name("fifo")), path.symlink_to("fifo")),
        "a socket": _socket,
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
        "an empty folder": Path.mkdir,
        "a folder with a text": lambda path: (path.mkdir(), (path / "a.txt").write_text("a")),
        "an empty file": Path.touch,
        "a text": lambda path: path.write_text("not a video\n" * 50),
        "a playlist": lambda path: path.write_text("#EXTM3U\nfile:///etc/passwd\n"),
    }
    what = random.choice([*names, *makers])
    name = names.get(what, "x.mp4")
    command = random.choice(("extract", "extract", "detect"))
    given = random.random() < 0.5

    def arrange(folder: Path) -> None:
        _good(folder / "in", stock)
        makers.get(what, lambda path: path.write_bytes(good))(folder / "in" / name)

    def act() -> int:
        inputs = [f"in/{entry}" for entry in sorted(os.listdir("in"))] if given else ["in"]
        if command == "extract":
            return main(["extract", *inputs, "--out", "store", *_SETTINGS])
        return main(["detect", str(stock / "model"), *inputs, "--out", "out", "--thumbnails", "0"])

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome in ("traceback", "hang", "crash"):
            return outcome
        if given and what == "a folder with a text":
            return outcome  # an input that has no videos is a mistake of the call
        if command == "detect":
            if not all((folder / "out" / f"{Path(one).stem}.json").is_file() for one in _GOOD):
                return "loss"
        elif not _good_ones_are_there(folder / "store", stock):
            return "loss"
        fails = what in makers and not (what == "a folder with a text" and not given)
        if fails:
            named = "x" in ended.err or "in/fifo" in ended.err  # a link is named by what it leads to
            return "refused" if ended.status == 1 and named else "silent"
        if what == "a name with a line break" and "a\nb.mp4" in ended.out + ended.err:
            return "silent"
        return outcome if ended.status == 0 else "loss"

    return Case(f"{command} with {what} among good ones", arrange, act, judge, Limits(seconds=30))


def _bomb(random: random_module.Random, stock: Path) -> Case:
    width, height = random.choice(((16384, 16384), (65535, 65535), (65535, 1), (1, 65535), (40000, 1100)))
    what = random.choice(("avi", "mkv", "gif", "png.mov", "pictures", "frames"))
    command = random.choice(("extract", "extract", "detect"))

    def arrange(folder: Path) -> None:
        _good(folder / "in", stock)
        whole = stock / "whole"
        if what in ("avi", "mkv"):
            source = whole / ("mjpeg.avi" if what == "avi" else "mjpegm.mkv")
            data = _larger_jpegs(source.read_bytes(), width, height)
            _put(folder / "in" / f"x.{what}", data)
        elif what == "gif":
            data = (whole / "gif.m4v").read_bytes()
            _put(folder / "in" / "x.m4v", _over(data, 6, width.to_bytes(2, "little") + height.to_bytes(2, "little")))
        elif what == "png.mov":
            _write(folder / "x.mov", "png", "rgb24", {})
            data = (folder / "x.mov").read_bytes().replace(_png_head(*_SIZE), _png_head(width, height))
            _put(folder / "in" / "x.mov", data)
        elif what == "pictures":
            for number in range(20):
                _put(folder / "in" / "x" / f"{number:03}.png", _png_bomb(width, height))
        else:
            shutil.copy(whole / "h264.mp4", folder / "in" / "x.mp4")

    def act() -> int:
        more = ["--max-frames", "39"] if what == "frames" else []
        if what == "pictures":
            more += ["--fps", "10"]
        if command == "extract":
            return main(["extract", "in", "--out", "store", *_SETTINGS, *more])
        return main(["detect", str(stock / "model"), "in", "--out", "out", "--thumbnails", "1", *more])

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome in ("traceback", "hang", "crash"):
            return outcome
        if what == "frames":
            return "refused" if ended.status == 1 and ended.err.count("--max-frames;") == 3 else "silent"
        if command == "extract" and not _good_ones_are_there(folder / "store", stock):
            return "loss"
        if ended.status == 0:
            return "fine" if width * height <= 40_000_000 else "silent"
        return "refused" if "in/x" in ended.err else "silent"

    # A frame of the maximum size is 40 million pixels; decoder, RGB and picture of one need less than this.
    return Case(f"{command} with a {what} of {width}x{height} pixels among good ones", arrange, act, judge,
                Limits(memory=2 << 30))  # fmt: skip


def _larger_jpegs(data: bytes, width: int, height: int) -> bytes:
    """Return a file of JPEG pictures whose headers say another size."""
    old = b"\xff\xc0\x00\x11\x08" + _SIZE[1].to_bytes(2, "big") + _SIZE[0].to_bytes(2, "big")
    assert old in data
    return data.replace(old, old[:5] + height.to_bytes(2, "big") + width.to_bytes(2, "big"))


def _png_head(width: int, height: int, kind: bytes = b"\x08\x02\0\0\0") -> bytes:
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + kind
    return body + zlib.crc32(body).to_bytes(4, "big")


def _png_bomb(width: int, height: int) -> bytes:
    data = zlib.compress(bytes(1 << 16))
    body = b"IDAT" + data
    end = b"\0\0\0\0IEND\xaeB`\x82"
    chunk = len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + _png_head(width, height) + chunk + end


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


# The whole videos, and what they give.


def _pictures(seed: int) -> list[np.ndarray]:
    width, height = _SIZE
    background = np.random.default_rng(seed).integers(0, 120, (height, width, 3), dtype=np.uint8)
    pictures = []
    for number in range(_FRAMES):
        picture = background.copy()
        left = number * 2 % (width - 16)
        picture[12:28, left : left + 16] = 250
        pictures.append(picture)
    return pictures


def _write(path: Path, codec: str, form: str, options: dict[str, str], seed: int = 0) -> None:
    with av.open(str(path), "w", format="gif" if codec == "gif" else None) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        (stream.width, stream.height), stream.pix_fmt = _SIZE, form
        stream.codec_context.thread_count = 1
        if codec == "mjpeg":
            stream.codec_context.color_range = 2
        for picture in _pictures(seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _digest(segment: np.ndarray) -> str:
    return hashlib.sha256(segment.tobytes()).hexdigest()[:16]


def _frames_of(path: Path) -> list[str]:
    try:
        return [_digest(segment) for segment in Segments(path, tail="repeat", on_truncated="keep", fps=10)]
    except UserError:
        return []


@functools.cache
def _known(stock: Path) -> dict[str, list[str]]:
    """Return digests of the segments of each whole video."""
    known: dict[str, list[str]] = json.loads((stock / "frames.json").read_text())
    return known


def _features(stock: Path, name: str) -> bytes:
    """Return the stored features of a whole video."""
    return _tensors(stock / "store", name)


def _good(folder: Path, stock: Path) -> None:
    folder.mkdir()
    for name in _GOOD:
        shutil.copy(stock / "whole" / name, folder / name)


def _good_ones_are_there(store: Path, stock: Path) -> bool:
    return all(_tensors(store, name) == _features(stock, name) for name in _GOOD)


def _tensors(store: Path, name: str) -> bytes:
    """Return the stored tensors of a video, without the header, which names the source. Empty where there are none."""
    path = store / f"{Path(name).stem}.safetensors"
    data = path.read_bytes() if path.is_file() else bytes(8)
    return data[8 + int.from_bytes(data[:8], "little") :]


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
