"""Damaged and odd files of features, stores, lists, annotations and frame truth, through the commands that read them.

An accepted file must mean what its bytes say. So the judges read the changed files on their own, by numpy, csv and
safetensors alone, and compare that with what the command wrote. Where checksums protect a file, the numbers must be
those of the unchanged one.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save_file

from iefvad.cli.main import main
from iefvad.data.datasets import load_store
from iefvad.features.packing import pack
from tests.fuzz.case import Case, Ended, Limits, Outcome, judged
from tests.fuzz.mutators import changed_bytes, changed_value
from tests.fuzz.runner import run_in_child
from tests.helpers.stores import without_checksums, write_store

DIM, SEGMENT = 8, 16
VIDEOS = {
    "train": (("Fire", "a", 4), ("Fire", "b", 7), ("Normal", "c", 5), ("Normal", "d", 3)),
    "test": (("Fire", "e", 6), ("Normal", "f", 2), ("Fall", "g", 3)),
}
INTERVALS = {"e": [[20, 50], [70, 96]], "g": [[0, 17]]}
LENGTH = {name: SEGMENT * segments for videos in VIDEOS.values() for _, name, segments in videos}
QUICK = ("--preset", "synth", "--epochs", "1", "--batch", "2", "--heads", "2", "--refine-steps", "1", "--device", "cpu")
LIMITS = Limits(seconds=30.0)

Change = Callable[[Path, random.Random], str]
"""Changes a file in place and returns what was done."""
Expectation = Callable[[Path], Any]
Command = Callable[[Path, str], tuple[list[str], Callable[[Path, Ended], bool]]]
"""Takes the stock and the changed file; returns a command line, and whether what it wrote is right."""


# --- the valid inputs -------------------------------------------------------------------------------------------------


def prepare(stock: Path) -> None:
    """Write a data set in the field's layout, a store, a packed store, both also as earlier versions wrote them."""
    field(stock / "field")
    write_store(stock / "store", train=6, test=4)
    pack(load_store(stock / "store"), stock / "packed", progress=False)
    shutil.copytree(stock / "store", stock / "old_store")
    for path in (stock / "old_store").glob("*.safetensors"):
        without_checksums(path)
    shutil.copytree(stock / "packed", stock / "old_packed")
    catalogue = json.loads((stock / "old_packed/packed.json").read_text())
    catalogue = {key: value for key, value in catalogue.items() if key not in ("check", "checks")}
    (stock / "old_packed/packed.json").write_text(json.dumps(catalogue))
    for path in (stock / "old_packed").glob("*.safetensors"):
        save_file({key: value for key, value in load_file(path).items() if key != "checks"}, path)
    for source in ("store", "packed"):
        train = Case(
            "", lambda folder: None, partial(main, ["train", "--features", source, "--out", f"run_{source}", *QUICK])
        )
        ended = run_in_child(train, stock)
        assert ended.status == 0, ended


def field(root: Path) -> None:
    """Write features, lists, annotations and truth in the field's layout."""
    values = np.random.default_rng(0)
    for split, videos in VIDEOS.items():
        rows = ["path,label"]
        for label, name, segments in videos:
            for crop in (0, 5):
                for folder in ("rgb", "event"):
                    path = root / folder / label / f"{name}__{crop}.npy"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.save(path, values.normal(size=(segments, DIM)).astype(np.float32))
                rows.append(f"rgb/{label}/{name}__{crop}.npy,{label}")
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    truth = {name: np.zeros(SEGMENT * segments, np.uint8) for _, name, segments in VIDEOS["test"]}
    for name, pairs in INTERVALS.items():
        for start, end in pairs:
            truth[name][start:end] = 1
    np.save(root / "gt.npy", np.concatenate(list(truth.values())))
    np.savez(root / "truth.npz", **truth)
    np.savez(root / "packed.npz", names=np.array(list(truth)), lengths=[len(truth[name]) for name in truth],
             gt=np.concatenate(list(truth.values())))  # fmt: skip
    (root / "truth").mkdir()
    for name, labels in truth.items():
        np.save(root / "truth" / f"{name}.npy", labels)
    lines = []
    for label, name, _ in VIDEOS["test"]:
        numbers = [number for pair in INTERVALS.get(name, [[-1, -1]]) for number in pair]
        lines.append(f"{name}.mp4  {label}  {'  '.join(map(str, numbers))}")
    (root / "annotations.txt").write_text("\n".join(lines) + "\n")
    videos = [(label, name) for label, name, _ in VIDEOS["test"] for _ in (0,)]
    (root / "gt_segment.json").write_text(json.dumps([INTERVALS.get(name, [[0, LENGTH[name]]]) for _, name in videos]))
    kinds = [[label if label != "Normal" else "A"] * len(INTERVALS.get(name, [0])) for label, name in videos]
    (root / "gt_label.json").write_text(json.dumps(kinds))
    (root / "lengths.csv").write_text(
        "name,frames\n" + "".join(f"{name}.mp4,{LENGTH[name] + 3}\n" for _, name in videos)
    )
    (root / "label_map.json").write_text(json.dumps({"B1": "Fire", "B2": "Fall"}))
    (root / "names.txt").write_text("".join(f"{label}/{name}.mp4\n" for label, name in videos))


