"""`python -m bench real [CLIPS]`: trains and tests on real surveillance clips, over folds that share no source video.

CLIPS is the folder of the Surveillance Camera Fight data set with `clips.csv` (video, label, source, fold). For each
encoder the clips are extracted once. Then each fold is tested by what was trained on the other folds:

    event density      mean event density of a clip, nothing trained
    logistic image     logistic regression on the mean features of a clip, C chosen within the training folds;
    logistic event     likewise
    logistic both      likewise
    linear probe       the probe that `iefvad train --preset own` compares itself with
    fusion             the network, method `ief`; `image` and `event` are its single streams
    fusion paper       the network, method `paper`
    fusion released    the network, method `released`

Clips of other sources may show the same place. `--table` takes other folds, such as those without a common place that
`examples/fights_folds.py --similar` makes.

Every result is kept in the work folder when it is there, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from bench import environment
from bench.command import FORMAT, RESULTS
from bench.end_to_end import _real_statistics as statistics
from bench.end_to_end import _real_ways as ways
from bench.end_to_end._real_statistics import Fold
from bench.end_to_end._records import heading
from bench.tables import text_table
from iefvad.cli.train import parse_train
from iefvad.data.datasets import load_store
from iefvad.extraction.config import ExtractConfig
from iefvad.extraction.extract import extract
from iefvad.features.store import FeatureStore
from iefvad.training.settings import Settings
from iefvad.utils.errors import UserError
from iefvad.utils.files import write_text

ENCODERS = ("descriptor", "efficientnet-lite0")
WORK = Path("build/real")
COMPARED = (("fusion", "event"), ("fusion", "logistic both"), ("fusion", "logistic event"), ("event", "logistic event"))
"""Pairs of ways that the paired test compares."""


@dataclass(frozen=True)
class Clip:
    """One clip of the data set: file, label, number of its source video, fold."""

    file: Path
    label: str
    source: int
    fold: int


@dataclass(frozen=True)
class Task:
    """One result: a way on the features of an encoder, tested on a fold. Ways that draw nothing have the seed −1."""

    features: str
    training: str
    way: str
    fold: int
    seed: int


@dataclass
class Results:
    """Results as they come, one JSON object per line of a file. A line counts for the same settings alone."""

    path: Path
    found: dict[tuple[Task, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Results:
        """Read what earlier runs left. A last line that was cut off is left out."""
        results = cls(path)
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                results.found[Task(**row["task"]), row["settings"]] = row
            except (ValueError, KeyError, TypeError):
                continue
        return results

    def add(self, task: Task, settings: str, scored: ways.Scored, seconds: float) -> None:
        """Append a result."""
        row = {"task": dataclasses.asdict(task), "settings": settings, **dataclasses.asdict(scored)}
        row["seconds"] = round(seconds, 2)
        self.found[task, settings] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench real",
        description="AUC of fusion, single streams, methods and linear probes on real surveillance clips, over folds"
        " that share no source video.",
        epilog="Ways: " + ", ".join(ways.WAYS) + ".",
    )
    add = parser.add_argument
    add("clips", nargs="?", type=Path, help="folder with clips.csv (default: fights in $IEFVAD_TEST_DATA)")
    add(
        "--table",
        type=Path,
        metavar="FILE",
        help="other sources and folds, in the form of clips.csv (examples/fights_folds.py --similar writes them)",
    )
    add("--encoders", nargs="*", default=list(ENCODERS), metavar="NAME", help=f"image models ({', '.join(ENCODERS)})")
    add(
        "--store",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="feature stores of the clips that were extracted before, with a name for the table",
    )
    add(
        "--training",
        nargs="+",
        default=["own=--preset own --fused"],
        metavar="NAME=FLAGS",
        help="settings of `iefvad train` for the networks, with a name (default: own=--preset own --fused)",
    )
    add("--ways", nargs="+", default=list(ways.WAYS), choices=ways.WAYS, metavar="NAME", help="only these ways")
    add("--folds", nargs="+", type=int, metavar="N", help="only these folds")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="seeds of the networks (default: 0 1 2)")
    add("--work", type=Path, default=WORK, metavar="DIR", help="features and results so far (default: build/real)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="folder of the JSON file (default: bench/results)")
    add("--json", action="store_true", help="print the JSON instead of the tables")
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse(argv)
    begin = time.perf_counter()
    clips = read_clips(options.clips or _default_clips(), options.table)
    trainings = {name: parse_train(shlex.split(flags)) for name, flags in _named(options.training, "--training")}
    about = environment.describe(torch.device("cpu"))
    if not options.json:
        print(heading(about) + "\n", flush=True)
    options.work.mkdir(parents=True, exist_ok=True)
    stores = {name: _extracted(clips, name, options.work) for name in options.encoders}
    stores |= {name: Path(folder) for name, folder in _named(options.store, "--store")}
    results = Results.open(options.work / "results.jsonl")
    rows: list[dict[str, Any]] = []
    for name, store in stores.items():
        for training, settings in trainings.items():
            rows += measure(clips, name, store, training, settings, options, results)
    folds = {clip.fold: _fold(clips, clip.fold) for clip in sorted(clips, key=lambda clip: clip.fold)}
    table, tests = summary(rows), paired(rows, folds)
    content = {
        "format": FORMAT,
        "benchmark": "real",
        **about,
        "seconds": round(time.perf_counter() - begin, 1),
        "clips": len(clips),
        "trainings": {name: dataclasses.asdict(settings) for name, settings in trainings.items()},
        "results": table,
        "tests": tests,
        "each": [{key: value for key, value in row.items() if key not in ("clips", "settings")} for row in rows],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{environment.key(about)}_real.json"
    write_text(path, text + "\n")
    print(
        text if options.json else f"{result_table(table)}\n\n{comparison_table(tests)}\n\nWritten to {path}", flush=True
    )
    return 0


def read_clips(folder: Path, table: Path | None = None) -> list[Clip]:
    """Read clips.csv, or the table that is given. An empty source is a source of its own.

    Raises:
        UserError: the file is missing, or has other columns.
    """
    path = table or folder / "clips.csv"
    if not path.is_file():
        what = (
            "give the folder of the clips, with clips.csv" if table is None else "--table is such a file as clips.csv"
        )
        raise UserError(f"there is no {path}: {what} (video,label,source,fold).")
    numbers: dict[str, int] = {}
    clips = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                name, label, source, fold = (row[key] for key in ("video", "label", "source", "fold"))
                number = numbers.setdefault(source or f"alone {name}", len(numbers))
                clips.append(Clip(folder / name, label, number, int(fold)))
            except (KeyError, ValueError):
                raise UserError(f"{path} must have the columns video, label, source and fold.") from None
    return clips


def write_lists(clips: Sequence[Clip], fold: int, folder: Path) -> None:
    """Write train.csv, test.csv and annotations.txt of a fold: a clip as a whole is a fight or not."""
    lists: dict[str, list[str]] = {"train": ["path,label"], "test": ["path,label"]}
    annotations = []
    for clip in clips:
        lists["test" if clip.fold == fold else "train"].append(f"{clip.file.name},{clip.label}")
        if clip.fold == fold:
            fight = clip.label != "Normal"
            interval = "0  1000000" if fight else "-1  -1"  # clipped to the video
            annotations.append(f"{clip.file.name}  {clip.label}  {interval}  -1  -1")
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        write_text(folder / f"{name}.csv", "\n".join(lines) + "\n")
    write_text(folder / "annotations.txt", "\n".join(annotations) + "\n")


def measure(
    clips: Sequence[Clip],
    features: str,
    store: Path,
    training: str,
    settings: Settings,
    options: argparse.Namespace,
    results: Results,
) -> list[dict[str, Any]]:
    """Return the results of all ways on one feature store, of earlier runs or measured now."""
    stored = json.dumps(FeatureStore(store).settings, sort_keys=True)
    fold_of = {clip.file.stem: clip.fold for clip in clips}
    rows = []
    for fold in options.folds or sorted({clip.fold for clip in clips}):
        lists = options.work / "lists" / f"fold{fold}"
        write_lists(clips, fold, lists)
        benchmark = load_store(
            store,
            train_list=lists / "train.csv",
            test_list=lists / "test.csv",
            annotations=lists / "annotations.txt",
        )
        division = sorted((clip.file.name, clip.label, clip.fold == fold) for clip in clips)
        for task in tasks(features, training, fold, options):
            network = task.way in ways.NETWORKS
            # A regression chooses its strength by the folds of the training clips.
            folds = fold_of if task.way in ways.PROBES else None
            key = _digest([stored, division, folds], settings if network else None)
            if (task, key) not in results.found:
                begin = time.perf_counter()
                if task.way == "event density":
                    scored = ways.density(benchmark.test)
                elif task.way == "linear probe":
                    scored = ways.probe(benchmark.train, benchmark.test)
                elif task.way in ways.PROBES:
                    groups = [fold_of[video.name] for video in benchmark.train]
                    scored = ways.regression(benchmark.train, benchmark.test, groups, ways.PROBES[task.way])
                else:
                    scored = ways.network(benchmark.train, benchmark.test, settings, task.way, task.seed, benchmark.dim)
                results.add(task, key, scored, time.perf_counter() - begin)
                _say(f"{features}, {training}: {task.way}, fold {fold}, seed {task.seed}")
            row = results.found[task, key]
            kinds = ways.labels(benchmark.test)
            auc = statistics.auc(np.array(row["clips"]), kinds)
            rows.append({**row, "auc": auc, "ap": float(average_precision_score(kinds, row["clips"]))})
    return rows


def tasks(features: str, training: str, fold: int, options: argparse.Namespace) -> Iterator[Task]:
    """Yield what has to be measured on one fold. Ways without a network are the same for all trainings."""
    for way in options.ways:
        if way in ways.NETWORKS:
            for seed in options.seeds:
                yield Task(features, training, way, fold, seed)
        else:
            yield Task(features, "", way, fold, -1)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return per way the mean AUC and AP and their deviations over folds and over seeds."""
    groups: dict[tuple[str, str, str], dict[tuple[int, int], dict[str, Any]]] = {}
    for row in rows:
        task = Task(**row["task"])
        groups.setdefault((task.features, task.training, task.way), {})[task.fold, task.seed] = row
    table = []
    for (features, training, way), found in groups.items():
        entry: dict[str, Any] = {"features": features, "training": training, "way": way}
        for key in ("auc", "ap", "frame_auc"):
            by_fold: dict[int, list[float]] = {}
            by_seed: dict[int, list[float]] = {}
            for (fold, seed), row in found.items():
                by_fold.setdefault(fold, []).append(row[key])
                by_seed.setdefault(seed, []).append(row[key])
            entry[key], entry[f"{key}_folds"] = statistics.spread([float(np.mean(v)) for v in by_fold.values()])
            entry[f"{key}_seeds"] = statistics.spread([float(np.mean(v)) for v in by_seed.values()])[1]
            if key == "auc":
                entry["by_fold"] = {str(fold): float(np.mean(values)) for fold, values in by_fold.items()}
        entry["seeds"] = len(by_seed)
        entry["seconds"] = float(np.mean([row["seconds"] for row in found.values()]))
        weights = [row["about"]["w_img"] for row in found.values() if "w_img" in row["about"]]
        entry["w_img"] = float(np.mean(weights)) if weights else None
        table.append(entry)
    return table


