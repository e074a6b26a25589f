"""Own footage, from videos to a detector: labelling, splitting, cutting, normal footage, exports and comparisons."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

from iefvad.cli import label as label_command
from iefvad.cli.main import main
from iefvad.data.sources import source_of
from iefvad.features.store import FeatureStore
from iefvad.labelling import labels as kept
from iefvad.labelling.labels import Labels
from iefvad.labelling.lists import Lists
from iefvad.labelling.media import Media
from iefvad.labelling.server import LabelServer
from iefvad.training import results
from iefvad.utils.csv_text import csv_text
from iefvad.utils.tensors import read_tensors, write_tensors
from tests.fuzz.case import Case, Ended, Limits, Outcome, judged
from tests.fuzz.groups import names
from tests.fuzz.mutators import changed_bytes, changed_value
from tests.helpers.detecting import small_model, write_video
from tests.helpers.stores import write_store

TRAIN = ["--epochs", "1", "--batch", "4", "--heads", "2", "--layers", "1", "--refine-steps", "1", "--device", "cpu",
         "--preset", "synth", "--modality", "fusion", "--compare", "false"]  # fmt: skip
NORMAL = ["--normal-only", "--device", "cpu"]
Make = Callable[[random.Random, Path], Case]


def prepare(stock: Path) -> None:
    """Make a store, runs of both kinds, a model for videos, and videos."""
    write_store(stock / "store", train=16, test=4)
    store = ["--features", str(stock / "store")]
    written = results.write_run_report
    try:
        _without_pages()
        assert main(["train", *store, "--out", str(stock / "run"), *TRAIN]) == 0
        assert main(["train", *store, "--out", str(stock / "normal"), *NORMAL]) == 0
    finally:
        results.write_run_report = written  # for the other groups of this process
    small_model().save_pretrained(stock / "model")
    write_video(stock / "a.mp4", frames=80)
    write_video(stock / "b.mp4", frames=48)
    (stock / "broken.mp4").write_bytes(b"not a video")
    (stock / "truth.txt").write_text("a.mp4  Fight  10  20  -1  -1\nbroken.mp4  Normal  -1  -1  -1  -1\n")


def _without_pages() -> None:
    """Leave the pages of runs out: they have a group of their own."""
    results.write_run_report = lambda folder, out=None: Path(folder) / "report.html"


def case(number: int, random: random.Random, stock: Path) -> Case:
    """Return a case: the kinds in turn."""
    return KINDS[number % len(KINDS)](random, stock)


def unchanged(stock: Path) -> list[Case]:
    """Return one usual command of each kind."""
    lines = [
        ["data", "split", str(stock / "store" / "train.csv"), "--out", "out", "--folds", "2"],
        [
            "data",
            "cut",
            str(stock / "a.mp4"),
            "--out",
            "out",
            "--length",
            "1",
            "--annotations",
            str(stock / "truth.txt"),
        ],
        ["train", "--features", str(stock / "store"), "--out", "out", *NORMAL],
        ["evaluate", str(stock / "normal"), "--robustness", "false", "--device", "cpu", "--out", "out"],
        ["compare", str(stock / "run"), str(stock / "normal")],
        ["detect", str(stock / "model"), str(stock / "a.mp4"), str(stock / "b.mp4"), "--out", "out", "--device", "cpu"],
        ["--print-completion", "bash"],
    ]
    return [Case(" ".join(line[:2]), _nothing, _command(line)) for line in lines]


def _nothing(folder: Path) -> None:
    pass


def _command(words: list[str]) -> Callable[[], int]:
    def act() -> int:
        _without_pages()  # in the process of the case
        return main(words)

    return act


def _say(problems: list[str]) -> int:
    """Note faults for the judge."""
    if problems:
        Path("silent").write_text("\n".join(problems))
        print("\n".join(problems))
    return 0


def _judge(folder: Path, ended: Ended) -> Outcome:
    outcome = judged(folder, ended)
    return "silent" if outcome == "fine" and (folder / "silent").exists() else outcome


# Labelling.


def _labels(folder: Path, files: dict[str, str]) -> tuple[Labels, Lists]:
    lists = Lists(folder, test_fraction=0.5, pattern=None, seed=0)
    labels = Labels(folder, files, ["Fight", "Fall"], lists.write)
    lists.require_own(labels)
    return labels, lists


@contextlib.contextmanager
def _page(stock: Path, folder: Path) -> Iterator[tuple[LabelServer, Labels]]:
    paths = {"a": stock / "a.mp4", "b": stock / "b.mp4", "x": stock / "broken.mp4"}
    labels, lists = _labels(folder, {name: path.name for name, path in paths.items()})
    media = Media(paths, None, {})
    server = LabelServer(list(paths), labels, lists, media, "127.0.0.1:0")
    try:
        yield server, labels
    finally:
        server.close()
        media.close()


def _ask(port: int, token: str, method: str, path: str, body: bytes = b"", **more: str) -> tuple[int, bytes]:
    headers = {"Cookie": f"iefvad-label-{port}={token}", "Origin": f"http://127.0.0.1:{port}",
               "Content-Type": "application/json"}  # fmt: skip
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {name: value for name, value in headers.items() if value})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


CHANGE = {"do": "add", "start": 0.2, "end": 0.9, "class": "Fight", "since": -1}
SET = {"do": "set", "version": 0, "normal": False, "marks": [{"start": 0, "end": 0.5, "class": "Fall"}]}
HOSTILE = (
    b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 50_000, b" " * (2 << 20), b'{"do":"add","do":"set"}',
    b'{"do":"add","start":1e999,"end":2,"class":"Fight"}', b'{"do":"add","start":' + b"9" * 400 + b',"end":1}',
    b'{"do":"add","start":' + b"9" * 5000 + b',"end":1}', b'"\\ud800"', b"null", b"[]", b"NaN",
    b'{"do":"add","start":0,"end":1,"class":["Fight"]}', b'{"do":"add","start":0,"end":1,"class":{"a":1}}',
)  # fmt: skip
PLACES = (
    "/../../etc/passwd", "/videos/-1", "/videos/99999999999999999999", "/videos/0/../../etc/passwd",
    "/videos/%2e%2e/file", "/label.js/..%2f..%2f", "/%00", "/videos/0/file?x=" + "a" * 20_000,
    "/videos/0/frame.jpg?t=1e999", "/videos/0/frame.jpg?t=" + "9" * 400, "/videos/0/frame.jpg?t=", "/videos/2/file",
    "/state?since=" + "9" * 11, "/state?since=%D9%A1&run=x", "/?token=%ff", "/?token=", "/videos/2/frame.jpg?t=-1e300",
)  # fmt: skip
RANGES = ("bytes=0-", "bytes=5-1", "bytes=-1", "bytes=9999999999999999999999-", "bytes=0-0,2-3,5-", "bytes=a-b",
          "lines=1-2", "bytes=" + "0-1," * 500)  # fmt: skip


def _requests(random: random.Random, stock: Path) -> Case:
    """Hostile requests: none gets an error of the program, and none changes what it may not."""
    plan: list[tuple[str, str, str, bytes, dict[str, str]]] = []
    for _ in range(10):
        kind = random.choice(("body", "changed", "place", "range", "stranger", "good"))
        path = random.choice(("/videos/0", "/videos/1", "/videos/2", "/videos/0/side", "/classes"))
        body = json.dumps(changed_value(random.choice((CHANGE, SET)), random)[1]).encode()
        strange = random.choice(({"Cookie": ""}, {"Cookie": "iefvad-label-1=x"}, {"Origin": ""}, {"Origin": "null"},
                                 {"Origin": "http://evil.example"}, {"Content_Type": "text/plain"},
                                 {"Host": "evil.example"}))  # fmt: skip
        plan.append(
            {
                "body": (kind, "POST", path, random.choice(HOSTILE), {}),
                "changed": (kind, "POST", path, body, {}),
                "place": (kind, random.choice(("GET", "HEAD", "PUT", "DELETE")), random.choice(PLACES), b"", {}),
                "range": (kind, "GET", "/videos/0/file", b"", {"Range": random.choice(RANGES)}),
                "stranger": (kind, "POST", "/videos/0", json.dumps(CHANGE).encode(), strange),
                "good": (kind, "POST", "/videos/1", json.dumps(CHANGE).encode(), {}),
            }[kind]
        )

    def act() -> int:
        problems: list[str] = []
        with _page(stock, Path("out")) as (server, labels):
            token = server.address.partition("token=")[2]
            for kind, method, path, body, headers in plan:
                before = _saved(Path("out"))
                status, answer = _ask(server.port, token, method, path, body, **headers)
                after = _saved(Path("out"))
                if status >= 500 or ((kind == "good") != (status == 200) and kind in ("good", "stranger", "body")):
                    problems.append(f"{method} {path[:60]} {body[:60]!r} {headers}: {status}")
                if status != 200 and after != before:
                    problems.append(f"{status}, and labels.json changed")
                if status == 200 and method == "GET" and b"root:" in answer:
                    problems.append("a file of the system")
            wanted = labels.news(-1)["videos"]
        again = _labels(Path("out"), {})[0].news(-1)["videos"]
        touched = {name: video for name, video in wanted.items() if video["version"]}
        return _say(problems + ([] if again == touched else [f"kept {again} and not {touched}"]))

    return Case(f"label: requests {', '.join(one[0] for one in plan)}", _nothing, act, _judge)


def _saved(folder: Path) -> Any:
    path = folder / kept.FILE
    return json.loads(path.read_text())["videos"] if path.exists() else {}


def _killed(random: random.Random, stock: Path) -> Case:
    """The server is killed between or within changes: every acknowledged one is kept, and it starts again."""
    delay = random.uniform(0.0, 0.25)

    def act() -> int:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with _page(stock, Path("out")) as (server, _):
                os.write(write, f"{server.port} {server.address.partition('token=')[2]}\n".encode())
                time.sleep(60)
            os._exit(0)
        port, token = os.read(read, 200).decode().split()
        threading.Timer(delay, os.kill, (child, signal.SIGKILL)).start()
        acknowledged = 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            while acknowledged < 500:
                status, _ = _ask(int(port), token, "POST", "/videos/0", json.dumps(CHANGE).encode())
                acknowledged += status == 200
        os.waitpid(child, 0)
        labels, lists = _labels(Path("out"), {"a": "a.mp4"})
        lists.write(labels)
        found = len(labels.videos["a"].marks)
        known = acknowledged <= found <= acknowledged + 1
        return _say(([] if known else [f"{acknowledged} acknowledged, {found} kept"]) + ([lists.note] if "could not be"
                    in lists.note or "another program" in lists.note else []))  # fmt: skip

    return Case(f"label: killed after {delay:.3f} s", _nothing, act, _judge)


def _together(random: random.Random, stock: Path) -> Case:
    """Several pages change the same videos at once: nothing that was acknowledged is lost."""
    pages, each = random.randrange(2, 7), random.randrange(2, 6)

    def act() -> int:
        done: list[int] = []
        with _page(stock, Path("out")) as (server, labels):
            token = server.address.partition("token=")[2]

            def work(which: int) -> None:
                for _ in range(each):
                    body = json.dumps(CHANGE).encode()
                    done.append(_ask(server.port, token, "POST", f"/videos/{which % 2}", body)[0])

            threads = [threading.Thread(target=work, args=(which,)) for which in range(pages)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            marks = sum(len(video.marks) for video in labels.videos.values())
        saved = sum(len(video["marks"]) for video in _saved(Path("out")).values())
        fine = done == [200] * (pages * each) and marks == saved == pages * each
        return _say([] if fine else [f"{Counter(done)}, {marks} marks, {saved} saved"])

    return Case(f"label: {pages} pages with {each} changes each", _nothing, act, _judge)


def _edited(random: random.Random, stock: Path) -> Case:
    """labels.json is damaged or edited: it is refused, or means what it says."""
    whole = random.random() < 0.6

    def arrange(folder: Path) -> None:
        labels, _ = _labels(folder / "out", {"a": "a.mp4", "b": "b.mp4"})
        times = SimpleNamespace(times=list(range(80)), end=3.2, seconds=lambda f: f / 25,
                                frames=lambda s, e: (round(25 * s), max(round(25 * e), round(25 * s) + 1)))  # fmt: skip
        labels.change("a", CHANGE, lambda: times)  # type: ignore[arg-type, return-value]
        labels.change("b", {"do": "set", "version": 0, "normal": True, "marks": []}, lambda: times)  # type: ignore[arg-type, return-value]
        path = folder / "out" / kept.FILE
        if whole:
            content = changed_value(json.loads(path.read_text()), random)[1]
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(changed_bytes(path.read_bytes(), random)[1])
        shutil.copy(path, folder / "given.json")

    def act() -> int:
        label_command.threading = SimpleNamespace(Event=_AtOnce)  # type: ignore[assignment]
        return main(["label", str(stock / "a.mp4"), "--out", "out", "--port", "0"])

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        given = (folder / "given.json").read_bytes()
        path = folder / "out" / kept.FILE
        if outcome == "refused":
            return "refused" if path.read_bytes() == given else "loss"
        if outcome != "fine":
            return outcome
        wanted, found = json.loads(given), json.loads(path.read_text())
        videos = {name: video for name, video in wanted["videos"].items() if video["version"]}
        videos.get("a", {}).update(file="a.mp4")  # its file is given
        same = all(found[key] == wanted[key] for key in ("format", "sides")) and found["videos"] == videos
        return "fine" if same and found["classes"][: len(wanted["classes"])] == wanted["classes"] else "silent"

    return Case(f"label: labels.json with {'a value' if whole else 'bytes'} changed", arrange, act, judge)


class _AtOnce(threading.Event):
    """Ends the wait for Ctrl-C at once."""

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            raise KeyboardInterrupt
        return super().wait(timeout)


# Lists and clips.


def _split(random: random.Random, stock: Path) -> Case:
    """Lists with hostile names, one source, one class, repeated rows, and more folds than sources."""
    kind = random.choice(("usual", "one source", "one class", "one row", "repeated", "hostile", "empty", "two labels"))
    rows = [(f"cam{n // 3}_{n:03d}.mp4", random.choice(("Normal", "Fight"))) for n in range(random.randrange(2, 20))]
    rows = {
        "one source": [(f"cam_{n:03d}.mp4", label) for n, (_, label) in enumerate(rows)],
        "one class": [(name, "Fight") for name, _ in rows],
        "one row": rows[:1],
        "repeated": [*rows, *random.choices(rows, k=4)],
        "hostile": [(f"{random.choice(names.NAMES)}_{n:03d}.mp4", label) for n, (_, label) in enumerate(rows)],
        "empty": [],
        "two labels": [*rows, (rows[0][0], "Normal" if rows[0][1] != "Normal" else "Fight")],
    }.get(kind, rows)
    choice = ["--folds", str(random.choice((2, 3, 7, 1000)))]
    if random.random() < 0.5:
        choice = ["--test-fraction", random.choice(("0.01", "0.3", "0.9"))]
    more = random.choice(([], [], ["--source-pattern", random.choice(("(", ".+", "", "x*", "(a+)+$"))],
                          ["--source-column", "source"]))  # fmt: skip

    def arrange(folder: Path) -> None:
        (folder / "all.csv").write_text(csv_text([("path", "label"), *rows]), "utf-8", "surrogateescape")

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        folders = sorted((folder / "out").glob("fold*")) or [folder / "out"]
        if outcome == "refused":
            return "loss" if (folder / "out" / "train.csv").exists() else "refused"
        if outcome != "fine":
            return outcome
        given, tested = Counter(_read(folder / "all.csv")), Counter[tuple[str, ...]]()
        for place in folders:
            train, test = (_read(place / f"{side}.csv") for side in ("train", "test"))
            if Counter(train + test) != given or not train or not test:
                return "silent"
            shared = {source_of(_plain(row[0])) for row in train} & {source_of(_plain(row[0])) for row in test}
            if shared and not more:
                return "silent"
            tested += Counter(test)
        return "silent" if "--folds" in choice and tested != given else "fine"

    line = ["data", "split", "all.csv", "--out", "out", *choice, *more]
    return Case(f"data split {kind} {' '.join(line[5:])}", arrange, _command(line), judge)


def _plain(path: str) -> str:
    return path.removesuffix(".mp4")


def _read(path: Path) -> list[tuple[str, ...]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [tuple(row) for row in list(csv.reader(file))[1:] if row]


def _cut(random: random.Random, stock: Path) -> Case:
    """Lengths that cannot be, broken recordings, clips that exist, a full disk, and a kill in the middle."""
    video = random.choice(("a.mp4", "a.mp4", "broken.mp4", "missing.mp4", "store"))
    length = ["--length", random.choice(("0", "-1", "0.001", "0.5", "1", "1e9", "nan", "1e-320"))]
    if random.random() < 0.3:
        length = ["--segments", random.choice(("0", "1", "2", "1000000"))]
    overlap = random.choice(([], [], ["--overlap", random.choice(("0.2", "1", "100", "-1", "0.999"))]))
    exact = random.choice(([], ["--exact"]))
    spoiled = random.choice(("", "", "exists", "full", "killed"))
    delay = random.uniform(0.0, 0.3)
    line = [
        "data",
        "cut",
        str(stock / video),
        "--out",
        "out",
        *length,
        *overlap,
        *exact,
        "--annotations",
        str(stock / "truth.txt"),
    ]

    def arrange(folder: Path) -> None:
        if spoiled == "exists":
            (folder / "out").mkdir()
            (folder / "out" / "clips.csv").write_text("mine")

    def act() -> int:
        if spoiled == "killed":
            child = os.fork()
            if child == 0:
                os._exit(main(line))
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return main([*line, "--overwrite"])
        return main(line)

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        path = folder / "out" / "clips.csv"
        if spoiled == "exists" and path.read_text() != "mine":
            return "loss"
        if outcome != "fine":
            return outcome
        clips = _read(path)
        return "fine" if clips and all((folder / "out" / row[0]).is_file() or video == "store" for row in clips) else (
            "silent")  # fmt: skip

    limits = Limits(file_bytes=3000) if spoiled == "full" else Limits()
    return Case(f"data cut {video} {' '.join(line[5:])} {spoiled}", arrange, act, judge, limits)


# Normal footage.


def _normal_only(random: random.Random, stock: Path) -> Case:
    """NaN, constant features, one video, anomalies alone, and options that have no meaning."""
    kind = random.choice(("usual", "nan", "inf", "constant", "one video", "anomalies", "huge"))
    more = random.choice(([], [], ["--density", "gaussian"], ["--density", "knn"], ["--modality", "image"],
                          ["--epochs", "3"], ["--model", "rtfm"], ["--seeds", "1", "2"], ["--resume"],
                          ["--standardize", "true"], ["--modality", "all"], ["--nan", "zero"]))  # fmt: skip

    def arrange(folder: Path) -> None:
        shutil.copytree(stock / "store", folder / "store")
        head, *rows = (folder / "store" / "train.csv").read_text().splitlines()
        wanted = [row for row in rows if row.endswith(",Normal") != (kind == "anomalies")]
        (folder / "store" / "train.csv").write_text(
            "\n".join([head, *(wanted[:1] if kind == "one video" else wanted)]) + "\n"
        )
        if kind in ("nan", "inf", "constant", "huge"):
            store = FeatureStore(folder / "store")
            for name in [row.split(".")[0] for row in (wanted if kind == "constant" else wanted[:2])]:
                image, event, _ = store.read(name)
                image, event = image.copy(), event.copy()
                if kind == "constant":
                    image[:], event[:] = 1, 2
                else:
                    image[0, 0, 0] = {"nan": np.nan, "inf": np.inf, "huge": 65504}[kind]
                path = store._paths(name)[0]  # the store itself refuses what is not finite
                with safe_open(path, "np") as file:
                    metadata = file.metadata()
                save_file({"image": image, "event": event}, path, {"source_hash": metadata["source_hash"]})

    line = ["train", "--features", "store", "--out", "out", *NORMAL, *more]
    return Case(f"train --normal-only, {kind}, {' '.join(more)}", arrange, _command(line), _scores_are_numbers)


def _scores_are_numbers(folder: Path, ended: Ended) -> Outcome:
    outcome = judged(folder, ended)
    if outcome != "fine":
        return outcome
    with open(folder / "out" / "scores.csv", newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    json.loads((folder / "out" / "metrics.json").read_text(), parse_constant=lambda word: 1 / 0)
    return "fine" if scores and all(0 <= score <= 1 for score in scores) else "silent"


def _damaged(random: random.Random, stock: Path) -> Case:
    """Bytes or values of the checkpoint of a detector of normal footage are changed."""
    whole = random.random() < 0.5

    def arrange(folder: Path) -> None:
        shutil.copytree(stock / "normal", folder / "it")
        path = folder / "it" / "checkpoint.safetensors"
        if whole:
            tensors, metadata = read_tensors(path)
            key = random.choice(sorted(metadata))
            try:
                metadata[key] = json.dumps(changed_value(json.loads(metadata[key]), random)[1])
            except ValueError:
                metadata[key] = random.choice(("", "x", "[]", "null"))
            write_tensors(path, tensors, metadata)
        else:
            path.write_bytes(changed_bytes(path.read_bytes(), random)[1])

    def act() -> int:
        _without_pages()
        usual = ["--robustness", "false", "--device", "cpu", "--out", "out"]
        return main(["evaluate", "it", *usual])

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = _scores_are_numbers(folder, ended)
        if outcome != "fine" or whole:
            return outcome
        wanted, found = ((place / "scores.csv").read_text() for place in (stock / "normal", folder / "out"))
        return "fine" if _column(wanted) == _column(found) else "silent"

    return Case(f"normal-only: {'a value' if whole else 'bytes'} of the checkpoint changed", arrange, act, judge)


def _column(text: str) -> list[str]:
    return [f"{float(row['score']):.4f}" for row in csv.DictReader(text.splitlines())]


# Runs.

FIELDS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("density_prior", (-1, float("nan"), "x", 1e308, True, None, [1])),
    ("until_loss", (-0.5, float("nan"), "soon", float("inf"), True, [0.1])),
    ("fused", ("yes", 2, None)),
    ("normal_only", ("yes", 1, True)),
    ("density", ("other", 3, None, "gaussian")),
    ("log", ("tensorboard", ["nothing"], 5)),
    ("min_steps", (-1, 1.5, "x", 2**40)),
    ("standardize", (2, "x")),
    ("preset", ("owned", 1, None, "own")),
    ("seeds", ("0-9", [-1], [], [1.5], "9-0", ["a"])),
)


def _fields(random: random.Random, stock: Path) -> Case:
    """Settings of a run that are out of range or of another type, in its config.yaml."""
    name, values = random.choice(FIELDS)
    value = random.choice(values)
    command = random.choice(("evaluate", "train", "resume"))

    def arrange(folder: Path) -> None:
        shutil.copytree(stock / "run", folder / "it")
        path = folder / "it" / "config.yaml"
        content = yaml.safe_load(path.read_text()) | {name: value}
        path.write_text(yaml.safe_dump(content))
        if command == "resume":
            (folder / "it" / "metrics.json").unlink()

    line = {
        "evaluate": ["evaluate", "it", "--robustness", "false", "--device", "cpu", "--out", "out"],
        "train": ["train", "--config", "it/config.yaml", "--out", "out"],
        "resume": ["train", "--config", "it/config.yaml", "--out", "it", "--resume"],
    }[command]
    return Case(f"{command}: {name} {value!r} in config.yaml", arrange, _command(line))


def _export(random: random.Random, stock: Path) -> Case:
    """Runs that are damaged, files that cannot be written, formats that are unknown, and a full disk."""
    form = random.choice(("onnx", "torch-export", "torch-export", "aot", "", "ONNX"))
    out = random.choice(("out.pt2", "out.pt2", "out.onnx", "missing/out.pt2", "folder.pt2", "out", "/dev/full"))
    run = random.choice(("run", "normal", "missing", "damaged", "damaged"))
    full = random.random() < 0.3

    def arrange(folder: Path) -> None:
        (folder / "folder.pt2").mkdir()
        (folder / "out.pt2").write_text("mine")
        shutil.copytree(stock / "run", folder / "damaged")
        path = folder / "damaged" / "checkpoint.safetensors"
        path.write_bytes(changed_bytes(path.read_bytes(), random)[1])

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome == "refused" and (folder / "out.pt2").read_text() != "mine":
            return "loss"
        return outcome

    source = run if run in ("missing", "damaged") else str(stock / run)
    line = ["export", source, "--to", form, "--out", out]
    limits = Limits(file_bytes=1000) if full else Limits()
    return Case(
        f"export {run} --to {form} --out {out}{', full' if full else ''}", arrange, _command(line), judge, limits
    )


def _compare(random: random.Random, stock: Path) -> Case:
    """Damaged runs, runs of both kinds, one run twice, and what is no run."""
    runs = [
        random.choice(("run", "normal", "it", "it", "missing", "store", "model"))
        for _ in range(random.choice((1, 2, 3)))
    ]
    name = random.choice(("metrics.json", "config.yaml", "scores.csv", "log.jsonl"))

    def arrange(folder: Path) -> None:
        shutil.copytree(stock / random.choice(("run", "normal")), folder / "it")
        path = folder / "it" / name
        if not path.exists():
            return
        if name == "metrics.json" and random.random() < 0.6:
            path.write_text(json.dumps(changed_value(json.loads(path.read_text()), random)[1]))
        else:
            path.write_bytes(changed_bytes(path.read_bytes(), random)[1])

    line = ["compare", *(run if run in ("it", "missing") else str(stock / run) for run in runs)]
    return Case(f"compare {' '.join(runs)}; {name} of it changed", arrange, _command(line), _shown)


def _shown(folder: Path, ended: Ended) -> Outcome:
    outcome = judged(folder, ended)
    if outcome == "fine" and (names.files(folder) or "\x1b" in ended.out):
        return "silent"
    return outcome


def _index(random: random.Random, stock: Path) -> Case:
    """Detection on several videos, with hostile names, and on a full disk: the index names what is there."""
    chosen = [name.replace("/", "_").replace("\0", "") for name in random.sample(names.NAMES, 2)]
    full = random.random() < 0.4

    def arrange(folder: Path) -> None:
        (folder / "given").mkdir()
        for name in chosen:
            shutil.copy(stock / "b.mp4", folder / "given" / f"{name}.mp4")

    def judge(folder: Path, ended: Ended) -> Outcome:
        outcome = judged(folder, ended)
        if outcome not in ("fine", "refused"):
            return outcome
        if problems := names.files(folder):
            ended.__dict__["err"] = ended.err + "\n".join(["", *problems])
            return "silent"
        text = (folder / "out" / "index.html").read_text() if (folder / "out" / "index.html").exists() else ""
        return "fine" if outcome == "refused" or text.count(".html") >= 2 else "loss"

    line = ["detect", str(stock / "model"), "given", "--out", "out", "--device", "cpu"]
    limits = Limits(file_bytes=random.choice((2_000, 6_000, 12_000))) if full else Limits()
    what = f"detect {chosen[0]!r} and {chosen[1]!r}{f', files of at most {limits.file_bytes}' if full else ''}"
    return Case(what, arrange, _command(line), judge, limits)


def _words(random: random.Random, stock: Path) -> Case:
    """Words of the overview that are no command and no shell."""
    word = random.choice(("", "x", "fish", "\x1b[31m", "a" * 10_000, "--help", "help", "\udcff", "-1"))
    line = random.choice((["--print-completion", word], ["help", word], ["help", "help", word], [word, "help"],
                          ["data", "help", word], ["help", "data", word], ["--version", word],
                          [f"--print-completion={word}"], ["help", "--print-completion"]))  # fmt: skip
    return Case(f"iefvad {' '.join(one[:20] for one in line)!r}", _nothing, _command(line))


KINDS: tuple[Make, ...] = (
    *(_requests, _split, _normal_only, _damaged, _cut, _compare, _killed, _edited, _export, _fields, _index, _words),
    *(_together, _split, _cut, _edited, _requests, _damaged),
)
