"""Writing a packed store. `iefvad.features.packed` describes its files and reads them.

The sizes come from the headers of the source files first. Then clip after clip is written and noted in a journal, so
that a killed import loses only one clip.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iefvad.features.npy import crop_axis, split_crop
from iefvad.features.packed import (
    CATALOGUE,
    FORMAT,
    JOURNAL,
    SPLITS,
    PackedStore,
    catalogue_check,
    stored_rows,
    table_name,
)
from iefvad.features.readers import Nan, NpyReader, Reader
from iefvad.features.store import is_store
from iefvad.features.videos import Benchmark, Video, resample
from iefvad.utils import checksums
from iefvad.utils.errors import UserError
from iefvad.utils.files import PathLike, remove_left_over, storage_errors, write_json, written_error
from iefvad.utils.plain_json import parse_json
from iefvad.utils.progress import Progress
from iefvad.utils.tensors import header, to_half
from iefvad.utils.text import few, readable
from iefvad.video import SEGMENT

_ALIGN = 64  # a row of 768 float16 is 24 cache lines, and should begin at the start of one


@dataclass
class _Table:
    """Layout of one split's file: (video, crop) and first row of each clip, and the bytes around the features."""

    split: str
    dim: int
    path: Path
    clips: list[tuple[Video, int]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=lambda: [0])
    head: bytes = b""
    tail: bytes = b""
    check: str = ""

    @property
    def rows(self) -> int:
        """Number of rows per stream, including the row of zeros."""
        return self.offsets[-1] + 1

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return len(self.head) + 4 * self.rows * self.dim + len(self.tail)

    def positions(self, clip: int) -> tuple[int, int, int]:
        """Return the byte positions of a clip's image and event rows, and the number of bytes of each."""
        start, end = self.offsets[clip : clip + 2]
        width = 2 * self.dim
        image = len(self.head) + start * width
        return image, image + self.rows * width, (end - start) * width


def pack(benchmark: Benchmark, out: PathLike, *, max_segments: int = 256, progress: bool = True) -> PackedStore:
    """Write the features of a benchmark to a packed store and open it.

    An interrupted import continues if the source files (paths, sizes, times), lists and options are the same.
    Otherwise it prints a line and starts again. Equal sources give equal bytes.

    Args:
        benchmark: Videos and their features.
        out: Folder of the packed store.
        max_segments: Longer training clips are averaged to this number of bins.
        progress: Show a progress bar.

    Raises:
        UserError: Features are missing, damaged, of different shapes, NaN or beyond float16; the disk is too small; or
            ``out`` contains something else.
    """
    out = Path(out)
    entries = _entries(benchmark)
    tables = _layout(benchmark, entries, out, max_segments)
    document = {
        "format": FORMAT,
        "name": benchmark.name,
        "dim": benchmark.dim,
        "max_segments": max_segments,
        "settings": benchmark.settings,
    }
    plan = _plan(document, benchmark, entries, tables)
    try:
        if (out / CATALOGUE).exists():
            return _finished(out, plan)
        if is_store(out):
            raise UserError(f"{out} is a feature store; choose another folder for the packed one")
        strict = any(_reader(video).nan == "error" for video in benchmark.train + benchmark.test)
        journal = _Journal(out, plan, tables, strict=strict)
        _write(tables, journal, progress)
        document |= {"plan": plan, "notes": _notes(benchmark, journal), "videos": entries}
        document["checks"] = {table.split: table.check for table in tables}
        write_json(out / CATALOGUE, document | {"check": catalogue_check(document)})
        journal.remove()
    except OSError as error:
        if error.filename is not None and out not in Path(error.filename).parents:
            raise  # of a source
        raise written_error(error, out) from error
    return PackedStore(out)