# --- what is changed --------------------------------------------------------------------------------------------------


def any_bytes(path: Path, random: random.Random) -> str:
    """Change the bytes in one way."""
    what, data = changed_bytes(path.read_bytes(), random)
    path.write_bytes(data)
    return what


def first_bytes(path: Path, random: random.Random) -> str:
    """Change one of the first 140 bytes, where headers are."""
    data = path.read_bytes()
    place, value = random.randrange(min(140, len(data))), random.randrange(256)
    path.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
    return f"byte {place} is {value}"


def another_thing(path: Path, random: random.Random) -> str:
    """Put something that is no such file at its place."""
    kind = random.choice(
        ("missing", "folder", "pipe", "device", "dangling link", "loop", "pickle", "zip", "png", "sparse")
    )
    if kind == "pipe" and path.suffix in (".csv", ".txt"):
        kind = "folder"  # lists may be pipes, such as a shell makes of `<(command)`: they are read to their end
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    elif kind != "missing":
        path.write_bytes(
            {
                "pickle": b"\x80\x04\x95cos\nsystem\n.",
                "zip": b"PK\x05\x06" + bytes(18),
                "png": b"\x89PNG\r\n\x1a\n" + bytes(50),
            }[kind]
        )
    return {"missing": "it is missing"}.get(kind, f"it is a {kind}")


def npy_bytes(array: np.ndarray | None = None, header: str | None = None, data: bytes = b"") -> bytes:
    """Return the bytes of an array, or of a header and data that need not fit."""
    file = io.BytesIO()
    if header is None:
        assert array is not None
        np.save(file, array)
        return file.getvalue()
    text = header.encode("latin-1")
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) & 0xFFFF) + text + data


def array_of(array: np.ndarray, random: random.Random) -> tuple[str, bytes]:
    """Return another form of an array, or an array with other values, or one whose header does not fit its data."""
    shape, kind = array.shape, array.dtype.str
    places = array.size and random.randrange(array.size)
    odd = (array if array.dtype.kind in "fiub" else np.zeros(shape)).astype(np.float64).reshape(-1)
    number = random.choice((np.nan, np.inf, -np.inf, 1e300, 70000.0, -1e39, 0.5, -1, 2))
    if odd.size:
        odd[places] = number
    shapes = (
        "(-1, 8)", "(2**62, 8)", "(1000000000000, 8)", "(9223372036854775807, 9223372036854775807)", "()", "(3,)",
        "(0, 8)", "(1, 2, 3)", "(1, 8)", "(3, 8)", "(True, 8)", "(1e3, 8)", "8", "((((", "(" * 300, "None",
    )  # fmt: skip
    types = (
        "'>f4'", "'<f8'", "'<i4'", "'|O'", "'<U3'", "'|V4'", "'<c8'", "[('a', '<f4')]", "'<M8[s]'", "'<f9'", "''", "1",
        "'|S4'", "'<f16'", "'|b1'", "'<f2'", "'<u8'", "'|S0'", "'|V0'", "('<f4', (2,))",
    )  # fmt: skip
    wrong, other, data = random.choice(shapes), random.choice(types), array.tobytes()
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}"
    made: dict[str, Callable[[], bytes]] = {
        "float64": lambda: npy_bytes(array.astype(np.float64)),
        "float16": lambda: npy_bytes(array.astype(np.float16)),
        "big endian": lambda: npy_bytes(array.astype(array.dtype.newbyteorder(">"))),
        "int64": lambda: npy_bytes(array.astype(np.int64)),
        "int8": lambda: npy_bytes(array.astype(np.int8)),
        "bool": lambda: npy_bytes(array.astype(bool)),
        "complex": lambda: npy_bytes(array.astype(np.complex64)),
        "text": lambda: npy_bytes(array.astype("U5")),
        "long double": lambda: npy_bytes(array.astype(np.longdouble)),
        "objects": lambda: npy_bytes(array.astype(object)),
        "dates": lambda: npy_bytes(array.astype(np.int64).astype("M8[s]")),
        "Fortran's order": lambda: npy_bytes(np.asfortranarray(array)),
        "transposed": lambda: npy_bytes(np.ascontiguousarray(array.T)),
        "one row more": lambda: npy_bytes(np.concatenate([array, array[:1]])),
        "one row less": lambda: npy_bytes(array[:-1]),
        "rows reversed": lambda: npy_bytes(array[::-1]),
        "no rows": lambda: npy_bytes(array[:0]),
        "three dimensions": lambda: npy_bytes(array[None]),
        "one number": lambda: npy_bytes(np.float32(1.0)),
        f"a value {number}": lambda: npy_bytes(odd.reshape(shape)),
        "all values × 1e30": lambda: npy_bytes(array.astype(np.float64) * 1e30),
        "one column less": lambda: npy_bytes(array[..., :-1]),
        f"shape {wrong[:40]}": lambda: npy_bytes(header=header.replace(f"{shape}", wrong), data=data),
        f"type {other}": lambda: npy_bytes(header=header.replace(repr(kind), other), data=data),
        "no header's end": lambda: npy_bytes(header=header[:-1], data=data),
        "code in the header": lambda: npy_bytes(header="__import__('os').mkdir('owned')", data=data),
        "nested header": lambda: npy_bytes(header="[" * 5000, data=b""),
        "string in the header": lambda: npy_bytes(header="{'descr': '''", data=b""),
        "version 9": lambda: b"\x93NUMPY\x09\x00" + npy_bytes(array)[8:],
        "header of 4 GB": lambda: b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + npy_bytes(array)[12:],
        "two arrays in one file": lambda: 2 * npy_bytes(array),
    }  # fmt: skip
    what = random.choice(list(made))
    try:
        return what, made[what]()
    except (ValueError, TypeError):
        return "empty", b""


