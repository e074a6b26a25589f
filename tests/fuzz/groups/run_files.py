"""Every file of a run, a saved model, a released checkpoint, an encoder and a sweep: changed bytes and structures."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from torch import Tensor

from iefvad.checkpoints.hub import IEFVAD, load_trained
from iefvad.cli.main import main
from iefvad.sweep import local
from iefvad.sweep.documents import text_of
from iefvad.sweep.engine import work
from iefvad.training import results
from iefvad.utils.tensors import read_tensors, write_tensors
from tests.fuzz.case import Case, Ended, Limits, Outcome, judged
from tests.fuzz.mutators import changed_bytes, changed_value
from tests.helpers.detecting import small_model, write_video
from tests.helpers.released import Published, vary, write_field
from tests.helpers.stores import write_store

TRAIN = ["--epochs", "2", "--batch", "4", "--heads", "2", "--layers", "1", "--refine-steps", "1", "--device", "cpu",
         "--preset", "synth"]  # fmt: skip
VIT = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 1, "width": 16, "head_width": 8, "patch_size": 14},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}
"""The smallest encoder in open_clip's layout."""
CLOSE = 1e-5


def prepare(stock: Path) -> None:
    """Make one of each: a run, the state of an interrupted one, a saved model, a calibration, a sweep, an encoder."""
    write_store(stock / "store", train=16, test=4)
    store = ["--features", str(stock / "store")]
    run = ["train", *store, "--out", str(stock / "run"), *TRAIN, "--modality", "fusion", "--compare", "false"]
    _do(run)
    main(["evaluate", str(stock / "run"), "--robustness", "false", "--device", "cpu"])  # with the page
    shutil.copytree(stock / "run", stock / "interrupted")
    for name in ("metrics.json", "checkpoint.safetensors", "scores.csv", "scores.npz", "report.json", "report.html"):
        (stock / "interrupted" / name).unlink()
    model = load_trained(stock / "run")
    assert isinstance(model, IEFVAD)
    model.save_pretrained(stock / "saved")
    _do(["evaluate", str(stock / "saved"), *store, "--robustness", "false", "--device", "cpu"])
    write_video(stock / "a.mp4", frames=40, burst=range(1, 2))
    small_model().save_pretrained(stock / "model")
    _do(["calibrate", str(stock / "model"), str(stock / "a.mp4"), "--false-alarms-per-hour", "0", "--device", "cpu"])
    _do(["detect", str(stock / "model"), str(stock / "a.mp4"), "--device", "cpu", "--thumbnails", "0", "--out",
         str(stock / "detected")])  # fmt: skip
    torch.manual_seed(0)
    published = vary(Published(dim=16, layers=1, heads=1, steps=2, hidden=8))
    torch.save(published.state_dict(), stock / "released.pth")
    _do(["convert", str(stock / "released.pth"), str(stock / "released.safetensors")])
    write_field(stock / "field", train=2, test=(4, 6))
    _do(_evaluate_released(stock, stock / "released.safetensors", stock / "released"))
    _do(_sweep(stock, stock / "sweep"))
    encoder = stock / "encoder"
    encoder.mkdir()
    (encoder / "open_clip_config.json").write_text(json.dumps(VIT))
    from open_clip.model import _build_vision_tower

    tower = _build_vision_tower(16, VIT["model_cfg"]["vision_cfg"], False, torch.float32)
    tensors = {f"visual.{name}": value.clone() for name, value in tower.state_dict().items()}
    safetensors.torch.save_file(tensors, encoder / "open_clip_model.safetensors")


def _do(words: list[str]) -> None:
    with _cheap():
        status = main(words)
    assert status == 0, words


class _cheap:  # noqa: N801
    """Leave the page of a run out, and let sweeps train in this process: both cost more than all else."""

    def __enter__(self) -> None:
        self._before = results.write_run_report, local.run_local
        results.write_run_report = lambda folder, out=None: Path(folder) / "report.html"
        local.run_local = lambda tasks, out, devices, threads: (work(task, out, devices[0]) for task in tasks)

    def __exit__(self, *_: object) -> None:
        results.write_run_report, local.run_local = self._before


def _quickly(*words: str) -> int:
    with _cheap():
        return main(list(words))


# Commands that read the files. Their results are in the folder `out`.


