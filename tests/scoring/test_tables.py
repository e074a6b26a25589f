"""Tables of metrics as plain text."""

from __future__ import annotations

from iefvad.scoring.metrics import evaluate
from iefvad.scoring.tables import class_rows, headline_rows, table
from tests.scoring.test_metrics import random_videos, video


def test_table_aligns_and_leaves_out_what_is_never_defined():
    found = {"fusion": evaluate(random_videos(2)), "density": evaluate([video(scores=[0.1])])}
    text = table(headline_rows(found))
    lines = text.splitlines()
    assert lines[0].split() == ["model", "AUC", "AP", "Ano-AUC", "Brier", "ECE", "w_img", "w_evt"]
    assert lines[2].startswith("fusion ") and f"{found['fusion']['auc']:.4f}" in lines[2]
    assert lines[3].split() == ["density", *["-"] * 7]
    assert len({len(line) for line in lines}) == 1
    classes = table(class_rows(found))
    assert classes.splitlines()[0].split() == ["class", "videos", "fusion"]
    assert table([{"a": None, "b": 1}]).split() == ["b", "-", "1"]