def npy(path: Path, random: random.Random) -> str:
    """Change an array of a .npy file."""
    what, data = array_of(np.load(path), random)
    path.write_bytes(data)
    return what


def npz(path: Path, random: random.Random) -> str:
    """Change an array of an archive, or the archive."""
    with np.load(path) as arrays:
        content = {f"{name}.npy": npy_bytes(arrays[name]) for name in arrays.files}
        name = random.choice(arrays.files)
        what, data = array_of(arrays[name], random)
    kind = random.choice(
        (
            "array",
            "array",
            "array",
            "twice",
            "missing",
            "renamed",
            "other entry",
            "other name",
            "bomb",
            "deflated",
            "folder",
            "bz2",
        )
    )
    method, extra = zipfile.ZIP_STORED, []
    what = f"{name}: {what}"
    if kind == "array":
        content[f"{name}.npy"] = data
    else:
        what = f"{name}: {kind}"
    if kind == "twice":
        extra = [(f"{name}.npy", npy_bytes(np.zeros(3)))]
    elif kind == "missing":
        del content[f"{name}.npy"]
    elif kind == "renamed":
        content = {(f"../{key}" if key == f"{name}.npy" else key): value for key, value in content.items()}
    elif kind == "other entry":
        content["readme.txt"] = b"no array"
    elif kind == "other name":
        content = {(f"{name}_gt" if key == f"{name}.npy" else key): value for key, value in content.items()}
    elif kind == "bomb":
        method, content[f"{name}.npy"] = (
            zipfile.ZIP_DEFLATED,
            npy_bytes(header="{'descr': '|u1', 'fortran_order': False, 'shape': (6000000000,), }") + bytes(1 << 20),
        )
    elif kind == "folder":
        content[f"{name}/"] = b""
    elif kind in ("deflated", "bz2"):
        method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_BZIP2
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an entry that is there twice
        for key, value in [*content.items(), *extra]:
            archive.writestr(zipfile.ZipInfo(key), value, compress_type=method)
    return what


def safetensors_header(path: Path, random: random.Random) -> str:
    """Change one place of the JSON header, and keep the data."""
    if path.suffix == ".json":
        return json_file(path, random)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if random.random() < 0.3:
        key = random.choice([key for key in header if key != "__metadata__"])
        part, value = random.choice(
            (
                ("dtype", ("BF16", "I16", "U8", "F32", "F8_E4M3", "X")),
                ("shape", ([1], [], [0, 0, 0], [2**40, 2], [-1, 16])),
                ("data_offsets", ([0, 0], [0, 2**60], [5, 2], [0, 2])),
            )
        )
        header[key][part] = (chosen := random.choice(value))
        what = f"{key}: {part} {chosen}"
    else:
        what, header = changed_value(header, random)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return what


