"""Splits that share no source, with both kinds of videos on each side."""

from __future__ import annotations

import csv
import random
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from iefvad.cli.data_split import split_main
from iefvad.data.check.all_checks import check_all
from iefvad.data.check.findings import Finding
from iefvad.data.check.recognise import Kind, Split
from iefvad.data.division import divide
from iefvad.data.lists import read_list
from iefvad.data.sources import joined, similar_pairs, source_of
from iefvad.features.store import FeatureStore, Sidecar
from iefvad.sweep.plan import read_folds
from iefvad.training.settings import TrainConfig
from iefvad.utils.csv_text import csv_text
from iefvad.utils.errors import UserError
from tests.helpers.stores import DIM, SETTINGS


def listed(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("path", "label")) -> Path:
    path.write_text(csv_text([header, *rows]))
    return path


def listed_files(root: Path) -> list[tuple[Kind, Split | None, Path]]:
    return [("list", "train", root / "train.csv"), ("list", "test", root / "test.csv")]


def many(sources: int = 12, clips: int = 4) -> list[tuple[str, str]]:
    return [
        (f"cam{source}_{clip:03d}.mp4", "Normal" if (source + clip) % 2 else ("Fight", "Theft")[source % 2])
        for source in range(sources)
        for clip in range(clips)
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("yard_003", "yard"), ("yard_03", "yard_03"), ("Fighting012_x264", "Fighting012_x264"), ("a/b_0001", "a/b"),
        ("Film.1995__#00-10-55_label_A", "Film.1995"), ("2024-05-01_120000", "2024-05-01"), ("x", "x"),
    ],
)  # fmt: skip
def test_sources_that_names_tell(name, source):
    assert source_of(name) == source


def test_no_source_is_on_both_sides_and_classes_are_even(tmp_path):
    path = listed(tmp_path / "all.csv", many())
    assert split_main([str(path), "--out", str(tmp_path), "--test-fraction", "0.25"]) == 0
    train, test = (read_list(tmp_path / f"{side}.csv") for side in ("train", "test"))
    assert {source_of(entry.name) for entry in train}.isdisjoint(source_of(entry.name) for entry in test)
    assert len(train) == 36 and len(test) == 12 and {(e.path, e.label) for e in train + test} == set(many())
    assert [sum(entry.label == kind for entry in test) for kind in ("Normal", "Fight", "Theft")] == [6, 4, 2] or [
        sum(entry.label == kind for entry in test) for kind in ("Normal", "Fight", "Theft")
    ] == [6, 2, 4]


def test_the_division_depends_on_the_videos_and_the_seed_alone():
    rows = many()
    sources, labels = [source_of(path[:-4]) for path, _ in rows], [label for _, label in rows]
    parts = dict(zip(rows, divide(sources, labels, [0.7, 0.3], seed=3), strict=True))
    shuffled = random.Random(0).sample(rows, len(rows))
    again = divide([source_of(path[:-4]) for path, _ in shuffled], [label for _, label in shuffled], [0.7, 0.3], seed=3)
    assert parts == dict(zip(shuffled, again, strict=True))
    assert any(divide(sources, labels, [0.7, 0.3], seed=seed) != list(parts.values()) for seed in range(8))
    fixed = divide(sources, labels, [0.7, 0.3], seed=3, fixed={"cam0": 1, "cam1": 1})
    assert all(part == 1 for source, part in zip(sources, fixed, strict=True) if source in ("cam0", "cam1"))