def paired(rows: Sequence[dict[str, Any]], folds: dict[int, Fold]) -> list[dict[str, Any]]:
    """Return the paired tests of `COMPARED`, for each encoder and training."""
    scores: dict[tuple[str, str, str], dict[tuple[int, int], statistics.Array]] = {}
    for row in rows:
        task = Task(**row["task"])
        scores.setdefault((task.features, task.training, task.way), {})[task.fold, task.seed] = np.array(row["clips"])
    tests = []
    for features, training in dict.fromkeys((key[0], key[1]) for key in scores if key[1]):
        for first, second in COMPARED:
            one = scores.get((features, training, first))
            other = scores.get((features, training, second)) or scores.get((features, "", second))
            if one is None or other is None:
                continue
            tested = {fold: folds[fold] for fold, _ in one}
            found = dataclasses.asdict(statistics.compare(tested, one, other))
            tests.append({"features": features, "training": training, "first": first, "second": second, **found})
    return tests


def result_table(table: Sequence[dict[str, Any]]) -> str:
    """The AUCs and APs as text."""
    lines = []
    for row in table:
        folds = " ".join(f"{value:.3f}" for value in row["by_fold"].values())
        seeds = f"{row['auc_seeds']:.3f}" if row["seeds"] > 1 else ""
        weight = "" if row["w_img"] is None else f"{row['w_img']:.2f}"
        auc = f"{row['auc']:.3f} ± {row['auc_folds']:.3f}"
        ap = f"{row['ap']:.3f} ± {row['ap_folds']:.3f}"
        cells = (row["features"], row["training"], row["way"], auc, seeds, folds, ap, f"{row['frame_auc']:.3f}", weight)
        lines.append((*cells, f"{row['seconds']:.1f}"))
    header = (
        "features",
        "training",
        "way",
        "AUC ± folds",
        "± seeds",
        "each fold",
        "AP ± folds",
        "frame AUC",
        "w_img",
        "s",
    )
    return text_table(header, lines, left=3)