def json_file(path: Path, random: random.Random) -> str:
    """Change a value of a JSON file, or how it is written."""
    content = json.loads(path.read_text())
    forms: dict[str, Callable[[], bytes]] = {
        "byte order mark": lambda: b"\xef\xbb\xbf" + path.read_bytes(),
        "UTF-16": lambda: json.dumps(content).encode("utf-16"),
        "nested 100,000 times": lambda: b"[" * 100_000,
        "a number of 5,000 digits": lambda: b"[[[" + b"9" * 5000 + b", 1]]]",
        "a name twice": lambda: b'{"format": 1, "format": 1}',
        "null": lambda: b"null",
        "NaN": lambda: b"[NaN]",
        "half of it": lambda: path.read_bytes()[: path.stat().st_size // 2],
        "twice": lambda: 2 * path.read_bytes(),
        "a lone surrogate": lambda: b'{"\\ud800": "\\udfff"}',
    }
    if random.random() < 0.3:
        what = random.choice(list(forms))
        path.write_bytes(forms[what]())
        return what
    what, content = changed_value(content, random)
    path.write_text(json.dumps(content))
    return what


def text(path: Path, random: random.Random) -> str:
    """Change a text file as editors, spreadsheets and accidents do."""
    data = path.read_bytes()
    lines = data.split(b"\n")
    row = random.randrange(max(len(lines) - 1, 1))
    cells = lines[row].split(b"," if b"," in lines[row] else b"  ")
    separator = b"," if b"," in lines[row] else b"  "
    huge = random.choice(
        (b"9" * 5000, b"99999999999999", b"-5", b"1e9", b"NaN", b"3.7", b"\xd9\xa3", b"0x10", b"2147483648")
    )

    def with_row(new: bytes) -> bytes:
        return b"\n".join([*lines[:row], new, *lines[row + 1 :]])

    forms: dict[str, Callable[[], bytes]] = {
        "byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "UTF-16": lambda: data.decode(errors="replace").encode("utf-16"),
        "UTF-16 without a mark": lambda: data.decode(errors="replace").encode("utf-16-le"),
        "UTF-32": lambda: data.decode(errors="replace").encode("utf-32"),
        "line ends of Windows": lambda: data.replace(b"\n", b"\r\n"),
        "line ends of old Macs": lambda: data.replace(b"\n", b"\r"),
        "no last line end": lambda: data.rstrip(b"\n"),
        "blank lines": lambda: data.replace(b"\n", b"\n\n \n"),
        f"NUL in line {row}": lambda: with_row(lines[row][:3] + b"\0" + lines[row][3:]),
        f"Latin-1 in line {row}": lambda: with_row(b"caf\xe9" + lines[row]),
        f"line {row} twice": lambda: with_row(lines[row] + b"\n" + lines[row]),
        f"line {row} missing": lambda: b"\n".join(lines[:row] + lines[row + 1 :]),
        f"line {row} of 200,000 words": lambda: with_row(lines[row] + b" x" * 200_000),
        f"line {row} of 1,000,000 letters": lambda: with_row(b"y" * 1_000_000 + lines[row]),
        f"a quote in line {row}": lambda: with_row(b'"' + lines[row]),
        f"quotes in line {row}": lambda: with_row(separator.join(b'"' + cell + b'"' for cell in cells)),
        f"cells of line {row} reversed": lambda: with_row(separator.join(reversed(cells))),
        f"a cell of line {row} missing": lambda: with_row(separator.join(cells[:-1])),
        f"a cell of line {row} more": lambda: with_row(separator.join([*cells, b"7"])),
        f"last cell of line {row} is {huge[:20]!r}": lambda: with_row(separator.join([*cells[:-1], huge])),
        f"no cells in line {row}": lambda: with_row(separator * 3),
        f"line {row} is one odd name": lambda: with_row(b"../../../etc/passwd,Fire"),
        "tabs": lambda: data.replace(b"  ", b"\t"),
        "semicolons": lambda: data.replace(b",", b";"),
        "all upper case": lambda: data.upper(),
        "lines reversed": lambda: b"\n".join(reversed(lines)),
        "only the first line": lambda: lines[0] + b"\n",
        "a line of control characters": lambda: data + b"\x1b[31m\x07\x08,\x7f\n",
        "right to left": lambda: "‮".encode() + data,
    }
    what = random.choice(list(forms))
    path.write_bytes(forms[what]())
    return what


def stored_features(path: Path, random: random.Random) -> str:
    """Change tensors of a file of features and write it as another program would."""
    tensors = load_file(path)
    key = random.choice(list(tensors))
    array = tensors[key]
    other = random.choice(("type", "row", "value", "exchange", "more"))
    if other == "type":
        kind = random.choice((np.float32, np.int16, np.uint8))
        tensors[key] = array.astype(kind)
        other = f"{key} is {np.dtype(kind)}"
    elif other == "row":
        tensors[key] = np.ascontiguousarray(array[:, :-1]) if array.ndim > 1 else array[:-1]
        other = f"{key} has one row less"
    elif other == "value":
        flat = array.copy().reshape(-1)
        if flat.size:
            flat[random.randrange(flat.size)] = value = (
                random.choice((7, 1)) if array.dtype.kind != "f" else random.choice((np.nan, np.inf, 3.0))
            )
            other = f"{key} has a value {value}"
        tensors[key] = flat.reshape(array.shape)
    elif other == "exchange" and {"image", "event"} <= set(tensors):
        tensors["image"], tensors["event"] = tensors["event"], tensors["image"]
    else:
        tensors["more"] = np.zeros(3, np.float32)
    header = path.read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")]).get("__metadata__")
    save_file(tensors, path, metadata)
    return other


# --- what a command must have found -----------------------------------------------------------------------------------


def packed_rows(root: Path) -> dict[str, np.ndarray]:
    """Return the features of a packed store, float16 (2, T, D) by split, name and crop."""
    catalogue = json.loads((root / "packed.json").read_bytes())
    found = {}
    for split in ("train", "test"):
        tensors = load((root / f"{split}.safetensors").read_bytes())
        clip = 0
        for video in catalogue["videos"]:
            if video["split"] != split:
                continue
            for crop in video["crops"]:
                start, end = tensors["offsets"][clip : clip + 2]
                found[f"{split} {video['name']} {crop} {'/'.join(video['classes'])}"] = tensors["features"][
                    :, start:end
                ]
                clip += 1
    return found


def listed_features(folder: Path) -> dict[str, np.ndarray]:
    """Return what the lists and the features of `field` say, as `packed_rows` does."""
    found = {}
    for split in ("train", "test"):
        rows = read_rows(folder / f"field/{split}.csv")
        for row in rows:
            path = folder / "field" / row["path"].strip().replace("\\", "/")
            crop = path.stem[-1]
            label = row["label"].strip()
            classes = "" if label.lower() in ("normal", "a", "0", "") else label
            pair = [np.load(path), np.load(str(path).replace("/rgb/", "/event/"))]
            found[f"{split} {path.stem[:-3]} {crop} {classes}"] = np.stack(pair).astype(np.float32).astype(np.float16)
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV by the names of its header."""
    lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if any(cell.strip() for cell in row)]
    header = [cell.lower() for cell in rows[0]]
    return [dict(zip(header, row, strict=False)) for row in rows[1:]]


def labels_of_lengths(folder: Path, *, source: str, lengths: str) -> np.ndarray:
    """Return the frame labels that the test list, the annotations and the lengths of `field` say."""
    root = folder / "field"
    names = list(
        dict.fromkeys(row["path"].replace("\\", "/").rsplit("/", 1)[-1][:-7] for row in read_rows(root / "test.csv"))
    )
    frames = {}
    if lengths == "lengths.csv":
        told = {row["name"].removesuffix(".mp4"): int(row["frames"]) for row in read_rows(root / "lengths.csv")}
        frames = {name: told[name] // SEGMENT * SEGMENT for name in names}
    else:
        for row in read_rows(root / "test.csv"):
            path = root / row["path"].replace("\\", "/")
            frames[path.name[:-7]] = SEGMENT * len(np.load(path))
    intervals = read_intervals(root, source, names)
    pieces = []
    for name in names:
        labels = np.zeros(frames[name], np.uint8)
        for start, end in intervals.get(name, []):
            labels[max(start, 0) : max(end, 0)] = 1
        pieces.append(labels)
    return np.concatenate(pieces)


def read_intervals(root: Path, source: str, names: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return the intervals that a file of annotations or of frame truth says."""
    if source == "annotations.txt":
        found = {}
        for line in (root / source).read_bytes().decode("utf-8-sig").replace("\r", "\n").split("\n"):
            words = line.split()
            if words:
                numbers = [int(float(word)) for word in words[1:] if word.lstrip("+-").replace(".", "").isdecimal()]
                pairs = zip(numbers[::2], numbers[1::2], strict=True)
                name = words[0].replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".mp4")
                found[name] = [pair for pair in pairs if pair[1] >= 0]
        return found
    if source == "gt_segment.json":
        segments = json.loads((root / source).read_bytes().decode("utf-8-sig"))
        kinds = json.loads((root / "gt_label.json").read_bytes().decode("utf-8-sig"))
        return {name: ([] if set(kind) <= {"A", "Normal", "normal", "0", ""} else [(s, e) for s, e in pairs])
                for name, pairs, kind in zip(names, segments, kinds, strict=True)}  # fmt: skip
    if (root / source).is_dir():
        arrays = {path.stem: np.load(path) for path in (root / source).glob("*.npy")}
    else:
        with np.load(root / source) as archive:
            arrays = {name.removesuffix("_gt"): archive[name] for name in archive.files}
        if {"names", "lengths", "gt"} <= set(arrays):
            ends = np.cumsum(arrays["lengths"])
            arrays = {
                str(name): arrays["gt"][end - length : end]
                for name, length, end in zip(arrays["names"], arrays["lengths"], ends, strict=True)
            }
    return {name: [(i, i + 1) for i in np.flatnonzero(values)] for name, values in arrays.items()}


