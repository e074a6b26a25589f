"""A run of several seeds: what metrics.json says first, and what its page shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iefvad.report.run_folder import RunFolder
from iefvad.scoring.seeds import typical_seed
from tests.helpers.runs import write_run
from tests.report.test_run_page import check


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten seeds."""
    path = tmp_path_factory.mktemp("seeds") / "ten"
    write_run(path, models=["fusion"], seeds=list(range(10)), classes=["a", "b"])
    return path


def test_the_headline_is_a_mean_with_number_and_deviation(ten: Path, tmp_path: Path) -> None:
    fusion = json.loads((ten / "metrics.json").read_text())["fusion"]
    each = fusion["seeds"]["auc"]["values"]
    assert list(fusion)[:3] == ["n", "auc", "auc_sd"] and fusion["n"] == len(each) == 10
    assert fusion["auc"] == pytest.approx(np.mean(each)) and fusion["auc_sd"] == pytest.approx(np.std(each, ddof=1))
    assert all(f"{key}_sd" in fusion for key in ("ap", "ano_auc", "brier", "ece"))
    write_run(tmp_path / "one", models=["fusion"], seeds=[3], classes=["a"])
    one = json.loads((tmp_path / "one" / "metrics.json").read_text())["fusion"]
    assert next(iter(one)) == "auc" and not {"n", "auc_sd", "seeds"} & set(one)


def test_the_page_shows_the_typical_seed(ten: Path) -> None:
    run = RunFolder.open(ten)
    values = run.metrics["fusion"]["seeds"]["auc"]["values"]
    seed = typical_seed(run.metrics["fusion"])
    assert seed is not None and sorted(values).index(values[seed]) in (4, 5)
    _, page = check(ten / "report.html")
    assert f"those of seed {seed}, whose AUC is the nearest to the median" in page.text
    assert typical_seed({"auc": 0.5}) is None
    odd = {"auc": 0.6, "seeds": {"list": [4, 7, 9], "auc": {"values": [0.9, 0.6, 0.1], "mean": 0.5, "std": 0.1}}}
    assert typical_seed(odd) == 7