def folder_pair(image_dir: PathLike, event_dir: PathLike, *, fps: float = 30.0, nan: Nan = "error") -> Benchmark:
    """Make a benchmark from features without lists: every file becomes (a crop of) a test video without truth.

    Args:
        image_dir: Folder with ``NAME.npy`` or ``NAME__c.npy``, and sub-folders.
        event_dir: Folder of the event features. Each file has the same relative path as its image file.
        fps: Frames per second of the videos. It is only used to print times.
        nan: "error", or "zero" to replace NaN and infinity by 0.

    Raises:
        UserError: A file is missing, pickled or damaged, or an image file and its event file have different shapes.
    """
    image_root, event_root = Path(image_dir), Path(event_dir)
    pairs: dict[str, dict[int, tuple[Path | None, Path | None]]] = {}
    absent = []
    for image in sorted(image_root.rglob("*.npy")):
        relative = image.relative_to(image_root)
        name, crop = split_crop(relative.as_posix())
        event = event_root / relative
        if not event.is_file():
            absent.append(str(event))
        if pairs.setdefault(name, {}).setdefault(crop or 0, (image, event))[0] != image:
            raise UserError(f"{image} and {pairs[name][0][0]} are both crop 0 of {name}; keep one of them")
    if not pairs:
        raise UserError(f"{image_root} contains no .npy files; check --image-dir")
    if absent:
        raise UserError(
            f"{len(absent)} event files are missing: {few(absent)}; each image file needs one of the same name"
            " below --event-dir"
        )
    notes: list[str] = []
    videos = []
    axis = crop_axis([image for files in pairs.values() for image, _ in files.values() if image is not None])
    for name, files in pairs.items():
        reader = NpyReader(dict(sorted(files.items())), nan, notes, axis)
        frames = SEGMENT * reader.segments
        videos.append(Video(name, (), reader.segments, fps, frames, crops=tuple(reader.pairs), reader=reader))
    notes.append("neither classes nor truth are known: the videos can be scored, but not evaluated")
    first = videos[0].reader
    assert isinstance(first, NpyReader)
    return Benchmark(image_root.resolve().name, [], videos, first.dim, notes)


def _entries(benchmark: Benchmark) -> list[dict[str, Any]]:
    entries = []
    for split, videos in zip(SPLITS, (benchmark.train, benchmark.test), strict=True):
        for video in videos:
            if video.segments == 0:
                raise UserError(f"{video.name} has no segments; take it out of the list")
            test = split == "test"
            entries.append(
                {
                    "name": video.name,
                    "classes": list(video.classes),
                    "split": split,
                    "segments": video.segments,
                    "fps": video.fps,
                    "frames": video.frames,
                    "crops": list(video.crops),
                    "source": video.source,
                    "truth": test and video.truth is not None,
                    "event_density": test and video.event_density is not None,
                    "times": test and video.starts is not None,
                }
            )
    return entries


def _layout(benchmark: Benchmark, entries: Sequence[dict[str, Any]], out: Path, max_segments: int) -> list[_Table]:
    tables = []
    for split, videos in zip(SPLITS, (benchmark.train, benchmark.test), strict=True):
        table = _Table(split, benchmark.dim, out / table_name(split))
        for video, entry in zip(videos, [entry for entry in entries if entry["split"] == split], strict=True):
            reader = _reader(video)
            if isinstance(reader, NpyReader) and reader.dim != benchmark.dim:
                raise UserError(
                    f"{reader.where(video.crops[0])[0]} is {reader.dim} wide, other videos {benchmark.dim}; all must"
                    " come from one pair of encoders"
                )
            for crop in video.crops:
                reader.check(crop)
                table.clips.append((video, crop))
                table.offsets.append(table.offsets[-1] + stored_rows(entry, max_segments))
        _frame(table, videos if split == "test" else [])
        tables.append(table)
    return tables