def exported(root: Path) -> dict[str, np.ndarray]:
    """Return the features that `iefvad features export` wrote."""
    return {f"{path.parent.name}/{path.stem}": np.load(path).astype(np.float16) for path in root.rglob("*.npy")}


def stored(root: Path) -> dict[str, np.ndarray]:
    """Return the features of a store as `exported` names them."""
    found = {}
    for path in root.glob("*.safetensors"):
        with contextlib.suppress(SafetensorError, KeyError, OSError):  # such a file must be left out
            for key, folder in (("image", "rgb"), ("event", "event")):
                found[f"{folder}/{path.stem}__0"] = load_file(path)[key][0]
    return found


def same(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> bool:
    """Return whether two sets of arrays are equal."""
    return expected.keys() == found.keys() and all(np.array_equal(expected[key], found[key]) for key in expected)


def compared(agree: Callable[[Path, Ended], bool]) -> Callable[[Path, Ended], Outcome]:
    """Return a judge that says "silent" where a command ended well and `agree` does not hold."""

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome == "silent" and ended.status == 1 and re.search(r"[1-9]\d* damaged", ended.out):
            outcome = "refused"  # by `iefvad data verify`
        if (folder / "owned").exists():  # code in a header ran
            return "crash"
        for path in folder.rglob("*"):  # reading a pipe or a device would not end here
            if path.exists() and not path.is_file() and not path.is_dir():
                path.unlink()
        if outcome != "fine":
            return outcome
        try:
            return "fine" if agree(folder, ended) else "silent"
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            OverflowError,
            SyntaxError,
            zipfile.BadZipFile,
            SafetensorError,
        ):
            return "silent"  # the file cannot be read as it is, but the command took it

    return judge


