"""Disk, memory, descriptors, standard streams and time that run out, for every command, at any moment of it."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import io
import os
import random as chance
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.case import Case, Ended, Limits, Outcome

OUT = "out"
"""Where commands write, in the folder of a case; `tmp` beside it takes rescued results."""


@dataclass(frozen=True)
class Work:
    """A command.

    Attributes:
        line: Its command line. STOCK and OUT stand for folders, LIVE for the address of a stream.
        results: Files below `out` that it writes, and whose bytes depend on nothing else.
        written: Other files below `out` that it writes.
        rescues: Results that `out` does not take are written elsewhere.
        costly: Such a command takes a second or more, so it is tried less often.
    """

    line: list[str]
    results: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    rescues: bool = False
    costly: bool = False


TRAIN = [
    "--features", "STOCK/store", "--preset", "synth", "--epochs", "2", "--batch", "8", "--heads", "2",
    "--refine-steps", "2", "--device", "cpu",
]  # fmt: skip
GROUND_TRUTH = [
    "--annotations", "STOCK/store/annotations.txt", "--test-list", "STOCK/store/test.csv", "--store", "STOCK/store",
]  # fmt: skip

COMMANDS: dict[str, Work] = {
    "detect": Work(
        ["detect", "STOCK/model", "STOCK/a.mp4", "STOCK/b.mp4", "--device", "cpu", "--out", "OUT"],
        ("a.csv", "a_intervals.csv", "b.csv", "b_intervals.csv"),
        ("a.json", "a.html", "b.json", "b.html"),
        rescues=True,
    ),
    "calibrate": Work(
        ["calibrate", "STOCK/model", "STOCK/a.mp4", "STOCK/b.mp4", "--device", "cpu", "--out", "OUT"],
        ("calibration.json",),
        rescues=True,
    ),
    "extract": Work(
        ["extract", "STOCK/a.mp4", "STOCK/b.mp4", "--device", "cpu", "--out", "OUT"],
        ("store.json", "a.safetensors", "a.json", "b.safetensors", "b.json", "index.csv"),
    ),
    "import": Work(
        ["features", "import", "STOCK/store", "--out", "OUT"],
        ("packed.json", "train.safetensors", "test.safetensors"),
    ),
    "export": Work(
        ["features", "export", "STOCK/extracted", "--out", "OUT"],
        ("rgb/a__0.npy", "event/a__0.npy", "rgb/b__0.npy", "event/b__0.npy"),
    ),
    "gt": Work(["data", "gt", *GROUND_TRUTH, "--out", "OUT/gt.npy"], ("gt.npy",), rescues=True),
    "check": Work(["data", "check", "STOCK/store", "--out", "OUT/report.md"], ("report.md",), rescues=True),
    "convert": Work(["convert", "STOCK/w.pth", "OUT/w.safetensors"], ("w.safetensors",), rescues=True),
    "report": Work(["report", "STOCK/run", "--out", "OUT/page.html"], ("page.html",), rescues=True, costly=True),
    "compare": Work(
        ["report", "STOCK/run", "STOCK/run2", "--out", "OUT/page.html"], ("page.html",), rescues=True, costly=True
    ),
    "evaluate": Work(
        ["evaluate", "STOCK/run", "--robustness", "false", "--device", "cpu", "--out", "OUT"],
        ("metrics.json", "scores.csv"),
        ("report.html", "report.json"),
        rescues=True,
        costly=True,
    ),
    "pipeline": Work(
        [
            "extract",
            "STOCK/a.mp4",
            "STOCK/b.mp4",
            "--image-model",
            "STOCK/vit",
            "--device",
            "cpu",
            "--workers",
            "2",
            "--out",
            "OUT",
        ],
        ("store.json", "a.safetensors", "a.json", "b.safetensors", "b.json", "index.csv"),
        costly=True,
    ),
    "reproduce": Work(
        ["reproduce", "figure3", *TRAIN, "--seeds", "0", "--jobs", "1", "--out", "OUT"],
        (),
        ("index.html", "*.csv", "*.tex", "*.png"),
        rescues=True,
        costly=True,
    ),
    "train": Work(
        ["train", *TRAIN, "--compare", "false", "--modality", "image", "--out", "OUT"],
        ("checkpoint.safetensors", "metrics.json", "scores.csv"),
        ("report.html", "log.jsonl"),
        rescues=True,
        costly=True,
    ),
    "sweep": Work(
        ["sweep", *TRAIN, "--modality", "image", "--vary", "lr=1e-3,2e-3", "--jobs", "1", "--out", "OUT"],
        ("results.csv", "tables.csv", "tables.tex"),
        ("index.html",),
        rescues=True,
        costly=True,
    ),
    "live": Work(
        [
            "detect",
            "STOCK/model",
            "LIVE",
            "--device",
            "cpu",
            "--out",
            "OUT",
            "--duration",
            "0.8",
            "--retry-seconds",
            "0.05",
        ],
        (),
        ("*.csv", "*.json", "*.html"),
        rescues=True,
        costly=True,
    ),
    "verify": Work(["data", "verify", "STOCK/store", "STOCK/run"]),
    "info": Work(["features", "info", "STOCK/store"]),
    "encoders": Work(["encoders", "--cached"]),
    "help": Work(["detect", "--help"]),
    "overview": Work([]),
}
WRITERS = [name for name, work in COMMANDS.items() if work.results or work.written]
QUICK = [name for name in WRITERS if not COMMANDS[name].costly]
ALL = list(COMMANDS)

# What an undisturbed command does: its seconds, its operations on `out` (kind, path), and its files.
_SECONDS: dict[str, float] = {}
_STEPS: dict[str, list[tuple[str, str]]] = {}
_RESULTS: dict[str, dict[str, bytes]] = {}


def prepare(stock: Path) -> None:
    """Make videos, a model, stores, runs, and one undisturbed result of each command."""
    import torch

    from iefvad.cli.main import main
    from tests.helpers import released
    from tests.helpers.detecting import small_model, write_video
    from tests.helpers.stores import write_store
    from tests.helpers.video_files import small_vit

    small_vit(stock / "vit")
    for number, name in enumerate("ab"):
        write_video(stock / f"{name}.mp4", frames=48, seed=number, burst=range(1, 2))
    write_video(stock / "live.ts", frames=80)
    small_model().save_pretrained(stock / "model")
    write_store(stock / "store", train=12, test=4)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for run in ("run", "run2"):
            assert main(_words(COMMANDS["train"], stock, stock / run)) == 0
        assert main(_words(COMMANDS["extract"], stock, stock / "extracted")) == 0
    network = released.vary(released.Published(dim=8, layers=1, heads=2, steps=1, hidden=8))
    torch.save(network.state_dict(), stock / "w.pth")
    for name in COMMANDS:
        _measure(name, stock)


def _measure(name: str, stock: Path) -> None:
    """Run a command undisturbed in a child, and keep what it does."""
    from tests.fuzz.runner import run_in_child

    folder = stock / "whole" / name
    (folder / "tmp").mkdir(parents=True)
    log = stock / "whole" / f"{name}.log"

    def act() -> int:
        with _watched(folder / OUT) as steps:
            status = _run(COMMANDS[name], stock, folder)
        log.write_text("".join(f"{kind}\t{path}\n" for kind, path in steps.done))
        return status

    ended = run_in_child(Case(name, lambda folder: None, act, limits=Limits(seconds=120)), folder)
    assert ended.status == 0, (name, ended)
    _SECONDS[name] = ended.seconds
    lines = log.read_text().splitlines() if log.exists() else []
    _STEPS[name] = [(line.split("\t")[0], line.split("\t")[1]) for line in lines]
    _RESULTS[name] = _files(folder / OUT)


def _words(work: Work, stock: Path, out: Path | str, live: str = "") -> list[str]:
    return [word.replace("STOCK", str(stock)).replace("OUT", str(out)).replace("LIVE", live) for word in work.line]


def _run(work: Work, stock: Path, folder: Path, out: str = OUT) -> int:
    """Run a command in this process, with a folder for temporary files of its own."""
    from iefvad.cli.main import main
    from iefvad.sweep import local

    local.START = "fork"
    tempfile.tempdir = str(folder / "tmp")
    os.environ["HOME"] = str(folder / "tmp")
    if "LIVE" not in work.line:
        return main(_words(work, stock, folder / out))
    from tests.helpers.detecting import paced, tcp_server

    with tcp_server(paced((stock / "live.ts").read_bytes(), 0.3), keep=True) as address:
        return main(_words(work, stock, folder / out, address))


def _files(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A writer that fails: every operation that changes `out` is counted, and the chosen ones fail.


@dataclass
class Steps:
    """Operations on a folder.

    Attributes:
        folder: The folder.
        fail: Called with the number of an operation, from 1, before it is done.
        done: Kind and path of each operation.
    """

    folder: Path
    fail: Callable[[int], None] = lambda number: None
    done: list[tuple[str, str]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)

    def step(self, kind: str, path: Any) -> None:
        """Count an operation on a path, if it is below the folder."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = os.path.abspath(os.fsdecode(path))
        if name != str(self.folder) and not name.startswith(f"{self.folder}{os.sep}"):
            return
        with self.lock:
            self.done.append((kind, os.path.relpath(name, self.folder)))
            number = len(self.done)
        self.fail(number)