def _frame(table: _Table, videos: Sequence[Video]) -> None:
    """Fill in the bytes before and after the features: an 8-byte length, the JSON header, and the small tensors."""
    offsets = np.array(table.offsets, "<i8")
    density = [np.asarray(video.event_density, "<f4") for video in videos if video.event_density is not None]
    truth = [np.asarray(video.truth, np.uint8) for video in videos if video.truth is not None]
    starts = [np.asarray(video.starts, "<f8") for video in videos if video.starts is not None]
    ends = [np.asarray(video.ends, "<f8") for video in videos if video.starts is not None]
    parts: list[tuple[str, str, list[int], int]] = [
        ("offsets", "I64", [len(offsets)], offsets.nbytes),
        ("features", "F16", [2, table.rows, table.dim], 4 * table.rows * table.dim),
        ("event_density", "F32", [sum(map(len, density))], 4 * sum(map(len, density))),
        ("starts", "F64", [sum(map(len, starts))], 8 * sum(map(len, starts))),
        ("ends", "F64", [sum(map(len, ends))], 8 * sum(map(len, ends))),
        ("truth", "U8", [sum(map(len, truth))], sum(map(len, truth))),
        ("checks", "U8", [len(table.clips), 8], 8 * len(table.clips)),
    ]
    table.head = header(parts, align=_ALIGN, before=offsets.nbytes) + offsets.tobytes()
    small = b"".join(array.tobytes() for array in [*density, *starts, *ends, *truth])
    table.check = checksums.checksum(offsets, memoryview(small))
    table.tail = small + bytes(8 * len(table.clips))  # the checksums of the clips come when all are written


def _plan(
    document: dict[str, Any], benchmark: Benchmark, entries: Sequence[dict[str, Any]], tables: Sequence[_Table]
) -> str:
    """Return a digest of everything that decides the store's bytes, including sizes and times of the source files."""
    content = {**document, "notes": benchmark.notes, "videos": entries}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for table in tables:
        digest.update(table.head + table.tail)
        for video, crop in table.clips:
            for path in _reader(video).files(crop):
                status = path.stat()
                digest.update(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _finished(out: Path, plan: str) -> PackedStore:
    store = PackedStore(out)
    if store.plan != plan:
        raise UserError(
            f"{out} contains a packed store of other files, lists or options: choose another --out, or delete the"
            " folder first"
        )
    (out / JOURNAL).unlink(missing_ok=True)
    print(f"{readable(out)}: these features are already imported.")
    return store


class _Journal:
    """The journal of an import: one line per finished clip, with the checksum of its bytes and its notes.

    An import that refuses NaN (`strict`) reads clips again whose NaN were replaced.
    """

    def __init__(self, out: Path, plan: str, tables: Sequence[_Table], *, strict: bool) -> None:
        self.path = out / JOURNAL
        self.done: dict[tuple[str, int], dict[str, Any]] = {}
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        remove_left_over(out, deep=False)
        lines = self._read()
        if not (lines and lines[0].get("plan") == plan and self._fits(tables)):
            if lines:
                print(
                    f"{readable(out)}: the files, lists or options changed since the import stopped; it starts again."
                )
            self.path.unlink(missing_ok=True)
            _allocate(tables, out)
            self._append({"plan": plan})
            return
        clips = {table.split: len(table.clips) for table in tables}
        for line in lines[1:]:
            split, clip, notes = line.get("split"), line.get("clip"), line.get("notes")
            if not isinstance(split, str) or type(clip) is not int or not 0 <= clip < clips.get(split, 0):
                continue  # damaged
            if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes) or (strict and notes):
                continue
            if _checksum(tables, split, clip) == line.get("xxh3"):
                self.done[split, clip] = line
        if not self.path.read_bytes().endswith(b"\n"):
            with open(self.path, "ab") as file:  # the import was killed in the middle of a line
                file.write(b"\n")
        total = sum(len(table.clips) for table in tables)
        print(f"{readable(out)}: {len(self.done)} of {total} clips are there; continuing.")

    def add(self, split: str, clip: int, check: str, notes: list[str]) -> None:
        """Note that the bytes of a clip are written."""
        line = {"split": split, "clip": clip, "xxh3": check, "notes": notes}
        self._append(line)
        self.done[split, clip] = line

    def remove(self) -> None:
        """Remove the journal, because the import is finished."""
        self.path.unlink()

    def _append(self, line: dict[str, Any]) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                line = parse_json(text)
            except ValueError:  # incomplete, because the import was killed
                continue
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def _fits(self, tables: Sequence[_Table]) -> bool:
        return all(table.path.exists() and table.path.stat().st_size == table.size for table in tables)