def said(ended: Ended, *words: str) -> bool:
    """Return whether the command said one of the words."""
    return any(word in ended.out + ended.err for word in words)


# --- the cases --------------------------------------------------------------------------------------------------------

FEATURE_FILES = ("field/rgb/Fire/b__0.npy", "field/event/Fire/e__5.npy", "field/rgb/Normal/f__0.npy")
LISTS = ("field/train.csv", "field/test.csv")
GT = ("annotations.txt", "gt_segment.json", "truth.npz", "packed.npz", "truth")


def imports_lists(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Pack the field's layout."""
    command = [
        "features",
        "import",
        "--train-list",
        "field/train.csv",
        "--test-list",
        "field/test.csv",
        "--gt",
        "field/gt.npy",
        "--features",
        "field",
        "--out",
        "out",
    ]

    def agree(folder: Path, ended: Ended) -> bool:
        truth = load((folder / "out/test.safetensors").read_bytes())["truth"]
        right = np.array_equal(truth, np.load(folder / "field/gt.npy"))
        return right and same(listed_features(folder), packed_rows(folder / "out"))

    return command, agree


def imports_pair(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Pack two folders of features."""

    def agree(folder: Path, ended: Ended) -> bool:
        images = sorted((folder / "field/rgb").rglob("*.npy"))
        expected = {}
        for path in images:
            pair = [np.load(path), np.load(str(path).replace("/rgb/", "/event/"))]
            name = path.relative_to(folder / "field/rgb").as_posix()[:-7]
            expected[f"test {name} {path.stem[-1]} "] = np.stack(pair).astype(np.float32).astype(np.float16)
        return same(expected, packed_rows(folder / "out"))

    return ["features", "import", "--image-dir", "field/rgb", "--event-dir", "field/event", "--out", "out"], agree


def makes_gt(stock: Path, file: str, source: str, lengths: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Make gt.npy."""
    told = ["--lengths", "field/lengths.csv"] if lengths == "lengths.csv" else ["--features", "field"]
    command = [
        "data",
        "gt",
        "--test-list",
        "field/test.csv",
        "--annotations",
        f"field/{source}",
        *told,
        "--out",
        "gt.npy",
    ]

    def agree(folder: Path, ended: Ended) -> bool:
        expected = labels_of_lengths(folder, source=source, lengths=lengths)
        return np.array_equal(np.load(folder / "gt.npy"), expected) or said(ended, "videos of their own")

    return command, agree


def exports(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Export a store. What is left out is said; what is there has the store's numbers."""
    root = file.split("/")[0]
    before = stored(stock / root)

    def agree(folder: Path, ended: Ended) -> bool:
        found = exported(folder / "out")
        if root == "old_store" and file.endswith(".safetensors") and Path(folder / file).is_file():
            before.update({key: value for key, value in stored(folder / root).items() if key in found})
        if not all(np.array_equal(before[key], value, equal_nan=True) for key, value in found.items()):
            return False
        return found.keys() == before.keys() or said(ended, "left out")

    return ["features", "export", root, "--out", "out"], agree


def describes(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Describe a store: as before, or it says what is wrong."""
    root = file.split("/")[0]
    ended_before = run_in_child(Case("", lambda folder: None, partial(main, ["features", "info", root])), stock)

    def agree(folder: Path, ended: Ended) -> bool:
        return root.startswith("old") or ended.out == ended_before.out or said(ended, "left out")

    return ["features", "info", root], agree


def verifies(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Verify a store: what is called intact has its numbers."""
    root = file.split("/")[0]

    def agree(folder: Path, ended: Ended) -> bool:
        if root.startswith("old"):
            return True
        if root == "packed":
            return same(packed_rows(stock / root), packed_rows(folder / root))
        return same(stored(stock / root), stored(folder / root))

    return ["data", "verify", root], agree


def trains(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Train one epoch: the scores are those of the unchanged store."""
    root = file.split("/")[0]
    if root == "field":
        more = [
            "--train-list",
            "field/train.csv",
            "--test-list",
            "field/test.csv",
            "--gt",
            "field/gt.npy",
            "--features",
            "field",
        ]
        return ["train", *more, "--out", "run", *QUICK], lambda folder, ended: True

    def agree(folder: Path, ended: Ended) -> bool:
        before = stock / f"run_{root}" / "scores.csv"
        return (
            not file.endswith((".safetensors", ".json"))
            or (folder / "run/scores.csv").read_bytes() == before.read_bytes()
        )

    return ["train", "--features", root, "--out", "run", *QUICK], agree


def evaluates(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Evaluate a run on a changed store: the scores are those of the unchanged one."""
    root = file.split("/")[0]
    run = stock / f"run_{root.removeprefix('old_')}"

    def agree(folder: Path, ended: Ended) -> bool:
        return root.startswith("old") or (folder / "out/scores.csv").read_bytes() == (run / "scores.csv").read_bytes()

    return ["evaluate", str(run), "--features", root, "--device", "cpu", "--out", "out"], agree


def checks(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Check the data set."""
    return ["data", "check", "field", "--features", "field"], lambda folder, ended: "field" in ended.out


def reimports(stock: Path, file: str) -> tuple[list[str], Callable[[Path, Ended], bool]]:
    """Pack a store, or continue an interrupted import."""
    return ["features", "import", "store", "--out", "out"], lambda folder, ended: same(
        packed_rows(stock / "packed"), packed_rows(folder / "out")
    )


def journal(path: Path, random: random.Random) -> str:
    """Make a finished import an interrupted one with a damaged journal."""
    catalogue = json.loads((path / "packed.json").read_text())
    (path / "packed.json").unlink()
    lines: list[Any] = [{"plan": catalogue["plan"]}]
    for split in ("train", "test"):
        checks = load_file(path / f"{split}.safetensors")["checks"]
        for clip, check in enumerate(checks):
            lines.append({"split": split, "clip": clip, "xxh3": check.tobytes().hex(), "notes": []})
    place = random.randrange(len(lines))
    what, lines[place] = changed_value(lines[place], random)
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    if random.random() < 0.4:
        what, data = changed_bytes(data, random)
    (path / "import.journal").write_bytes(data)
    return f"journal, line {place}: {what}"


Command = Callable[[Path, str], tuple[list[str], Callable[[Path, Ended], bool]]]

KINDS: list[tuple[str, Sequence[str], Sequence[Change], Command]] = [
    ("features", FEATURE_FILES, (npy, npy, first_bytes, any_bytes, another_thing), imports_lists),
    ("list", LISTS, (text, text, any_bytes, another_thing), imports_lists),
    (
        "annotations",
        ("field/annotations.txt",),
        (text, text, any_bytes, another_thing),
        partial(makes_gt, source="annotations.txt", lengths="features"),
    ),
    (
        "store",
        ("store/test000.safetensors", "store/train001.safetensors"),
        (any_bytes, safetensors_header, stored_features, another_thing),
        exports,
    ),
    (
        "packed store",
        ("packed/train.safetensors", "packed/test.safetensors"),
        (any_bytes, safetensors_header, stored_features, another_thing),
        verifies,
    ),
    (
        "frame truth",
        ("field/truth.npz",),
        (npz, npz, first_bytes, any_bytes),
        partial(makes_gt, source="truth.npz", lengths="lengths.csv"),
    ),
    (
        "data set",
        (
            "field/annotations.txt",
            "field/test.csv",
            "field/gt.npy",
            "field/gt_segment.json",
            "field/names.txt",
            "field/label_map.json",
            "field/truth.npz",
            *FEATURE_FILES[1:2],
        ),
        (text, any_bytes, another_thing, first_bytes),
        checks,
    ),
    ("sidecar", ("store/test000.json", "store/train002.json"), (json_file, any_bytes, another_thing), exports),
    ("catalogue", ("packed/packed.json",), (json_file, any_bytes, another_thing), verifies),
    (
        "intervals",
        ("field/gt_segment.json", "field/gt_label.json"),
        (json_file, json_file, any_bytes),
        partial(makes_gt, source="gt_segment.json", lengths="features"),
    ),
    ("gt.npy", ("field/gt.npy",), (npy, npy, first_bytes, any_bytes, another_thing), imports_lists),
    (
        "old store",
        ("old_store/test001.safetensors", "old_store/test001.json", "old_store/store.json"),
        (any_bytes, first_bytes),
        exports,
    ),
    ("old catalogue", ("old_packed/packed.json",), (json_file, any_bytes), verifies),
    (
        "packed truth",
        ("field/packed.npz",),
        (npz, npz, any_bytes),
        partial(makes_gt, source="packed.npz", lengths="features"),
    ),
    (
        "lengths",
        ("field/lengths.csv",),
        (text, text, any_bytes),
        partial(makes_gt, source="annotations.txt", lengths="lengths.csv"),
    ),
    ("test list", ("field/test.csv",), (text, any_bytes), partial(makes_gt, source="truth", lengths="lengths.csv")),
    ("feature folder", FEATURE_FILES, (npy, any_bytes, another_thing), imports_pair),
    ("store's settings", ("store/store.json", "old_store/store.json"), (json_file, any_bytes), describes),
    (
        "old tables",
        ("old_packed/train.safetensors", "old_packed/test.safetensors"),
        (safetensors_header, stored_features, any_bytes),
        verifies,
    ),
    (
        "truth folder",
        ("field/truth/e.npy", "field/truth/f.npy"),
        (npy, first_bytes, another_thing),
        partial(makes_gt, source="truth", lengths="features"),
    ),
    ("journal", ("out",), (journal,), reimports),
    (
        "trained on",
        ("store/train001.safetensors", "store/train.csv", "store/annotations.txt", "store/train003.json"),
        (any_bytes,),
        trains,
    ),
    (
        "evaluated on",
        ("packed/test.safetensors", "packed/packed.json", "store/test001.safetensors"),
        (any_bytes, safetensors_header),
        evaluates,
    ),
    ("old sidecar", ("old_store/test001.json",), (json_file,), evaluates),
    (
        "JSON in a folder",
        ("field/gt_segment.json", "field/gt_label.json", "field/label_map.json"),
        (json_file,),
        checks,
    ),
    ("arrays in a folder", ("field/gt.npy", "field/rgb/Fire/e__0.npy", "field/truth/e.npy"), (npy,), checks),
    ("old catalogue in use", ("old_packed/packed.json",), (json_file,), evaluates),
    ("trained from lists", FEATURE_FILES[:2] + LISTS, (any_bytes, first_bytes), trains),
]
"""Kind of case: name, the files of which one is changed, the changes of which one is made, and the command."""


def case(number: int, random: random.Random, stock: Path) -> Case:
    """Return a case with one changed file."""
    kind, files, changes, command = KINDS[number % len(KINDS)]
    return _changed(kind, random.choice(files), random.choice(changes), command, random, stock)


def unchanged(stock: Path) -> list[Case]:
    """Return a case of each command and folder, with all files as they are."""
    tried: dict[tuple[str, str], Case] = {}
    for kind, files, _, command in KINDS:
        for file in files:
            key = file.split("/")[0], " ".join(command(stock, file)[0])
            if file != "out" and key not in tried:
                tried[key] = _changed(kind, file, _as_it_is, command, random.Random(0), stock)
    return list(tried.values())


def _as_it_is(path: Path, random: random.Random) -> str:
    return "as it is"


def _changed(kind: str, file: str, change: Change, command: Command, random: random.Random, stock: Path) -> Case:
    root = file.split("/")[0]
    changed = Path(tempfile.mkdtemp(dir=stock.parent)) / Path(file).name
    if root == "out":  # a packed store that is not finished
        shutil.copytree(stock / "packed", changed)
    else:
        shutil.copyfile(stock / file, changed)
    what = change(changed, random)

    def arrange(folder: Path) -> None:
        for name in ("store",) if root == "out" else (root,):
            shutil.copytree(stock / name, folder / name)
        if root != "out":
            (folder / file).unlink()
        if os.path.lexists(changed):
            os.rename(changed, folder / file)

    arguments, agree = command(stock, file)
    name = f"{kind}: {file}: {what}; iefvad {' '.join(word for word in arguments[:2] if word.isalpha())}"
    return Case(name, arrange, lambda: main(arguments), compared(agree), LIMITS)