@contextlib.contextmanager
def _watched(folder: Path, fail: Callable[[int], None] = lambda number: None) -> Iterator[Steps]:
    """Count what Python writes below a folder in the block: files, renames, folders, flushes to the disk."""
    steps = Steps(folder, fail)
    named: dict[int, str] = {}
    kept = {name: getattr(os, name) for name in ("open", "replace", "mkdir", "fsync", "pwrite", "ftruncate")}
    opener = io.open

    class Counted(io.FileIO):
        def write(self, data: Any) -> int:
            steps.step("write", self.name)
            return super().write(data)

    def open_counted(file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return opener(file, mode, buffering, *more, **options)
        steps.step("open", file)
        raw = Counted(os.fspath(file), mode.replace("b", "").replace("t", ""), opener=options.pop("opener", None))
        named[raw.fileno()] = os.fspath(file)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        options.pop("closefd", None)
        return io.TextIOWrapper(buffered, *more, **options)

    def counted(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *more: Any, **options: Any) -> Any:
            if kind == "open":
                if more and more[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                    steps.step(kind, first)
                number = original(first, *more, **options)
                named[number] = os.fsdecode(first)
                return number
            path = more[0] if kind == "replace" else named.get(first) if isinstance(first, int) else first
            steps.step(kind, path)
            return original(first, *more, **options)

        return call

    for name, original in kept.items():
        setattr(os, name, counted(name, original))
    io.open = builtins.open = open_counted
    try:
        yield steps
    finally:
        for name, original in kept.items():
            setattr(os, name, original)
        io.open = builtins.open = opener


def _before_results(name: str) -> int:
    """Return the number of operations of an undisturbed command before it writes the first thing that it computed."""
    steps = _STEPS[name]
    first = next((path for _, path in steps if path.endswith(".tmp")), None)
    before = {".", first, "lock", ".lock", "sweep.json", "config.yaml"}
    return max((n for n, (_, path) in enumerate(steps, 1) if path in before or "data" in Path(path).parts), default=0)


# Judges.


def _by_text(ended: Ended) -> Outcome | None:
    """Return the fault that the end and the text of a command show, if any."""
    if ended.timed_out:
        return "hang"
    if ended.signal is not None:
        return "crash"
    text = ended.err + ended.out
    if any(sign in text for sign in ("Traceback (most recent call last)", "Exception ignored", "Error in sys.")):
        return "traceback"
    return None


def _by_files(name: str, before: dict[str, bytes], after: dict[str, bytes], *, finished: bool) -> Outcome | None:
    """Compare the files with those of before and of an undisturbed command."""
    work, whole = COMMANDS[name], _RESULTS[name]
    if any(path.endswith(".tmp") for path in after):
        return "loss"
    for path, data in before.items():
        if path in work.results and after.get(path) not in (data, whole[path]):
            return "loss"
    if finished:
        for path in work.results:
            if path not in after:
                return "loss"
            if after[path] != whole[path]:
                return "silent"
        if not all(any(Path(found).match(path) for found in after) for path in work.written):
            return "loss"
    return None


def _judge(
    name: str, before: dict[str, bytes], *, statuses: tuple[int, ...] = (), rescued: bool = False
) -> Callable[[Path, Ended], Outcome]:
    """Return a judge.

    Args:
        name: The command.
        before: Files below `out` before the command.
        statuses: What else than 0, 1 and 2 is sensible.
        rescued: Everything was computed: the results are below `out` or in the folder that the error names.
    """

    def judge(folder: Path, ended: Ended) -> Outcome:
        if (fault := _by_text(ended)) is not None:
            return fault
        if ended.status not in (0, 1, 2, *statuses):
            return "crash"
        after = _files(folder / "after" if (folder / "after").is_dir() else folder / OUT)
        if (fault := _by_files(name, before, after, finished=ended.status == 0 and name in WRITERS)) is not None:
            return fault
        if (folder / "left").exists():
            return "hang"  # a child of the command outlived it
        if ended.status == 0:
            return "fine"
        if not ended.err.strip():
            return "silent"
        if rescued and not _is_kept(name, folder, ended, after):
            return "loss"
        return "refused" if len(_errors(ended)) <= 3 else "traceback"

    return judge


def _errors(ended: Ended) -> list[str]:
    # A training of a sweep that failed has a line of its own, which may say "Input/output error".
    return [line for line in ended.err.splitlines() if line.startswith("iefvad") and ": error: " in line]


def _is_kept(name: str, folder: Path, ended: Ended, after: dict[str, bytes]) -> bool:
    """Whether results are at their place or where the error says, or made again by what the error says."""
    work = COMMANDS[name]
    if "--resume" in ended.err or not work.rescues or "no training could be finished" in ended.err:
        return True
    for place in (folder / "tmp").glob("iefvad-*"):
        if str(place) in ended.err and any(path.is_file() for path in place.rglob("*.*")):
            return True
    return all(any(Path(found).match(path) for found in after) for path in work.results + work.written)


# Kinds of cases.

_ERRORS = ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES")


def _earlier(name: str, random: chance.Random) -> dict[str, bytes]:
    """Return files that an earlier command may have left in `out`; sometimes none."""
    if name in ("train", "sweep", "reproduce", "live", "import", "extract", "pipeline") or random.random() < 0.5:
        return {}
    return dict(_RESULTS[name])


def _with(before: dict[str, bytes]) -> Callable[[Path], None]:
    def arrange(folder: Path) -> None:
        (folder / "tmp").mkdir()
        for path, data in before.items():
            (folder / OUT / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / OUT / path).write_bytes(data)

    return arrange


def failing_writer(name: str, random: chance.Random, stock: Path) -> Case:
    """The n-th operation on `out` fails, and perhaps all after it."""
    kind = random.choice(_ERRORS)
    code = getattr(errno, kind)
    number = random.randint(1, max(1, len(_STEPS[name])))
    for_ever = random.random() < 0.7
    before = _earlier(name, random)

    def fail(step: int) -> None:
        if step == number or (for_ever and step > number):
            raise OSError(code, os.strerror(code))

    def act() -> int:
        folder = Path.cwd()
        with _watched(folder / OUT, fail):
            return _run(COMMANDS[name], stock, folder)

    how = "and all after it fail" if for_ever else "fails"
    what = " ".join(_STEPS[name][number - 1])
    return Case(
        f"{name}: operation {number} on its folder ({what}) {how} with {kind}",
        _with(before),
        act,
        _judge(name, before, rescued=number > _before_results(name)),
    )


def file_size(name: str, random: chance.Random, stock: Path) -> Case:
    """`ulimit -f`."""
    size = random.choice((2048, 4096, 8192, 20_000, 60_000, 200_000))  # what is said goes to a file too
    before = _earlier(name, random)
    return Case(
        f"{name}: no file may become larger than {size} bytes (ulimit -f)",
        _with(before),
        lambda: _run(COMMANDS[name], stock, Path.cwd()),
        _judge(name, before),
        Limits(file_bytes=size),
    )


def _mounted(folder: Path, options: str) -> bool:
    """Mount a small disk on a folder for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) != 0:  # a mount namespace of its own
        return False
    if libc.mount(b"none", b"/", None, 0x44000, None) != 0:  # private, recursively
        return False
    return bool(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode()) == 0)


def small_disk(name: str, random: chance.Random, stock: Path) -> Case:
    """`out` is a small disk, where mounting is allowed; elsewhere files are limited to that size."""
    size = random.choice((4, 8, 12, 16, 32, 64, 128, 256))

    def act() -> int:
        folder = Path.cwd()
        (folder / OUT).mkdir()
        if not _mounted(folder / OUT, f"size={size}k"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * size, resource.RLIM_INFINITY))
        status = _run(COMMANDS[name], stock, folder)
        shutil.copytree(folder / OUT, folder / "after")
        return status

    return Case(f"{name}: its folder is a disk of {size} kB", _with({}), act, _judge(name, {}))


def foreign_place(name: str, random: chance.Random, stock: Path) -> Case:
    """`out` cannot be written to from the start."""
    kind = random.choice(("read-only", "file", "link to nowhere", "below a file", "missing parents", "link to itself"))
    out = f"{OUT}/x/y" if kind in ("below a file", "missing parents") else OUT

    def arrange(folder: Path) -> None:
        (folder / "tmp").mkdir()
        place = folder / OUT
        if kind in ("file", "below a file"):
            place.write_text("precious")
        elif kind == "link to nowhere":
            place.symlink_to("nowhere/at/all")
        elif kind == "link to itself":
            place.symlink_to(OUT)
        elif kind == "read-only":
            place.mkdir()

    def act() -> int:
        place = Path.cwd() / OUT
        if kind == "read-only":
            again = ctypes.CDLL(None).mount
            if not (_mounted(place, "size=1m") and again(None, os.fsencode(place), None, 1 | 32, None) == 0):
                place.chmod(0o500)
        return _run(COMMANDS[name], stock, Path.cwd(), out)

    def judge(folder: Path, ended: Ended) -> Outcome:
        if (fault := _by_text(ended)) is not None:
            return fault
        if kind == "missing parents":
            return "fine" if ended.status == 0 and any((folder / out).iterdir()) else "loss"
        if kind in ("file", "below a file") and (folder / OUT).read_text() != "precious":
            return "loss"
        # What can be known before the work is found before: nothing is computed, so nothing is written elsewhere.
        explained = "cannot be" in ended.err or "is a file" in ended.err
        if ended.status not in (1, 2) or any((folder / "tmp").glob("iefvad-*")) or not explained:
            return "silent"
        return "refused" if len(_errors(ended)) == 1 else "traceback"

    return Case(f"{name}: --out is {kind}", arrange, act, judge)


_STREAMS = (
    "closed output", "closed errors", "both closed", "closed input", "full output", "full errors", "both full",
    "a reader of the output that has gone", "a reader of the errors that has gone", "head -1", "all closed",
)  # fmt: skip
_UNHEARD = (
    "closed errors",
    "both closed",
    "all closed",
    "full errors",
    "both full",
    "a reader of the errors that has gone",
)


def streams(name: str, random: chance.Random, stock: Path) -> Case:
    """Standard streams that are closed, full or not read."""
    kind = random.choice(_STREAMS)

    def act() -> int:
        _change_streams(kind)
        status = _run(COMMANDS[name], stock, Path.cwd())
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        return status

    def judge(folder: Path, ended: Ended) -> Outcome:
        if (fault := _by_text(ended)) is not None:
            return fault
        if name in WRITERS and (fault := _by_files(name, {}, _files(folder / OUT), finished=True)) is not None:
            return fault
        full = kind in ("full output", "both full")
        if ended.status != int(full) or (kind == "full output" and "output cannot be written" not in ended.err):
            return "silent"
        return "traceback" if not full and kind not in _UNHEARD and _errors(ended) else "fine"

    return Case(f"{name}: {kind}", _with({}), act, judge)


def _change_streams(kind: str) -> None:
    def put(descriptor: int, number: int) -> None:
        os.dup2(descriptor, number)

    if kind == "head -1":
        reading, writing = os.pipe()
        put(writing, 1)
        os.close(writing)

        def head() -> None:
            while b"\n" not in (os.read(reading, 16) or b"\n"):
                pass
            os.close(reading)

        threading.Thread(target=head, daemon=True).start()
    elif "reader" in kind:
        reading, writing = os.pipe()
        os.close(reading)
        put(writing, 1 if "output" in kind else 2)
        os.close(writing)
    elif "full" in kind:
        full = os.open("/dev/full", os.O_WRONLY)
        for number in {"full output": (1,), "full errors": (2,)}.get(kind, (1, 2)):
            put(full, number)
        os.close(full)
    else:
        closed = {"closed output": (1,), "closed errors": (2,), "closed input": (0,), "both closed": (1, 2)}
        for number in closed.get(kind, (0, 1, 2)):
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python starts


def memory(name: str, random: chance.Random, stock: Path) -> Case:
    """`ulimit -v`."""
    size = int(2 ** random.uniform(22, 29))
    before = _earlier(name, random)
    return Case(
        f"{name}: {size / 1e6:.3g} MB of memory beyond the start (ulimit -v)",
        _with(before),
        lambda: _run(COMMANDS[name], stock, Path.cwd()),
        _judge(name, before),
        Limits(memory=size),
    )


def descriptors(name: str, random: chance.Random, stock: Path) -> Case:
    """`ulimit -n`."""
    more = random.randint(0, 12)
    before = _earlier(name, random)

    def act() -> int:
        used = len(os.listdir("/proc/self/fd")) - 1 if os.path.isdir("/proc/self/fd") else 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return _run(COMMANDS[name], stock, Path.cwd())

    return Case(f"{name}: {more} more files may be open (ulimit -n)", _with(before), act, _judge(name, before))


def signals(name: str, random: chance.Random, stock: Path) -> Case:
    """SIGTERM, SIGHUP or Ctrl-C, at an operation on `out` or after some time; sometimes twice, as `timeout` does."""
    number = random.choice((signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
    steps = len(_STEPS[name])
    step = random.randint(1, steps) if steps and random.random() < 0.6 else 0
    seconds = random.uniform(0.02, 1.05) * _SECONDS[name]
    times = random.choice((1, 2))
    before = _earlier(name, random)

    def send(process: int) -> None:
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def act() -> int:
        folder, process = Path.cwd(), os.getpid()

        def at(done: int) -> None:
            if done == step and os.getpid() == process:  # its children count too
                send(process)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sender = 0
        if not step:
            sender = os.fork()
            if sender == 0:
                time.sleep(seconds)
                send(process)
                os._exit(0)
        try:
            with _watched(folder / OUT, at) if step else contextlib.nullcontext():
                status = _run(COMMANDS[name], stock, folder)
        finally:
            for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)  # too late
        if sender:
            os.kill(sender, signal.SIGKILL)
            os.waitpid(sender, 0)
        children = Path(f"/proc/self/task/{process}/children")
        if children.exists() and children.read_text().strip():
            (folder / "left").touch()
        return status

    when = f"at operation {step} on its folder" if step else f"after {seconds:.2f} s"
    return Case(
        f"{name}: {number.name} {when}{', twice' if times == 2 else ''}",
        _with(before),
        act,
        _judge(name, before, statuses=(128 + number,)),
    )


KINDS: list[tuple[Callable[[str, chance.Random, Path], Case], list[str]]] = [
    (failing_writer, QUICK), (streams, ALL), (signals, QUICK), (foreign_place, QUICK), (file_size, QUICK),
    (memory, QUICK), (descriptors, ALL), (small_disk, QUICK), (failing_writer, WRITERS), (signals, WRITERS),
    (streams, QUICK), (foreign_place, WRITERS), (memory, ALL), (small_disk, WRITERS), (file_size, WRITERS),
]  # fmt: skip


def unchanged(stock: Path) -> list[Case]:
    """Return each command with nothing that runs out, and so the same results as `prepare` got."""

    def of(name: str) -> Case:
        act = lambda: _run(COMMANDS[name], stock, Path.cwd())  # noqa: E731
        return Case(name, _with({}), act, _judge(name, {}))

    return [of(name) for name in ALL if not COMMANDS[name].costly or name == "train"]


def case(number: int, random: chance.Random, stock: Path) -> Case:
    """Walk through kinds and commands."""
    kind, names = KINDS[number % len(KINDS)]
    return kind(names[(number // len(KINDS) + number % len(KINDS)) % len(names)], random, stock)
