"""Means, deviations and tests of a sweep, against numbers computed by hand."""

from __future__ import annotations

import csv
import io
import math

import pytest

from iefvad.sweep import table
from iefvad.sweep.table import clear_best, holm, paired, summarize, tables_csv, tables_tex, tex


def sample(*numbers):
    return {("", seed): number for seed, number in enumerate(numbers)}


def test_the_paired_test_is_that_of_the_differences():
    difference, p = paired(sample(0.8, 0.7, 0.9), sample(0.7, 0.5, 0.6))
    # Differences 0.1, 0.2, 0.3: t = 0.2 / (0.1 / sqrt 3) with 2 degrees of freedom, whose two-sided p is
    # 1 - t / sqrt(2 + t^2).
    t = 0.2 / (0.1 / math.sqrt(3))
    assert difference == pytest.approx(0.2)
    assert p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    # By seed, not by order; a seed that one of them lacks is left out.
    assert paired({("", 1): 0.5, ("", 0): 0.7}, {("", 0): 0.6, ("", 1): 0.1, ("", 2): 9.0})[0] == pytest.approx(0.25)
    assert paired(sample(0.1, 0.2), sample(0.3, 0.1))[1] is None  # too few
    assert paired(sample(0.5, 0.5, 0.5), sample(0.5, 0.5, 0.5)) == (0.0, None)  # nothing differs
    assert paired({}, sample(0.1)) == (None, None)


def test_holm_multiplies_step_by_step_and_never_falls():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_the_best_is_marked_only_where_it_is_clear():
    low, high = sample(0.60, 0.61, 0.62, 0.61), sample(0.80, 0.82, 0.81, 0.82)
    near = sample(0.80, 0.83, 0.81, 0.81)
    assert clear_best("auc", {"2": low, "4": high}) == "4"
    assert clear_best("brier", {"2": low, "4": high}) == "2"  # low is good
    assert clear_best("auc[Fight]", {"2": low, "4": high}) == "4"
    assert clear_best("auc", {"2": low, "4": high, "8": near}) is None
    assert clear_best("auc", {"2": sample(0.6), "4": sample(0.8)}) is None
    assert clear_best("w_img", {"2": low, "4": high}) is None  # no value of a weight is better


def test_summaries_compare_with_the_base_value():
    samples = {"2": sample(0.8, 0.7, 0.9), "8": sample(0.7, 0.5, 0.6), "16": sample(0.9)}
    found = summarize("nu", "auc", "8", ["2", "8", "16", "32"], samples)
    assert list(found) == ["2", "8", "16"]
    assert found["2"].mean == pytest.approx(0.8) and found["2"].deviation == pytest.approx(0.1) and found["2"].n == 3
    assert found["8"].base and found["8"].difference is None and found["8"].p is None
    assert found["2"].difference == pytest.approx(0.2)
    assert found["2"].p_holm == found["2"].p  # the only test: 16 has one replicate
    assert found["16"].deviation is None and found["16"].difference == pytest.approx(0.2)


def setting(name="nu"):
    samples = {"2_%": sample(0.60, 0.61, 0.62, 0.61), "8": sample(0.80, 0.82, 0.81, 0.82)}
    metrics = {"auc": samples, "brier": samples}
    found = {metric: summarize(name, metric, "8", ["2_%", "8"], each) for metric, each in metrics.items()}
    return table.Setting(name, ["2_%", "8"], "8", metrics, found)


def test_tables_as_csv():
    rows = list(csv.DictReader(io.StringIO(tables_csv([setting()]))))
    assert [(row["value"], row["base"], row["metric"], row["best"]) for row in rows] == [
        ("2_%", "false", "auc", "false"),
        ("8", "true", "auc", "true"),
        ("2_%", "false", "brier", "true"),
        ("8", "true", "brier", "false"),
    ]
    assert float(rows[0]["mean"]) == pytest.approx(0.61) and rows[1]["p_holm"] == ""


def test_tables_as_latex():
    text = tables_tex([setting("lambda_reg & co")], "data_set, 50%, {x}~^\\.")
    assert r"\begin{tabular}{lrr}" in text and text.count("\\toprule") == text.count("\\bottomrule") == 1
    assert r"lambda\_reg \& co & AUC & Brier \\" in text
    assert r"2\_\% & $0.6100 \pm 0.0082^{*}$ & $\mathbf{0.6100 \pm 0.0082^{*}}$ \\" in text
    assert r"8 (base) & $\mathbf{0.8125 \pm 0.0096}$ & $0.8125 \pm 0.0096$ \\" in text
    assert r"data\_set, 50\%, \{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}." in text
    # It compiles: each environment is closed, braces and dollars are paired.
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    plain = text.replace(r"\{", "").replace(r"\}", "").replace(r"\$", "")
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
    assert r"\label{tab:lambda-reg-co}" in text
    assert tex("a±b<c>") == r"a$\pm$b\textless{}c\textgreater{}"
    assert tex("a\nb\x1b") == r"a\%0Ab\%1B"