def _sweep(stock: Path, out: Path | str) -> list[str]:
    return ["sweep", "--features", str(stock / "store"), "--out", str(out), *TRAIN, "--vary", "nu=4,8"]


def _evaluate_released(stock: Path, path: Path | str, out: Path | str) -> list[str]:
    field = stock / "field"
    data = [
        "--features",
        str(field / "features"),
        "--test-list",
        str(field / "test.csv"),
        "--gt",
        str(field / "gt.npy"),
    ]
    data += ["--event-folder", "event_thr_10", "--heads", "1"]
    return ["evaluate", str(path), *data, "--out", str(out), "--robustness", "false", "--device", "cpu"]


def _act(kind: str, stock: Path) -> Callable[[], int]:
    store = str(stock / "store")
    usual = ("--robustness", "false", "--device", "cpu")
    video = (str(stock / "a.mp4"), "--device", "cpu", "--out", "out")
    words: dict[str, list[str]] = {
        "evaluate": ["evaluate", "it", "--out", "out", *usual],
        "evaluate saved": ["evaluate", "it", "--features", store, "--out", "out", *usual],
        "report": ["report", "it", "--out", "out.html"],
        "compare": ["report", "it", str(stock / "run"), "--out", "out.html"],
        "resume": ["train", "--config", str(stock / "run" / "config.yaml"), "--out", "it", "--resume"],
        "resume by its own file": ["train", "--config", "it/config.yaml", "--out", "it", "--resume"],
        "detect": ["detect", "it", *video, "--thumbnails", "0"],
        "calibrate": ["calibrate", "it", *video],
        "convert": ["convert", "it.pth", "out.safetensors"],
        "evaluate released": _evaluate_released(stock, "it.safetensors", "out"),
        "sweep": _sweep(stock, "it"),
        "extract": ["extract", str(stock / "a.mp4"), "--image-model", "local-dir:it", "--out", "out", "--device", "cpu",
                    "--workers", "1", "--quiet"],
        "verify": ["data", "verify", "it"],
    }  # fmt: skip
    if kind in ("report", "compare"):
        return lambda: main(words[kind])
    return lambda: _quickly(*words[kind])


# Judges: an accepted file must give the results of the stock, or what is judged is only that they are numbers.


def _same(what: str, stock: Path, folder: Path, ended: Ended) -> Outcome:
    outcome = judged(folder, ended)
    if outcome == "refused" and ended.err.count("\n") > 4:
        return "silent"  # one line, below what a training shows before
    if outcome != "fine":
        return outcome
    wanted, found = _RESULTS[what](stock), _RESULTS[what](folder)
    if found is None or wanted is None or found.shape != wanted.shape:
        return "silent"
    return "fine" if np.allclose(wanted, found, rtol=0, atol=CLOSE) else "silent"


def _honest(what: str, stock: Path, folder: Path, ended: Ended) -> Outcome:
    outcome = judged(folder, ended)
    if outcome == "fine" and what in _RESULTS:
        found = _RESULTS[what](folder)
        if found is None or not np.isfinite(found).all():
            return "silent"
    return outcome


