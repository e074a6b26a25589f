"""Tables in a terminal: columns that do not fit follow below."""

from __future__ import annotations

from iefvad.scoring.robustness import robustness_table
from iefvad.scoring.seeds import Spread
from iefvad.scoring.tables import table

ROWS = [{"run": "a", "model": name} | {f"metric {i}": Spread(0.5, 0.1) for i in range(7)} for name in ("fusion", "x")]


def test_a_table_is_no_wider_than_the_terminal_and_loses_nothing():
    text = table(ROWS, width=80)
    assert max(map(len, text.splitlines())) <= 80
    heads = [line.split() for line in text.splitlines() if line.startswith("run")]
    assert len(heads) > 1 and all(head[:2] == ["run", "model"] for head in heads)
    assert [word for head in heads for word in head if word.isdigit()] == list("0123456")
    assert text.count("0.5000 ± 0.1000") == 14


def test_a_table_in_a_pipe_is_whole():
    assert table(ROWS) == table(ROWS, width=0) and len(table(ROWS).splitlines()) == 4
    assert table([{"model": "a" * 100, "AUC": 0.5}], width=80).count("\n") == 2  # nothing to divide
    assert table([{"model": "a", "kind": "b", "more": "c"}], width=12).count("\n") == 6  # text alone
    assert table([]) == "\n"


def test_robustness_is_named_as_in_the_other_tables():
    assert list(robustness_table([{"masked": "image", "ratio": 0.05, "auc": 0.9}])[0])[:5] == [
        "damaged",
        "fraction",
        "AUC",
        "AP",
        "Ano-AUC",
    ]