def comparison_table(tests: Sequence[dict[str, Any]]) -> str:
    """The paired tests as text."""
    lines = []
    for row in tests:
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        what = f"{row['first']} − {row['second']}"
        cells = (row["features"], row["training"], what, f"{row['difference']:+.3f}", interval, f"{row['p']:.3f}")
        lines.append((*cells, f"{row['wins']} of {row['pairs']}"))
    return text_table(("features", "training", "difference", "AUC", "95%, sources", "p", "higher in"), lines, left=3)


def _fold(clips: Sequence[Clip], fold: int) -> Fold:
    chosen = [clip for clip in clips if clip.fold == fold]
    kinds = np.array([clip.label != "Normal" for clip in chosen], np.int64)
    return Fold(kinds, np.array([clip.source for clip in chosen], np.int64))


def _extracted(clips: Sequence[Clip], encoder: str, work: Path) -> Path:
    store = work / f"features-{encoder}"
    report = extract([clip.file for clip in clips], store, ExtractConfig(image_model=encoder, quiet=True))
    if report.failed:
        raise UserError(f"{len(report.failed)} of {len(clips)} clips cannot be read: see {store / 'failed.csv'}.")
    _say(f"{encoder}: features of {len(clips)} clips in {store}")
    return store


def _default_clips() -> Path:
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("IEFVAD_TEST_DATA", default)) / "fights"


def _named(values: Sequence[str], flag: str) -> list[tuple[str, str]]:
    pairs = [value.partition("=") for value in values]
    for name, equal, value in pairs:
        if not (name and equal and value):
            raise UserError(f"{flag} takes NAME=VALUE, not {name + equal + value!r}.")
    return [(name, value) for name, _, value in pairs]


def _digest(stored: Any, settings: Settings | None) -> str:
    free = ("seeds", "out", "resume", "features", "train_list", "test_list", "annotations", "gt", "cache", "modality")
    values = {} if settings is None else dataclasses.asdict(settings)
    text = json.dumps([stored, {key: value for key, value in values.items() if key not in free}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
