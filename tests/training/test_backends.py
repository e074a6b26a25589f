"""The fused kernels are the default, and the log names the backend that serves each operator."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from iefvad.cli.train import main, parse_train
from iefvad.training.settings import load_config
from tests.helpers.stores import training_flags, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("backends") / "store", train=8, test=4)


def test_fused_is_the_default_and_both_words_stay():
    assert parse_train([]).fused and parse_train(["--fused"]).fused and not parse_train(["--no-fused"]).fused


def test_settings_of_earlier_runs_keep_their_operators(tmp_path):
    path = tmp_path / "config.yaml"
    for fused in (True, False):
        path.write_text(yaml.safe_dump({"fused": fused}))
        assert parse_train(["--config", str(path)]).fused is fused
    assert parse_train(["--config", str(path), "--fused"]).fused


CASES = {
    "default": [],
    "eager": ["--no-fused"],
    "bfloat16": ["--precision", "bfloat16"],
    "image": ["--modality", "image"],
    "low rank": ["--covariance-rank", "2"],
    "released": ["--method", "released"],
    "gated, no refinement": ["--fusion", "gated", "--refine-steps", "0"],
    "guided, no filter": ["--refinement", "guided", "--temporal", "none"],
    "baseline": ["--model", "concat"],
}


@pytest.mark.parametrize("case", CASES)
def test_the_log_and_the_report_name_what_serves(case, store, tmp_path, capsys, monkeypatch):
    """The line is compared with what the operators choose while the network trains."""
    from ief_kernels.dispatch import choose

    chosen = set()

    def noted(op, backend, device, dtype, **facts):
        import torch

        choice = choose(op, backend, device, dtype, **facts)
        if torch.is_grad_enabled():
            chosen.add((op, choice.backend, str(dtype)))
        return choice

    for name in ("kalman_scan", "low_rank_fusion", "precision_fusion", "refinement"):
        monkeypatch.setattr(sys.modules[f"ief_kernels.{name}"], "choose", noted)  # functions have these names too
    out = tmp_path / "run"
    flags = training_flags(store, out, "--epochs", "1", "--compare", "false", *CASES[case])
    if case == "baseline":
        flags = [word for word, last in zip(flags, ["", *flags], strict=False) if "--refine-steps" not in (word, last)]
        flags.remove("--compare")
        flags.remove("false")
    assert main(flags) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("operators: ")]
    said = line.removeprefix("operators: ")
    assert json.loads((out / "report.json").read_text())["made"]["train"]["operators"] == said
    if case == "baseline":
        assert said == "plain PyTorch" and not chosen
        return
    words, _, place = said.partition(" (")
    dtype = f"torch.{place.rstrip(')').split(', ')[1]}"
    if "--refine-steps" in CASES[case]:  # the operator is called with no step, and does nothing
        chosen.discard(("refine", "native", dtype))
    assert {(*word.split(), dtype) for word in words.split(", ")} == chosen
    assert ("reference" in words) == (case == "eager")
    assert load_config(out / "config.yaml").fused == (case != "eager")
