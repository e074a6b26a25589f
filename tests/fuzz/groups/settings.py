"""Options of all commands with values that cannot be, alone or with the data; from the command line and from YAML."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from iefvad.cli.data import CheckConfig, TruthConfig, VerifyConfig
from iefvad.cli.encoders import EncodersConfig
from iefvad.cli.main import main
from iefvad.cli.reproduce import ReproduceConfig
from iefvad.cli.sweep import SweepConfig
from iefvad.data.importing import ImportConfig
from iefvad.detection.calibrate import CalibrateConfig
from iefvad.detection.config import DetectConfig
from iefvad.evaluation.evaluate import EvaluateConfig
from iefvad.extraction.config import ExtractConfig
from iefvad.features.npy_folders import ExportConfig
from iefvad.training import results
from iefvad.training.settings import TrainConfig
from iefvad.utils.text import readable
from iefvad.utils.values import LONGEST
from tests.fuzz.case import Case, Ended, Limits, Outcome, judged
from tests.helpers.detecting import small_model, write_video
from tests.helpers.stores import write_store

TRAIN = ["--epochs", "1", "--batch", "4", "--heads", "2", "--layers", "1", "--refine-steps", "1", "--device", "cpu",
         "--preset", "synth", "--modality", "fusion", "--compare", "false"]  # fmt: skip
COMMANDS: dict[str, tuple[type, list[str]]] = {
    "train": (TrainConfig, ["--features", "STOCK/store", "--out", "run", *TRAIN]),
    "evaluate": (EvaluateConfig, ["STOCK/run", "--out", "out", "--robustness", "features", "--draws", "1", "--ratios",
                                  "0.5", "--device", "cpu"]),
    "detect": (DetectConfig, ["STOCK/model", "STOCK/a.mp4", "--out", "out", "--device", "cpu", "--thumbnails", "1"]),
    "calibrate": (CalibrateConfig, ["STOCK/model", "STOCK/a.mp4", "--out", "out", "--device", "cpu"]),
    "extract": (ExtractConfig, ["STOCK/a.mp4", "--out", "out", "--device", "cpu", "--workers", "1", "--quiet"]),
    "sweep": (SweepConfig, ["--features", "STOCK/store", "--out", "out", *TRAIN[:-2], "--vary", "nu=4,8"]),
    "reproduce": (ReproduceConfig, ["table1", "--features", "STOCK/store", "--out", "out", *TRAIN[:-4]]),
    "features import": (ImportConfig, ["STOCK/store", "--out", "out"]),
    "features export": (ExportConfig, ["STOCK/store", "--out", "out"]),
    "data check": (CheckConfig, ["STOCK/store"]),
    "data verify": (VerifyConfig, ["STOCK/store"]),
    "data gt": (TruthConfig, ["--annotations", "STOCK/store/annotations.txt", "--test-list", "STOCK/store/test.csv",
                              "--store", "STOCK/store", "--out", "gt.npy"]),
    "encoders": (EncodersConfig, ["descriptor"]),
}  # fmt: skip
"""Command → its settings, and a command line that works."""

NUMBERS = ("nan", "inf", "-inf", "-1", "-0.5", "1e400", "-1e400", "1000000001", "-2147483649", str(10**30),
           str(10**400), "1e-320", "abc", "", " ", "0x10", "\u0661", "1,5", "true",
           "null", "[1]", "{}", "0")  # fmt: skip
WORDS = ("", " ", "abc", "nan", "-1", "a" * 300, "b" * (LONGEST + 1), "../..", "\x00", "\x1b[31m", "{}", "[]", "null")
PATHS = ("", " ", "missing", "missing/deep", ".", "..", "a" * 300, "folder", "file", "pipe", "/dev/zero", "/dev/null",
         "loop", "\x00", "\udcff", "-")  # fmt: skip
PATH_WORDS = ("features", "list", "annotations", "gt", "folder", "dir", "cache", "out", "weights", "calibration",
              "store", "lengths")  # fmt: skip
LONG = ("min_steps",)
"""Settings that may be large, and then mean long work."""
DATA = 3
"""Every third case changes data."""


def prepare(stock: Path) -> None:
    """Make a store, a run, a model with an encoder that runs, and a video."""
    write_store(stock / "store", train=16, test=4)
    with WithoutPage():
        assert main(["train", *_line("train", stock, out=str(stock / "run"))]) == 0
    small_model().save_pretrained(stock / "model")
    write_video(stock / "a.mp4", frames=40)


def case(number: int, random: random.Random, stock: Path) -> Case:
    """Return a case: an option with an odd value on the command line or in YAML, or data that fit no settings."""
    if number % DATA == 0:
        return _data(number // DATA, random, stock)
    return _option(number - number // DATA - 1, random, stock)


def unchanged(stock: Path) -> list[Case]:
    """Return each command without an odd value, and a training with usual data."""

    def of(command: str) -> Case:
        line = _line(command, stock)
        return Case(
            f"iefvad {command}",
            lambda folder: None,
            lambda: _run(command, line),
            lambda folder, ended: _judged(folder, ended, "", ""),
        )

    training = Case(
        "train with a usual set",
        lambda folder: _write(folder / "store", stock, 8, 4, "both", "both"),
        lambda: _run("train", ["--features", "store", "--out", "run", *TRAIN]),
        _judged_training,
    )
    return [*map(of, COMMANDS), training]


# Options.


def _every() -> list[tuple[str, dataclasses.Field[Any], Any]]:
    found = []
    for command, (config, _) in COMMANDS.items():
        hints = typing.get_type_hints(config)
        found += [(command, item, hints[item.name]) for item in dataclasses.fields(config) if item.name != "explicit"]
    return found


def _option(number: int, random: random.Random, stock: Path) -> Case:
    every = _every()
    command, item, hint = every[(number * 37) % len(every)]  # 37 steps over the commands, and visits all
    flag = f"--{item.name.replace('_', '-')}"
    numeric = "int" in str(hint) or "float" in str(hint)
    path = not numeric and any(word in item.name for word in PATH_WORDS)
    value = random.choice(NUMBERS if numeric else PATHS if path else WORDS)
    if item.name in LONG and value == "1000000001":
        value = "-1"
    line = _line(command, stock)
    if item.name == "out" and "--out" in line:
        place = line.index("--out")
        del line[place : place + 2]
    form = random.choice(("word", "equal", "yaml"))

    def arrange(folder: Path) -> None:
        (folder / "folder").mkdir()
        (folder / "file").write_text("x")
        os.mkfifo(folder / "pipe")
        os.symlink("loop", folder / "loop")
        if form == "yaml":
            try:
                content: Any = yaml.safe_load(value)
            except yaml.YAMLError:
                content = value
            (folder / "settings.yaml").write_text(yaml.safe_dump({item.name: content}), errors="replace")

    more = {"word": [flag, value], "equal": [f"{flag}={value}"], "yaml": ["--config", "settings.yaml"]}[form]
    where = "in a YAML file" if form == "yaml" else "on the command line"
    if form == "yaml":
        more, line = [], [*more, *_without(line, flag)]
    return Case(
        f"iefvad {command}: {flag} {value[:40]!r} {where}",
        arrange,
        lambda: _run(command, [*line, *more]),
        lambda folder, ended: _judged(folder, ended, item.name, value),
        Limits(seconds=60),
    )


def _without(line: list[str], flag: str) -> list[str]:
    """Leave an option out of a command line, so that the one in the file counts."""
    if flag not in line:
        return line
    place = line.index(flag)
    end = place + 1
    while end < len(line) and not line[end].startswith("--"):
        end += 1
    return line[:place] + line[end:]


def _line(command: str, stock: Path, out: str | None = None) -> list[str]:
    line = [word.replace("STOCK", str(stock)) for word in COMMANDS[command][1]]
    if out is not None:
        line[line.index("--out") + 1] = out
    return line


class WithoutPage:
    """Leave the page of a run out: it costs more than all else, and has a group of its own."""

    def __enter__(self) -> None:
        self._before = results.write_run_report
        results.write_run_report = lambda folder, out=None: Path(folder) / "report.html"

    def __exit__(self, *_: object) -> None:
        results.write_run_report = self._before


def _run(command: str, words: Sequence[str]) -> int:
    if command in ("sweep", "reproduce"):
        _train_here()
    with WithoutPage():
        return main([*command.split(), *words])


def _train_here() -> None:
    """Let sweeps train in this process, and not at all: what is tried here is what they say before it."""
    from iefvad.sweep import local

    def nothing(tasks: Any, *_: Any) -> Any:
        print("would train", len(list(tasks)))
        raise SystemExit(0)
        yield

    local.run_local = nothing


def _judged(folder: Path, ended: Ended, name: str, value: str) -> Outcome:
    outcome = judged(folder, ended)
    if outcome == "refused" and not _explained(ended, name, value):
        return "silent"
    if outcome == "fine" and not all(_finite(path) for path in folder.rglob("*.json")):
        return "silent"
    return outcome


def _explained(ended: Ended, name: str, value: str) -> bool:
    """Whether the error names the option, or at least its value."""
    text = ended.err.replace("-", "_")
    shown = readable(value).strip()[:40].replace("-", "_")
    if name in text or not shown or shown in text or repr(value)[1:20] in ended.err:
        return True
    return "settings.yaml" in text or "parsing config" in text or "__config" in text


def _finite(path: Path) -> bool:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        json.loads(path.read_text(), parse_constant=refuse)
    except ValueError:
        return False
    return True


# Data.

SHAPES: tuple[tuple[str, int, int, str, str], ...] = (
    ("one video of each kind", 2, 4, "both", "both"),
    ("two videos of each kind", 4, 4, "both", "both"),
    ("only normal training videos", 8, 4, "normal", "both"),
    ("only abnormal training videos", 8, 4, "abnormal", "both"),
    ("one abnormal training video", 9, 4, "one", "both"),
    ("no abnormal frame in the test", 8, 4, "both", "normal"),
    ("only abnormal test videos", 8, 4, "both", "abnormal"),
    ("one test video", 8, 1, "both", "both"),
    ("no training video", 0, 4, "both", "both"),
    ("no test video", 8, 0, "both", "both"),
    ("no frame truth", 8, 4, "both", "unknown"),
    ("a usual set", 8, 4, "both", "both"),
)


def _data(number: int, random: random.Random, stock: Path) -> Case:
    what, train, test, kinds, truth = SHAPES[number % len(SHAPES)]
    protocol = random.choice(("clean", "paper", "released"))
    more = ["--protocol", protocol]
    for flag, values in {
        "--validation": ("0", "0.01", "0.5", "0.99"),
        "--select": ("validation", "last", "test"),
        "--select-every": ("0", "1", "1000"),
        "--batch": ("1", "64", "1000000"),
        "--mixed": ("true", "false"),
        "--test-crops": ("0", "5", "all"),
        "--max-segments": ("1", "2", "256"),
        "--window": ("0", "1", "100000"),
        "--projection": ("0", "2", "5000"),
        "--min-steps": ("0", "3"),
        "--refit": ("true", "false"),
        "--select-metric": ("auc", "ap"),
        "--members": ("1", "2"),
        "--mask-clips": ("0", "1"),
        "--surprise": (),
        "--model": ("ief-vad", "concat", "sultani", "rtfm"),
        "--nu": ("2", "learned"),
        "--temporal": ("none", "robust-kalman"),
        "--milestones": ("0", "1 1 1"),
        "--cuda-graph": (),
        "--modality": ("image", "event", "all"),
    }.items():
        if random.random() < 0.22:
            more += [flag, *(random.choice(values).split() if values else [])]
    evaluate = random.random() < 0.5
    line = ["--features", "store", "--out", "run", *_set(TRAIN, more)]

    def act() -> int:
        status = _run("train", line)
        return status or (_run("evaluate", ["run", "--robustness", "false", "--device", "cpu"]) if evaluate else 0)

    return Case(
        f"train with {what}: {' '.join(more)}{', then evaluate' if evaluate else ''}",
        lambda folder: _write(folder / "store", stock, train, test, kinds, truth),
        act,
        _judged_training,
        Limits(seconds=90),
    )


def _set(line: list[str], more: list[str]) -> list[str]:
    for word in more:
        if word.startswith("--"):
            line = _without(line, word)
    return [*line, *more]


def _write(root: Path, stock: Path, train: int, test: int, kinds: str, truth: str) -> None:
    """Make the store of a case: that of the stock, with other lists."""
    shutil.copytree(stock / "store", root, symlinks=True)
    rows = {split: (root / f"{split}.csv").read_text().split()[1:] for split in ("train", "test")}
    abnormal = [row for row in rows["train"] if not row.endswith(",Normal")]
    normal = [row for row in rows["train"] if row.endswith(",Normal")]
    chosen = {
        "both": [row for pair in zip(normal, abnormal, strict=True) for row in pair],
        "normal": normal, "abnormal": abnormal, "one": [*normal, abnormal[0]],
    }[kinds][:train] if kinds != "one" else [*normal, abnormal[0]]  # fmt: skip
    (root / "train.csv").write_text("\n".join(["path,label", *chosen]) + "\n")
    tested = [row for row in rows["test"] if truth not in ("normal", "abnormal") or
              (truth == "normal") == row.endswith(",Normal")]  # fmt: skip
    (root / "test.csv").write_text("\n".join(["path,label", *tested[:test]]) + "\n")
    if truth == "unknown":
        (root / "annotations.txt").unlink()


def _judged_training(folder: Path, ended: Ended) -> Outcome:
    outcome = judged(folder, ended)
    if outcome != "fine":
        return outcome
    path = folder / "run" / "metrics.json"
    if not path.is_file() or not _finite(path):
        return "loss"
    document = json.loads(path.read_text())
    for metrics in document.values():
        if isinstance(metrics, dict) and "auc" in metrics and metrics["auc"] is None and not metrics["notes"]:
            return "silent"
    scores = np.genfromtxt(folder / "run" / "scores.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    values = np.atleast_1d(scores["score"]).astype(float)
    return "fine" if all(map(math.isfinite, values)) and values.min() >= 0 and values.max() <= 1 else "silent"