def _column(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    return np.atleast_1d(table["score"]).astype(float)


def _first(*paths: Path) -> Path:
    return next((path for path in paths if path.exists()), paths[0])


def _swept(folder: Path) -> np.ndarray | None:
    path = _first(folder / "it", folder / "sweep") / "results.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]] if path.is_file() else []
    return np.array([float(row[-1]) for row in rows]) if rows else None


def _converted(folder: Path) -> np.ndarray | None:
    path = _first(folder / "out.safetensors", folder / "released.safetensors")
    tensors = read_tensors(path)[0]
    return np.concatenate([tensors[name].float().flatten().numpy() for name in sorted(tensors)])


_RESULTS: dict[str, Callable[[Path], np.ndarray | None]] = {
    "evaluate": lambda folder: _column(_first(folder / "out", folder / "run") / "scores.csv"),
    "evaluate saved": lambda folder: _column(_first(folder / "out", folder / "saved") / "scores.csv"),
    "evaluate released": lambda folder: _column(_first(folder / "out", folder / "released") / "scores.csv"),
    "resume": lambda folder: _column(_first(folder / "it", folder / "run") / "scores.csv"),
    "detect": lambda folder: _column(_first(folder / "out", folder / "detected") / "a.csv"),
    "sweep": _swept,
    "convert": _converted,
}
"""Command → from the folder of a case, or from the stock, to the numbers that it computed."""

Change = Callable[[Path, random.Random], str]
"""Changes a file in place and says what was done."""


def _bytes(path: Path, random: random.Random) -> str:
    what, data = changed_bytes(path.read_bytes(), random)
    path.write_bytes(data)
    return what


def _json(path: Path, random: random.Random) -> str:
    what, value = changed_value(json.loads(path.read_text()), random)
    path.write_text(json.dumps(value), errors="replace")
    return what


def _yaml(path: Path, random: random.Random) -> str:
    what, value = changed_value(yaml.safe_load(path.read_text()), random)
    path.write_text(yaml.safe_dump(value, sort_keys=False), errors="replace")
    return what


def _yaml_text(path: Path, random: random.Random) -> str:
    text = path.read_text()
    what, more = random.choice(
        [
            ("a tag that runs code", "nu: !!python/object/apply:os.system ['touch PWNED']\n"),
            ("an unknown tag", "nu: !thing 8\n"),
            ("aliases", "explicit: &a [x, x]\nlog: *a\n"),
            ("a name twice", "lr: 0.5\n"),
            ("a merge", "<<: {lr: 0.5}\n"),
            ("two documents", "---\nlr: 0.5\n"),
            ("a name that is a list", "? [a, b]\n: 1\n"),
            ("a name that is a number", "1: 2\n"),
            ("a date", "cache: 2026-01-01\n"),
            ("binary", "cache: !!binary aGVsbG8=\n"),
            ("depth", "cache: " + "[" * 3000 + "\n"),
            ("a sexagesimal number", "seeds: [1:30]\n"),
            ("an octal number", "seeds: [010]\n"),
            ("a set", "cache: !!set {a, b}\n"),
            ("tabs", "\tlr: 1\n"),
            ("an infinite number", "eps: .inf\n"),
            ("no number", "lr: .nan\n"),
        ]
    )
    name = more.partition(":")[0]
    lines = [line for line in text.splitlines() if not line.startswith(f"{name}:") or what == "a name twice"]
    path.write_text("\n".join(lines) + "\n" + more)
    return what


def _lines(path: Path, random: random.Random) -> str:
    lines = path.read_text().splitlines()
    place = random.randrange(len(lines))
    what, value = changed_value(json.loads(lines[place]), random)
    lines[place] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n", errors="replace")
    return what


def _metadata(key: str, path: Path, random: random.Random) -> str:
    """Change JSON in the header of a safetensors file, and write the file with the right checksums."""
    tensors, metadata = read_tensors(path)
    what, value = changed_value(json.loads(metadata[key]), random)
    write_tensors(path, tensors, {key: json.dumps(value)})
    return f"{what}, with right checksums"


def _tensors(key: str | None, path: Path, random: random.Random) -> str:
    """Change a tensor of a safetensors file, and write the file with the right checksums."""
    tensors, metadata = read_tensors(path)
    what, tensors = _changed_tensors(tensors, random)
    write_tensors(path, tensors, metadata if key else {})
    return f"{what}, with right checksums"


def _changed_tensors(tensors: dict[str, Tensor], random: random.Random) -> tuple[str, dict[str, Tensor]]:
    name = random.choice(sorted(tensors))
    value = tensors[name]
    changes: dict[str, Callable[[], Tensor | None]] = {
        "is missing": lambda: None,
        "is NaN": lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value[:0],
        "is infinite": lambda: torch.full_like(value, float("inf")) if value.is_floating_point() else value[:0],
        "has another shape": lambda: torch.cat([value.flatten(), value.flatten()[:1]]),
        "is empty": lambda: torch.zeros(0),
        "is int64": lambda: value.to(torch.int64),
        "is bool": lambda: value.bool(),
        "has a dimension more": lambda: value[None],
        "is a scalar": lambda: torch.tensor(1.0),
    }
    what = random.choice(sorted(changes))
    changed = changes[what]()
    rest = {key: item for key, item in tensors.items() if key != name}
    if random.random() < 0.1:
        return "a tensor more", tensors | {random.choice(("x", "temporal.x", "best.x", "y" * 300)): torch.zeros(1)}
    return f"{name} {what}", rest if changed is None else rest | {name: changed.contiguous()}


def _header(path: Path, random: random.Random) -> str:
    """Change the header of a safetensors file: sizes, offsets, types; the data stay."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + size])
    names = [name for name in content if name != "__metadata__"]
    entry = content[random.choice(names)]
    what = random.choice(
        ("size", "length", "offsets", "overlap", "dtype", "shape", "negative", "extra", "deep", "meta")
    )
    if what == "size":
        wrong = random.choice((0, 1, size - 1, size + 1, 2**31, 2**40, 2**63, 2**64 - 1))
        path.write_bytes(wrong.to_bytes(8, "little") + data[8:])
        return f"the header claims {wrong} bytes"
    if what == "deep":
        text = b"[" * 100_000
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        return "the header is nested deeply"
    if what == "length":
        entry["data_offsets"][1] += random.choice((-1, 1, 4, 2**40))
    elif what == "offsets":
        entry["data_offsets"] = random.choice(([0, 2**63], [5, 1], [-4, 4], [0], "abc", [0.5, 4], None))
    elif what == "overlap":
        entry["data_offsets"] = list(content[random.choice(names)]["data_offsets"])
    elif what == "dtype":
        entry["dtype"] = random.choice(("I32", "F16", "F64", "BOOL", "F8_E4M3", "C64", "X9", 5, None))
    elif what == "shape":
        entry["shape"] = random.choice(([2**40], [2**62, 2**62], [0], [], [-1], [1.5], "abc", [1] * 5000, None))
    elif what == "negative":
        entry["shape"] = [-number for number in entry["shape"]]
    elif what == "extra":
        content["x"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data) - 8 - size, len(data) - 4 - size]}
    else:
        content["__metadata__"] = random.choice(({}, None, [], {"iefvad": "{}"}, {"iefvad": 1}, {"iefvad": "[" * 5000}))
    text = json.dumps(content).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return f"{what} of the header"


class _Runs:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def _pickled(path: Path, random: random.Random) -> str:
    what = random.choice(("pickle", "zip", "torch", "npz", "empty zip", "text", "folder"))
    path.unlink()
    if what == "pickle":
        path.write_bytes(pickle.dumps(_Runs(), protocol=random.choice((0, 2, 4))))
    elif what == "torch":
        torch.save({"state_dict": _Runs()}, path)
    elif what == "npz":
        with path.open("wb") as file:
            np.savez(file, index=np.array([_Runs()], dtype=object))
    elif what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            if what == "zip":
                archive.writestr("archive/data.pkl", pickle.dumps(_Runs()))
                archive.writestr("archive/data/0", bytes(1 << 24))
    return f"{what} in its place"


def _special(path: Path, random: random.Random) -> str:
    what = random.choice(("missing", "folder", "pipe", "loop", "device", "unreadable", "dangling"))
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        os.symlink("/dev/zero", path)
    elif what == "loop":
        os.symlink(path.name, path)
    elif what == "dangling":
        os.symlink("nowhere", path)
    elif what == "unreadable":
        path.write_bytes(b"")
        path.chmod(0)
    return f"{what} in its place"


def _pth(path: Path, random: random.Random) -> str:
    """Write another pickled checkpoint."""
    tensors = torch.load(path, weights_only=True)
    name = random.choice(sorted(tensors))
    value = tensors[name]
    odd: dict[str, Callable[[], Any]] = {
        "huge by repetition": lambda: torch.zeros(1).expand(2**40),
        "sparse": lambda: value.flatten().to_sparse(),
        "complex": lambda: value.to(torch.complex64),
        "float8": lambda: value.to(torch.float8_e4m3fn),
        "quantised": lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        "meta": lambda: value.to("meta"),
        "a list": lambda: value.tolist(),
        "a parameter": lambda: torch.nn.Parameter(value),
        "float16": lambda: value.half(),
        "transposed": lambda: value.T.contiguous().T if value.dim() == 2 else value,
        "an object": _Runs,
    }
    kind = random.random()
    if kind < 0.45:
        what = random.choice(sorted(odd))
        tensors[name] = odd[what]()
    elif kind < 0.8:
        what, tensors = _changed_tensors(tensors, random)
    else:
        wrappers: dict[str, Any] = {
            "in state_dict": {"state_dict": tensors}, "in model, deep": {"model": {"model": tensors}},
            "with module.": {f"module.{key}": item for key, item in tensors.items()}, "a list": [tensors],
            "nothing": {}, "a number": 5, "numbers as names": dict(enumerate(tensors.values())),
            "a block of index 10**9": tensors | {"temporal.refinement_blocks.1000000000.0.weight": torch.zeros(1)},
        }  # fmt: skip
        what = random.choice(sorted(wrappers))
        tensors = wrappers[what]
    torch.save(tensors, path, _use_new_zipfile_serialization=random.random() < 0.8)
    return f"{name}: {what}"


def _scores(path: Path, random: random.Random) -> str:
    """Change the index or an array of scores.npz."""
    with np.load(path) as arrays:
        content = dict(arrays)
    if random.random() < 0.7:
        what, value = changed_value(json.loads(content["index"].tobytes()), random)
        content["index"] = np.frombuffer(json.dumps(value).encode(errors="replace"), np.uint8)
    else:
        name = random.choice(sorted(content))
        array = content[name]
        changed = random.choice((array[:-1], array[None], array.astype("U8"), np.full_like(array, 0), array * 0 - 1))
        what, content[name] = f"{name} is {changed.dtype} {changed.shape}", changed
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    path.write_bytes(buffer.getvalue())
    return what


def _document(path: Path, random: random.Random) -> str:
    """Change a document of a sweep and give it the right digest."""
    document = json.loads(path.read_text())
    document.pop("digest")
    what, changed = changed_value(document, random)
    if not isinstance(changed, dict):
        return _bytes(path, random)
    try:
        path.write_text(text_of(changed), errors="replace")
    except ValueError:
        path.write_text(json.dumps(changed), errors="replace")
    return f"{what}, with the right digest"


# Kinds: (source in the stock, its name in the case, file in it, command, change, whether results must stay the same).

_CHECKPOINT = functools.partial(_metadata, "iefvad")
_STATE = "trainer_state/fusion_seed0.safetensors"
KINDS: tuple[tuple[str, str, str, str, Change, bool], ...] = (
    ("run", "it", "config.yaml", "evaluate", _bytes, True),
    ("run", "it", "checkpoint.safetensors", "evaluate", _bytes, True),
    ("run", "it", "config.yaml", "evaluate", _yaml, True),
    ("run", "it", "checkpoint.safetensors", "evaluate", _CHECKPOINT, False),
    ("interrupted", "it", _STATE, "resume", _bytes, True),
    ("interrupted", "it", _STATE, "resume", functools.partial(_metadata, "status"), False),
    ("interrupted", "it", "config.yaml", "resume by its own file", _yaml, False),
    ("saved", "it", "model.safetensors", "evaluate saved", _bytes, True),
    ("saved", "it", "config.json", "evaluate saved", _json, False),
    ("model", "it", "calibration.json", "detect", _json, True),
    ("released.pth", "it.pth", "", "convert", _bytes, True),
    ("released.pth", "it.pth", "", "convert", _pth, False),
    ("released.safetensors", "it.safetensors", "", "evaluate released", _bytes, True),
    ("released.safetensors", "it.safetensors", "", "evaluate released", functools.partial(_tensors, None), False),
    ("sweep", "it", "trainings/*", "sweep", _bytes, True),
    ("encoder", "it", "open_clip_config.json", "extract", _json, False),
    ("encoder", "it", "open_clip_model.safetensors", "extract", _header, False),
    ("run", "it", "metrics.json", "report", _json, False),
    ("run", "it", "log.jsonl", "evaluate", _lines, True),
    ("run", "it", "checkpoint.safetensors", "evaluate", _header, True),
    ("run", "it", "checkpoint.safetensors", "evaluate", _pickled, True),
    ("run", "it", "config.yaml", "evaluate", _yaml_text, True),
    ("run", "it", "scores.npz", "report", _scores, False),
    ("interrupted", "it", _STATE, "resume", functools.partial(_tensors, "status"), False),
    ("sweep", "it", "trainings/*", "sweep", _document, False),
    ("sweep", "it", "sweep.json", "sweep", _json, True),
    ("model", "it", "config.json", "detect", _json, False),
    ("model", "it", "model.safetensors", "detect", _CHECKPOINT, False),
    ("saved", "it", "model.safetensors", "evaluate saved", functools.partial(_tensors, "iefvad"), False),
    ("run", "it", "report.json", "compare", _json, False),
    ("run", "it", "report.json", "evaluate", _json, True),
    ("encoder", "it", "open_clip_config.json", "extract", _bytes, False),
    ("encoder", "it", "open_clip_model.safetensors", "extract", functools.partial(_tensors, None), False),
    ("saved", "it", "config.json", "evaluate saved", _bytes, False),
    ("run", "it", "*", "evaluate", _special, True),
    ("run", "it", "*", "report", _special, False),
    ("model", "it", "calibration.json", "detect", _bytes, True),
    ("run", "it", "scores.npz", "report", _bytes, False),
    ("run", "it", "metrics.json", "compare", _json, False),
    ("saved", "it", "README.md", "evaluate saved", _bytes, True),
    ("run", "it", "log.jsonl", "report", _lines, False),
    ("interrupted", "it", "log.jsonl", "resume", _lines, True),
    ("interrupted", "it", "*", "resume", _special, True),
    ("saved", "it", "*", "evaluate saved", _special, True),
    ("sweep", "it", "*", "sweep", _special, True),
    ("released.pth", "it.pth", "", "convert", _pickled, False),
    ("model", "it", "*", "calibrate", _special, False),
    ("encoder", "it", "*", "extract", _special, False),
    ("run", "it", "*", "verify", _bytes, False),
    ("model", "it", "config.json", "calibrate", _json, False),
)  # fmt: skip


def case(number: int, random: random.Random, stock: Path) -> Case:
    """Return one changed file and a command that reads it."""
    source, name, file, command, change, same = KINDS[number % len(KINDS)]
    origin = stock / source / file if file and "*" not in file else stock / source
    if "*" in file:
        origin = random.choice(sorted(path for path in (stock / source).glob(file) if path.is_file()))
    return _changed(source, name, origin, command, change, same, random, stock)


def unchanged(stock: Path) -> list[Case]:
    """Return a case of each command and folder, with all files as they are."""
    tried: dict[tuple[str, str], Case] = {}
    for source, name, _, command, _, same in KINDS:
        origin = next(path for path in [stock / source, *sorted((stock / source).rglob("*"))] if path.is_file())
        if (source, command) not in tried:
            tried[source, command] = _changed(source, name, origin, command, _as_it_is, same, random.Random(0), stock)
    return list(tried.values())


def _as_it_is(path: Path, random: random.Random) -> str:
    return "as it is"


def _changed(
    source: str, name: str, origin: Path, command: str, change: Change, same: bool, random: random.Random, stock: Path
) -> Case:
    state = random.getstate()
    what = _described(change, origin, random)

    def arrange(folder: Path) -> None:
        target = folder / name
        if (stock / source).is_dir():
            shutil.copytree(stock / source, target)
            target = target / origin.relative_to(stock / source)
        else:
            shutil.copy(stock / source, target)
        random.setstate(state)
        change(target, random)

    def judge(folder: Path, ended: Ended) -> Outcome:
        for path in folder.rglob("*"):  # so that the folder can be removed
            if path.is_file() and not path.is_symlink() and not os.access(path, os.R_OK):
                path.chmod(0o600)
        if any(folder.rglob("PWNED")):
            return "silent"
        if command == "verify" and ended.status == 1 and "damaged" in ended.out:
            return "refused"
        return (_same if same else _honest)(command, stock, folder, ended)

    where = origin.relative_to(stock)
    return Case(f"{command}: {where}: {what}", arrange, _act(command, stock), judge, Limits(seconds=60))


def _described(change: Change, origin: Path, random: random.Random) -> str:
    """Say what the change does, by doing it to a copy."""
    copy = origin.with_name(f".{origin.name}.copy{origin.suffix}")
    try:
        shutil.copy(origin, copy)
        return change(copy, random)
    finally:
        if copy.is_dir() and not copy.is_symlink():
            copy.rmdir()
        else:
            copy.unlink(missing_ok=True)
