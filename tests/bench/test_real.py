"""The benchmark of real clips, on a store of made-up features: what it measures, that it goes on, and its test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.end_to_end import _real_statistics as statistics
from bench.end_to_end import _real_ways as ways
from bench.end_to_end import real
from bench.end_to_end._real_statistics import Fold
from iefvad.features.store import FeatureStore, Sidecar
from iefvad.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 8


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """48 clips in 4 folds. A fight shows in the event features, and not in the image features."""
    random = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    store = FeatureStore(tmp_path / "store", settings={"dim": DIM, "crops": [0]}, create=True)
    lines = ["video,label,source,fold"]
    for number in range(48):
        fight, name = number % 2, f"c{number:02}"
        lines.append(f"{name}.mp4,{'Fight' if fight else 'Normal'},{number // 6 if number < 30 else ''},{number // 12}")
        features = random.normal(size=(2, 1, 3, DIM)).astype(np.float16)
        features[1, ..., 0] += 4 * fight
        side = Sidecar(name, f"{name}.mp4", "", 25.0, 50, 3, 2, [0], {}, [0.1 + 0.1 * fight] * 3)
        store.write(name, features[0], features[1], side)
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def arguments(root: Path, *more: str) -> list[str]:
    small = "--heads 2 --projection 4 --refine-steps 1 --max-segments 4 --min-steps 10 --epochs 2 --milestones 1"
    training = f"small=--preset own --fused {small}"
    fixed = ["--encoders", "--store", f"made-up={root / 'store'}", "--training", training, "--seeds", "0", "1"]
    return ["real", str(root / "clips"), *fixed, "--work", str(root / "work"), "--out", str(root), *more]


def test_every_way_is_measured_and_an_interrupted_run_goes_on(clips, capsys, monkeypatch):
    chosen = [
        "--ways",
        "event density",
        "logistic event",
        "logistic both",
        "linear probe",
        "image",
        "event",
        "fusion released",
    ]
    counted: list[str] = []
    train = ways.network

    def network(*values, **named):
        counted.append(values[3])
        if len(counted) == 8:
            raise KeyboardInterrupt
        return train(*values, **named)

    monkeypatch.setattr(ways, "network", network)
    assert main(arguments(clips, *chosen)) == 130
    assert main(arguments(clips, *chosen)) == 0
    assert len(counted) == 1 + 3 * 4 * 2  # the interrupted one again, and none twice
    text = capsys.readouterr().out
    document = json.loads(next(clips.glob("*_real.json")).read_text())
    found = {row["way"]: row for row in document["results"]}
    assert set(found) == set(chosen[1:])
    assert found["event density"]["auc"] == found["event density"]["ap"] == 1.0 and found["linear probe"]["auc"] > 0.9
    assert found["logistic event"]["auc"] > 0.95
    assert (
        found["image"]["auc"] < 0.75 and found["image"]["seeds"] == 2 and set(found["image"]["by_fold"]) == set("0123")
    )
    assert {(row["first"], row["second"]) for row in document["tests"]} == {("event", "logistic event")}
    assert "event − logistic event" in text and str(clips) not in json.dumps(document["each"])
    assert main(arguments(clips, *chosen)) == 0 and len(counted) == 25  # all is there


def test_results_of_other_settings_do_not_count(clips):
    assert main(arguments(clips, "--ways", "event density")) == 0
    results = real.Results.open(clips / "work" / "results.jsonl")
    assert {task.training for task, _ in results.found} == {""}
    with (clips / "work" / "results.jsonl").open("a") as file:
        file.write('{"task": {"feat')  # killed while it wrote
    assert real.Results.open(clips / "work" / "results.jsonl").found == results.found
    assert real._digest("a", None) != real._digest("b", None)


def test_results_of_another_table_do_not_count(clips):
    """Other folds have other results, although encoder, settings, way and number of the fold are the same."""
    assert main(arguments(clips, "--ways", "event density", "logistic event")) == 0
    lines = (clips / "clips" / "clips.csv").read_text().splitlines()
    table = clips / "table.csv"
    table.write_text("\n".join([lines[0], *(f"{line[:-1]}{n // 2 % 4}" for n, line in enumerate(lines[1:]))]) + "\n")
    assert [clip.fold for clip in real.read_clips(clips / "clips", table)][:5] == [0, 0, 1, 1, 2]
    assert main(arguments(clips, "--ways", "event density", "logistic event", "--table", str(table))) == 0
    assert len(real.Results.open(clips / "work" / "results.jsonl").found) == 2 * 4 * 2
    with pytest.raises(UserError, match="--table"):
        real.read_clips(clips / "clips", clips / "absent.csv")


def test_a_fold_trains_on_the_others_alone(clips):
    read = real.read_clips(clips / "clips")
    assert len({clip.source for clip in read}) == 5 + 18  # an empty source is one of its own
    real.write_lists(read, 2, clips / "lists")
    train, test = ((clips / "lists" / f"{name}.csv").read_text().split() for name in ("train", "test"))
    assert len(train) == 1 + 36 and len(test) == 1 + 12 and not set(train[1:]) & set(test[1:])


def test_wrong_clips_are_refused(tmp_path):
    with pytest.raises(UserError, match="give the folder of the clips"):
        real.read_clips(tmp_path)
    (tmp_path / "clips.csv").write_text("video,label\na.mp4,Fight\n")
    with pytest.raises(UserError, match="must have the columns"):
        real.read_clips(tmp_path)


def folds_and_scores(gain: float) -> tuple[dict[int, Fold], dict[tuple[int, int], np.ndarray]]:
    random = np.random.default_rng(1)
    folds, scores = {}, {}
    for fold in range(4):
        labels = np.arange(60) % 2
        folds[fold] = Fold(labels, np.arange(60) // 4)
        for seed in range(3):
            scores[fold, seed] = random.normal(size=60) + gain * labels
    return folds, scores


def test_auc_counts_ties_as_half():
    assert statistics.auc(np.array([0.0, 1.0, 1.0, 2.0]), np.array([0, 0, 1, 1])) == 0.875
    assert statistics.auc(np.zeros(4), np.array([0, 0, 1, 1])) == 0.5


def test_the_paired_test_tells_a_difference_from_none():
    folds, better = folds_and_scores(2.0)
    _, worse = folds_and_scores(0.7)
    found = statistics.compare(folds, better, worse)
    assert found.difference > 0.1 and found.low > 0 and found.p < 0.01 and (found.wins, found.pairs) == (12, 12)
    back = statistics.compare(folds, worse, better)
    assert back.difference == pytest.approx(-found.difference) and back.high < 0
    same = statistics.compare(folds, better, better)
    assert (same.difference, same.low, same.high, same.p, same.wins) == (0, 0, 0, 1, 0)


def test_the_interval_is_wider_where_clips_come_from_few_sources():
    random = np.random.default_rng(0)
    labels = np.arange(64) // 4 % 2  # four clips of each source, all of one kind
    of_source = np.repeat(random.normal(size=16), 4)
    first, second = {(0, 0): labels + of_source}, {(0, 0): labels + np.repeat(random.normal(size=16), 4)}
    few = statistics.compare({0: Fold(labels, np.arange(64) // 4)}, first, second)
    many = statistics.compare({0: Fold(labels, np.arange(64))}, first, second)
    assert few.high - few.low > 1.5 * (many.high - many.low)  # 2 for clips that are alike: the root of four


def test_a_way_without_seeds_is_paired_with_every_seed():
    folds, seeded = folds_and_scores(1.0)
    plain = {(fold, -1): seeded[fold, 0] for fold in folds}
    assert statistics.compare(folds, seeded, plain).pairs == 12
    assert statistics.compare(folds, plain, plain).pairs == 4
