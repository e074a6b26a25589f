"""`iefvad reproduce`: its page, tables and findings."""

from __future__ import annotations

import csv
import re
from functools import partial
from pathlib import Path

import pytest

from iefvad.cli.main import main
from iefvad.reproduce import run
from iefvad.reproduce.class_names import readable
from iefvad.reproduce.grids import Column, Grid
from iefvad.reproduce.outcomes import Summary
from iefvad.reproduce.plan import number
from iefvad.reproduce.published import Published
from tests.helpers.stores import write_store
from tests.reproduce.documents import made_up

TABLES = {
    "methods", "ablation-nu", "ablation-refine-steps", "ablation-eps", "ablation-attenuation", "losses", "classes",
    "shifts", "robustness",
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is trained: documents are made up."""
    monkeypatch.setattr(run, "run_all", made_up)
    return monkeypatch


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_targets_give_page_tables_and_figures(
    quick: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "all", "--seeds", "0..4", "--out", str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == TABLES
    assert {path.suffix for path in (tmp_path / "tables").iterdir()} == {".csv", ".tex"}
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {
        f"{n}.{s}" for n in ("ablations", "classes", "shifts", "robustness") for s in ("svg", "png", "pdf")
    }
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'href="((?:tables|figures)/[^"]*)"', page):
        assert (tmp_path / link).is_file(), link
    assert "seeds 0 to 4" in page
    assert "not one of the paper&#39;s data sets" in page
    assert "paper AUC" not in page  # published figures do not stand beside those of other data
    assert "What the paper has" in page
    assert len(page) < 400_000
    shown = capsys.readouterr().out
    assert "Worse than ν = 8: ν = 2, ν = 4, ν = 6, ν = 10; better: none" in shown
    assert "as here" in shown


def test_published_figures_stand_beside_those_of_their_data_set(
    quick: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.setattr(run, "run_all", partial(made_up, classes=("B1", "B2", "B6", "G")))
    flags = ["--features", "x", "--preset", "xd-violence", "--seeds", "0..2", "--out", str(tmp_path)]
    assert main(["reproduce", "all", *flags]) == 0
    methods = {row["method"]: row for row in rows(tmp_path / "tables" / "methods.csv")}
    student = methods["IEF-VAD (Student-t)"]
    assert "AUC (%)" not in student
    assert float(student["paper AP"]) == 87.63
    assert float(student["AP − paper"]) == pytest.approx(float(student["AP (%)"]) - 87.63, abs=1e-3)
    assert methods["OVVAD"]["AP (%)"] == ""
    assert methods["OVVAD"]["paper AP"] == "66.53"
    classes = {row["class"]: row for row in rows(tmp_path / "tables" / "classes.csv")}
    assert list(classes) == ["Fighting", "Shooting", "Car accident", "Explosion", "all videos, AP"]
    assert float(classes["Car accident"]["paper fusion"]) == 51.70
    damage = rows(tmp_path / "tables" / "robustness.csv")
    assert {row["paper w_img"] for row in damage if row["damaged"] == "image" and row["ratio"] == "50%"} == {"0.4705"}
    assert "UCF-Crime" not in capsys.readouterr().out.split("Tables 3 and 4")[1]


def test_one_seed_has_no_deviation_and_no_test(
    quick: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "table1", "table5", "appendix-h", "--seeds", "0", "--out", str(tmp_path)]) == 0
    table = rows(tmp_path / "tables" / "losses.csv")
    assert "p" not in table[0]
    assert {row["AUC (%), n"] for row in table} == {"1"}
    shown = capsys.readouterr().out
    assert "allow no test" in shown
    assert "nan" not in shown.lower()
    assert "±" not in shown.split("- ")[0].split("Table 5")[0]


def test_classes_without_values_and_failed_trainings_are_named(
    quick: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(trainings: list[run.Training], out: Path, **_: object) -> dict[str, dict[str, object]]:
        documents = made_up(trainings, out, classes=())
        for training in trainings:
            if training.settings.nu == 2:
                documents[training.key] = {"failed": "the loss is not finite"}
        return documents

    quick.setattr(run, "run_all", failing)
    assert main(["reproduce", "table3", "figure2", "--seeds", "0..2", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "ν = 2, seed 1 could not be finished: the loss is not finite" in page
    assert "No class has a value" in page
    assert not (tmp_path / "figures" / "classes.svg").exists()


def test_mistakes_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "table2"])
    assert stopped.value.code == 2
    assert "table2" in capsys.readouterr().err
    assert main(["reproduce", "table5", "--seeds", "x"]) == 2
    assert main(["reproduce", "table5", "--lists", str(tmp_path), "--features", "x"]) == 2
    assert "contains no folds" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reproduce", "table5", "--model", "rtfm"])  # the targets decide


def test_a_small_store_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", train=8, test=4)
    fast = ["--epochs", "1", "--batch", "4", "--heads", "2", "--preset", "synth", "--jobs", "1", "--seeds", "0"]
    command = ["reproduce", "figure3", "appendix-h", "--features", str(store), "--out", str(tmp_path / "out"), *fast]
    assert main(command) == 0
    assert "1 training:" in capsys.readouterr().out
    (document,) = (tmp_path / "out" / "sweep" / "trainings").glob("*.json")
    before = document.stat().st_mtime_ns
    assert main(command) == 0
    assert document.stat().st_mtime_ns == before
    damage = rows(tmp_path / "out" / "tables" / "robustness.csv")
    assert [row["ratio"] for row in damage] == ["0%", *["5%", "10%", "20%", "30%", "50%"] * 2]
    assert (tmp_path / "out" / "figures" / "shifts.svg").is_file()


def test_a_grid_keeps_its_digits_in_csv_and_escapes_latex() -> None:
    grid = Grid("x", ["a_b"], [Column("AUC (%)"), Column("p", 3, least=True)])
    grid.add(["ν & ε"], [Summary({("", 0): 80.123456, ("", 1): 82.0}), 0.0001])
    grid.add(["50%"], [Published(88.67, 0.45), None])
    assert grid.shown()[0] == {"a_b": "ν & ε", "AUC (%)": "81.06 ± 1.33", "p": "<0.001"}
    lines = grid.csv().splitlines()
    assert lines[0] == 'a_b,AUC (%),"AUC (%), deviation","AUC (%), n",p'
    assert lines[1] == "ν & ε,81.0617,1.32692,2,0.0001"
    assert "$\\nu$ \\& $\\varepsilon$ & 81.06 $\\pm$ 1.33 & $<$0.001 \\\\" in grid.latex()
    assert "50\\% & 88.67 $\\pm$ 0.45 & -- \\\\" in grid.latex()


def test_names() -> None:
    assert [number(value) for value in (8.0, 0, 0.5, 1e-4, 1e-8)] == ["8", "0", "0.5", "1e-4", "1e-8"]
    assert readable("B1", "xd-violence") == "Fighting"
    assert readable("B2-G-0", "xd-violence") == "Shooting, Explosion"
    assert readable("G", None) == "G"