def _allocate(tables: Sequence[_Table], out: Path) -> None:
    """Make the files in full size, so that a disk that is too small is noticed now and not hours later."""
    for table in tables:
        table.path.unlink(missing_ok=True)
    needed, free = sum(table.size for table in tables), shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"the packed store takes {needed / 1e9:.2f} GB and the disk of {out} has {free / 1e9:.2f} GB left: free"
            " some space or choose another --out"
        )
    for table in tables:
        with open(table.path, "wb") as file:
            file.truncate(table.size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, table.size)
            file.write(table.head)
            file.seek(table.size - len(table.tail))
            file.write(table.tail)
            file.flush()
            os.fsync(file.fileno())


def _write(tables: Sequence[_Table], journal: _Journal, progress: bool) -> None:
    total = sum(table.offsets[-1] for table in tables)
    bar = Progress(total, "import", "segment", shown=progress)
    with bar:
        for table in tables:
            with open(table.path, "r+b", buffering=0) as file:
                for clip, (video, crop) in enumerate(table.clips):
                    start, end = table.offsets[clip : clip + 2]
                    if (table.split, clip) not in journal.done:
                        image, event, notes = _read_clip(table, video, crop, end - start)
                        positions = table.positions(clip)
                        for position, values in zip(positions[:2], (image, event), strict=True):
                            file.seek(position)
                            _write_all(file, values)
                        journal.add(table.split, clip, checksums.checksum(image, event), notes)
                    bar.update(end - start)
                file.seek(table.size - 8 * len(table.clips))
                checks = (journal.done[table.split, clip]["xxh3"] for clip in range(len(table.clips)))
                _write_all(file, memoryview(b"".join(map(bytes.fromhex, checks))))
                os.fsync(file.fileno())


def _read_clip(table: _Table, video: Video, crop: int, rows: int) -> tuple[memoryview, memoryview, list[str]]:
    reader = _reader(video)
    before = len(reader.notes)
    pair = video.features(crop)
    notes = reader.notes[before:]  # kept in the journal, so that a continued import knows them too
    del reader.notes[before:]
    halves = []
    for where, features in zip(reader.where(crop), pair, strict=True):
        half = to_half(resample(features, rows), f"{where}: features")
        if half.shape != (rows, table.dim):
            raise UserError(
                f"{where} is {half.shape[0]} segments x {half.shape[1]}, expected {rows} x {table.dim}: it changed"
                " during the import or belongs to other encoders; extract it again"
            )
        halves.append(np.ascontiguousarray(half.numpy(), "<f2").data.cast("B"))
    return halves[0], halves[1], notes


def _write_all(file: Any, values: memoryview) -> None:
    while values:
        values = values[file.write(values) :]


def _checksum(tables: Sequence[_Table], split: str, clip: int) -> str:
    table = next(table for table in tables if table.split == split)
    *positions, size = table.positions(clip)
    with open(table.path, "rb") as file:
        parts = []
        for position in positions:
            file.seek(position)
            parts.append(memoryview(file.read(size)))
    return checksums.checksum(*parts)


def _notes(benchmark: Benchmark, journal: _Journal) -> list[str]:
    order = {split: index for index, split in enumerate(SPLITS)}
    clips = sorted(journal.done.values(), key=lambda line: (order[line["split"]], line["clip"]))
    return list(dict.fromkeys([*benchmark.notes, *(note for line in clips for note in line["notes"])]))


def _reader(video: Video) -> Reader:
    if video.reader is None:
        raise UserError(f"{video.name} has no features to pack; load it from a store or from .npy files")
    return video.reader