def test_folds_are_what_a_sweep_reads(tmp_path, capsys):
    rows = [(*row, str(number // 3), "x") for number, row in enumerate(many(8, 3))]
    path = listed(tmp_path / "all.csv", rows, ("video", "label", "Source", "=more"))
    lines = [f"{name}\t{'Normal' if label == 'Normal' else label}\t{'-1' if label == 'Normal' else '3'}\t{'-1' if label == 'Normal' else '9'}" for name, label, *_ in rows]  # fmt: skip  # noqa: E501
    (tmp_path / "annotations.txt").write_text("\n".join(lines))
    assert split_main([str(path), "--out", str(tmp_path / "folds"), "--folds", "4"]) == 0
    assert "8 sources" in capsys.readouterr().out
    folds = read_folds(str(tmp_path / "folds"), TrainConfig())
    assert [fold.name for fold in folds] == ["fold0", "fold1", "fold2", "fold3"]
    tested: list[str] = []
    for fold in range(4):
        folder = tmp_path / "folds" / f"fold{fold}"
        names = [entry.path for entry in read_list(folder / "test.csv")]
        tested += names
        assert {line.split("\t")[0] for line in (folder / "annotations.txt").read_text().splitlines()} == set(names)
        assert not any(report.problems for report in check_all([str(folder)], [], features=None))
        with (folder / "train.csv").open(newline="") as file:
            assert next(csv.reader(file)) == ["video", "label", "Source", "'=more"], "columns stay, and stay harmless"
    assert sorted(tested) == sorted(row[0] for row in rows), "every video is tested once"


def test_rows_of_crops_stay_together(tmp_path):
    rows = [(f"rgb/{name[:-4]}__{crop}.npy", label) for name, label in many(6, 2) for crop in range(5)]
    assert split_main([str(listed(tmp_path / "l.csv", rows)), "--out", str(tmp_path / "o")]) == 0
    train, test = (read_list(tmp_path / "o" / f"{side}.csv") for side in ("train", "test"))
    assert {entry.name for entry in train}.isdisjoint(entry.name for entry in test)
    assert len(train) + len(test) == len(rows)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([("a_001.mp4", "Normal"), ("a_002.mp4", "Fight")], [], "all normal videos come from one source (a)"),
        ([("a.mp4", "Normal"), ("b.mp4", "Normal")], [], "no abnormal videos"),
        ([("a.mp4", "Normal"), ("b.mp4", "Fight"), ("c.mp4", "Fight")], [], "all normal videos come from one source"),
        (many(2), ["--folds", "3"], "2 sources"),
        (many(), ["--source-pattern", "("], "is not a regular expression"),
        (many(), ["--source-column", "camera"], "has no column 'camera'"),
        (many(), ["--similar", "0.9"], "give the store with --features"),
        (many(), ["--whole"], "--whole needs --features"),
    ],
)
def test_what_cannot_be_split_is_refused_with_a_remedy(tmp_path, capsys, rows, options, message):
    assert split_main([str(listed(tmp_path / "l.csv", rows)), "--out", str(tmp_path / "o"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_pattern_says_what_a_source_is(tmp_path, capsys):
    rows = [
        (f"{day}-{camera}-{n}.mp4", "Normal" if n else "Fight") for day in "mtwt" for camera in "ab" for n in (0, 1)
    ]
    path = listed(tmp_path / "l.csv", rows)
    assert split_main([str(path), "--out", str(tmp_path / "o"), "--source-pattern", "^[a-z]-([ab])"]) == 0
    assert "2 sources" in capsys.readouterr().out
    test = read_list(tmp_path / "o" / "test.csv")
    assert len({entry.name[2] for entry in test}) == 1
    before = (tmp_path / "o" / "test.csv").read_bytes()
    assert split_main([str(path), "--out", str(tmp_path / "o"), "--source-pattern", ".+"]) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "o" / "test.csv").read_bytes() == before
    assert split_main([str(path), "--out", str(tmp_path / "o"), "--source-pattern", ".+", "--overwrite"]) == 0


def pairs_of_places(root: Path) -> list[tuple[str, str]]:
    """Write a store of 12 videos, two of each of six places: one fight and one normal."""
    store = FeatureStore(root, settings=SETTINGS, create=True)
    generator = np.random.default_rng(0)
    scenes = generator.normal(size=(6, DIM))
    rows = []
    for number in range(12):
        features = (scenes[number // 2] + 0.01 * generator.normal(size=(1, 3, DIM))).astype(np.float16)
        side = Sidecar(
            f"v{number}", "s", f"h{number}", 5.0, 50, 3, crops=[0], settings=SETTINGS, event_density=[0.1] * 3
        )
        store.write(f"v{number}", features, features, side)
        rows.append((f"v{number}.mp4", "Normal" if number % 2 else "Fight"))
    return rows


def test_videos_that_look_alike_are_one_source(tmp_path, capsys):
    rows = pairs_of_places(tmp_path / "store")
    path = listed(tmp_path / "l.csv", rows)
    command = [
        str(path),
        "--out",
        str(tmp_path / "o"),
        "--features",
        str(tmp_path / "store"),
        "--similar",
        "0.95",
        "--whole",
    ]
    assert split_main(command) == 0
    assert "12 sources became 6, because 6 pairs" in capsys.readouterr().out
    test = {entry.name for entry in read_list(tmp_path / "o" / "test.csv")}
    assert all((f"v{2 * scene}" in test) == (f"v{2 * scene + 1}" in test) for scene in range(6))
    lines = (tmp_path / "o" / "annotations.txt").read_text().splitlines()
    assert {line.split("\t", 1)[1] for line in lines} == {"Normal\t-1\t-1", "Fight\t0\t50"}


def test_the_check_names_test_videos_that_look_like_training_videos(tmp_path):
    rows = pairs_of_places(tmp_path / "store")

    def finding(test: list[tuple[str, str]]) -> Finding:
        listed(tmp_path / "train.csv", [row for row in rows if row not in test])
        listed(tmp_path / "test.csv", test)
        (report,) = check_all([], listed_files(tmp_path), features=tmp_path / "store")
        (one,) = [finding for finding in report.findings if "cosine" in finding.text]
        assert not report.problems
        return one

    alike = finding([*rows[:3], ("absent.mp4", "Normal")])  # v0 and v1 are all of their place, v3 is trained on
    assert (alike.level, alike.names) == ("note", ("v2",)) and "1 of the 3 test videos" in alike.text
    assert "iefvad data split --similar 0.9" in alike.why
    assert finding(rows[:4]).level == "good"
    assert not [
        f for f in check_all([], listed_files(tmp_path))[0].findings if "cosine" in f.text
    ]  # only with the store


def test_the_folds_of_the_example_share_no_place(tmp_path, monkeypatch):
    """`clips.csv` puts two clips of each place into different folds; --similar makes folds of whole places."""
    rows = [
        {"video": name, "label": label, "source": "" if n < 10 else "9", "fold": str(n % 2)}
        for n, (name, label) in enumerate(pairs_of_places(tmp_path / "store"))
    ]
    (tmp_path / "clips.csv").write_text(csv_text([list(rows[0]), *(list(row.values()) for row in rows)]))
    script = str(Path(__file__).parents[2] / "examples" / "fights_folds.py")
    similar = ["--features", str(tmp_path / "store"), "--similar", "0.9"]
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path), str(tmp_path / "o"), *similar])
    runpy.run_path(script, run_name="__main__")
    with (tmp_path / "o" / "clips.csv").open() as file:
        folds = {row["video"]: row["fold"] for row in csv.DictReader(file)}
    assert len(folds) == 12 and set(folds.values()) == set("0123")
    assert all(folds[f"v{n}.mp4"] == folds[f"v{n + 1}.mp4"] for n in range(0, 12, 2))
    tested = [entry.path for fold in "0123" for entry in read_list(tmp_path / "o" / f"fold{fold}" / "test.csv")]
    assert sorted(tested) == sorted(folds)


def test_joining():
    assert joined(["a", "b", "c", "d"], [(0, 1), (1, 3)]) == ["a", "a", "c", "a"]
    rows = np.array([[1.0, 0], [1, 0.01], [0, 1], [-1, -1]])
    assert similar_pairs(rows, 0.99) == [(0, 1)]
    with pytest.raises(UserError):
        divide(["a", "b"], ["Normal", "x"], [0.5, 0.5])
