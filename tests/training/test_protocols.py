"""Protocols: what each does, flags that win in every row, and results that say what was done."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from iefvad.checkpoints.hub import load_model
from iefvad.cli.evaluate import main as evaluate
from iefvad.cli.train import main, parse_train
from iefvad.data.batches import Clips, split_validation
from iefvad.model.config import ModelConfig
from iefvad.model.network import Network
from iefvad.scoring.robustness import over_seeds, robustness
from iefvad.training.presets import PROTOCOLS
from iefvad.training.protocols import deviations, protocol_table
from iefvad.training.run import Run
from iefvad.training.settings import TrainConfig, load_config, resolve
from iefvad.training.sources import load_benchmark
from iefvad.training.trainer import Trainer
from iefvad.utils.errors import UserError
from tests.helpers.stores import training_flags, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


def rows_of(config) -> dict[str, object]:
    run = Run(Path(), config)
    return {variant.name: variant.apply(config) for variant in run.variants}


@pytest.mark.parametrize("preset", ["ucf-crime", "xd-violence", "shanghaitech"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_alone_has_no_deviations(preset, protocol):
    config = resolve(TrainConfig(preset=preset, protocol=protocol))
    assert deviations(config) == [] and len(protocol_table(config)) > 20


def test_what_the_protocols_fix():
    clean, paper, released = (resolve(TrainConfig(preset="ucf-crime", protocol=name)) for name in PROTOCOLS)
    assert (clean.method, clean.mil, clean.validation, clean.select, clean.refit) == (
        "ief",
        "topk",
        0.2,
        "validation",
        True,
    )
    assert (paper.method, paper.process_noise, paper.mil, paper.validation, paper.select) == (
        "paper",
        0.0,
        "segment",
        0.0,
        "last",
    )
    assert (released.method, released.temporal, released.lambda_cos) == ("released", "none", 1.0)
    assert (released.validation, released.select, released.select_every, released.reload_best) == (
        0,
        "test",
        1280,
        True,
    )
    assert (released.robustness, released.test_crops, released.refit) == ("segments", "5", False)
    xd = resolve(TrainConfig(preset="xd-violence", protocol="released"))
    assert (xd.select_metric, xd.select_every) == ("ap", 512) and released.select_metric == "auc"


def test_flags_win_and_are_listed_as_deviations():
    flags = ["--preset", "ucf-crime", "--protocol", "released", "--mil", "segment", "--temporal", "kalman"]
    config = parse_train([*flags, "--validation", "0.1"])
    assert (config.mil, config.temporal, config.validation, config.select) == ("segment", "kalman", 0.1, "test")
    rows = {row["setting"]: (row["protocol"], row["this run"]) for row in deviations(config)}
    assert rows["--mil"] == ("topk", "segment") and rows["--validation"] == ("0.0", "0.1")
    assert set(rows) == {"--mil", "--temporal", "--validation", "test chunks"}
    # The preset of the embedded benchmark leaves out what takes time.
    assert [row["setting"] for row in deviations(resolve(TrainConfig()))] == ["--refit"]


def test_flags_win_in_the_rows_of_a_comparison():
    rows = rows_of(parse_train(["--nu", "2", "--refine-steps", "0"]))
    assert {(row.nu, row.refine_steps) for row in rows.values()} == {(2.0, 0)} and "fusion (paper)" in rows
    assert (rows["fusion (paper)"].process_noise, rows["fusion (released)"].temporal) == (0.0, "none")


def test_rows_of_a_comparison_have_the_weights_of_their_own_method():
    rows = rows_of(parse_train(["--method", "released", "--compare", "true"]))
    assert rows["fusion"].lambda_cos == 1.0
    assert {rows[f"fusion ({name})"].lambda_cos for name in ("ief", "paper")} == {0.5}
    assert rows_of(parse_train(["--lambda-cos", "0.7"]))["fusion (released)"].lambda_cos == 0.7


def test_a_row_that_flags_make_the_same_as_the_first_is_left_out():
    assert set(rows_of(parse_train(["--process-noise", "0.2", "--modality", "fusion"]))) == {
        "fusion",
        "fusion (released)",
    }


def test_the_configuration_file_keeps_what_was_chosen(tmp_path):
    config = parse_train(["--nu", "8", "--process-noise", "learned", "--out", str(tmp_path)])
    Run.create(config)
    again = parse_train(["--config", str(tmp_path / "config.yaml"), "--lambda-cos", "0.7"])
    assert set(config.explicit) == {"nu", "process_noise"}
    assert set(again.explicit) == {"nu", "process_noise", "lambda_cos"}
    assert load_config(tmp_path / "config.yaml").explicit == config.explicit


def test_a_configuration_of_an_earlier_version_means_what_it_did(tmp_path):
    later = (
        "protocol",
        "fixed_noise",
        "select_metric",
        "select_every",
        "reload_best",
        "refit",
        "robustness",
        "explicit",
    )
    config = resolve(TrainConfig(preset="ucf-crime", out=str(tmp_path), nu=4.0))
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in later}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    old = load_config(tmp_path / "config.yaml")
    assert (old.protocol, old.refit, old.select_every, old.fixed_noise) == ("clean", False, 0, None)
    run = Run.create(parse_train(["--config", str(tmp_path / "config.yaml"), "--resume"]))
    assert not run.config.refit
    with pytest.raises(UserError, match="refit was False, now True"):
        Run.create(parse_train(["--config", str(tmp_path / "config.yaml"), "--resume", "--refit", "true"]))


def test_refit_without_a_choice_on_held_out_videos_is_refused():
    with pytest.raises(UserError, match="leave --select last out"):
        resolve(TrainConfig(select="last", refit=True))
    assert not resolve(TrainConfig(preset="ucf-crime", select="last")).refit


def test_clean_trains_again_on_all_videos_up_to_the_chosen_epoch(store, tmp_path, monkeypatch, capsys):
    flags = training_flags(store, tmp_path / "run", "--refit", "true", "--fused")
    assert main(flags) == 0
    run = json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]
    # 32 videos, 20% of each kind of 16 held out; the kept network was trained on all.
    assert (run["train_videos"], run["held_out_videos"], run["protocol"]) == (32, 6, "clean")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    refit = [row for row in log if row.get("phase") == "refit"]
    chosen = max((row for row in log if "phase" not in row), key=lambda row: (row["val_auc"], -row["val_loss"]))
    assert len(log) - len(refit) == 4 and [row["epoch"] for row in refit] == list(range(1, chosen["epoch"] + 1))
    model = load_model(tmp_path / "run" / "checkpoint.safetensors")
    assert model.provenance["train_videos"] == 32 and 0 < model.provenance["threshold"] < 1
    assert model.provenance["epoch"] == chosen["epoch"]
    assert "deviations from the protocol" in capsys.readouterr().out  # those of the flags

    original = Trainer._train_epoch

    def interrupted(self, *arguments):
        if self.refit:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    assert main([*flags, "--out", str(tmp_path / "parts")]) == 130
    monkeypatch.setattr(Trainer, "_train_epoch", original)
    assert main(["--config", str(tmp_path / "parts" / "config.yaml"), "--resume"]) == 0
    for name in ("checkpoint.safetensors", "scores.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_without_a_refit_the_held_out_videos_are_not_counted_as_trained_on(store, tmp_path):
    assert main(training_flags(store, tmp_path, "--epochs", "1")) == 0
    run = json.loads((tmp_path / "metrics.json").read_text())["run"]
    assert (run["train_videos"], run["held_out_videos"]) == (26, 6)
    assert {"setting": "--refit", "protocol": "true", "this run": "false"} in run["deviations"]
    assert run["protocol_settings"]["--mil"] == "topk"
    assert 'id="protocol"' in (tmp_path / "report.html").read_text()


def test_released_tests_within_epochs_and_goes_on_from_the_best(store, tmp_path, monkeypatch):
    """Each epoch has four batches of 2·4 videos and is tested after its second, third and fourth."""
    flags = training_flags(store, tmp_path, "--protocol", "released", "--batch", "4", "--select-every", "8")
    config = parse_train(flags)
    benchmark = load_benchmark(config, progress=False)
    training, held_out = split_validation(benchmark.train, config.validation, seed=0)
    assert len(training) == 32 and held_out == []
    run = Run.create(config)
    trainer = Trainer(run, run.variants[0], 0, dim=benchmark.dim)
    aucs = iter([0.6, 0.9, 0.5, 0.7, 0.8, 0.4, *[0.1] * 20])
    seen = []

    def measured(videos):
        seen.append(trainer.progress.epoch)
        return {"auc": next(aucs), "ap": 0.5}

    monkeypatch.setattr("iefvad.training.trainer.evaluate", measured)
    fitted = trainer.fit(Clips(training, max_segments=32), held_out, benchmark.test, progress=False)
    assert seen == [epoch for epoch in range(4) for _ in range(3)]
    assert fitted.epoch == 1
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, trainer.progress.best[name])


def test_average_precision_chooses_where_the_data_set_is_measured_by_it(store, tmp_path, monkeypatch):
    config = parse_train(training_flags(store, tmp_path, "--select-metric", "ap", "--select", "test"))
    benchmark = load_benchmark(config, progress=False)
    run = Run.create(config)
    trainer = Trainer(run, run.variants[0], 0, dim=benchmark.dim)
    found = iter([(0.9, 0.1), (0.5, 0.7), (0.8, 0.3), (0.7, 0.2)])
    monkeypatch.setattr(
        "iefvad.training.trainer.evaluate", lambda videos: dict(zip(("auc", "ap"), next(found), strict=True))
    )
    assert trainer.fit(Clips(benchmark.train, max_segments=32), [], benchmark.test, progress=False).epoch == 2


def test_paper_says_that_nu_cancels_and_it_does(store, tmp_path):
    assert main(training_flags(store, tmp_path, "--protocol", "paper", "--epochs", "1")) == 0
    run = json.loads((tmp_path / "metrics.json").read_text())["run"]
    assert any("ν cancels" in note for note in run["notes"]) and run["train_videos"] == 32
    assert load_model(tmp_path / "checkpoint.safetensors").provenance["threshold"] is None
    networks = [
        Network(ModelConfig(dim=8, heads=2, process_noise=0.0, noise=noise)) for noise in ("student-t", "gaussian")
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    features = torch.randn(2, 2, 9, 8)
    student, gaussian = (network.eval()(*features) for network in networks)
    for name in ("scores", "w_img", "gain"):  # to float32 rounding, through ten refinement steps
        torch.testing.assert_close(getattr(student, name), getattr(gaussian, name), rtol=1e-4, atol=1e-6)
    assert abs(student.terms.kl_img - gaussian.terms.kl_img) > 1e-3


def test_robustness_follows_the_protocol(store, tmp_path):
    assert main(training_flags(store, tmp_path, "--protocol", "released", "--epochs", "1")) == 0
    benchmark = load_benchmark(load_config(tmp_path / "config.yaml"), progress=False)
    model = load_model(tmp_path / "checkpoint.safetensors")
    by_protocol = robustness(model, benchmark.test, damage="segments")
    assert evaluate([str(tmp_path), "--device", "cpu"]) == 0
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["robustness"] == over_seeds({0: by_protocol})
    assert all(row["damage"] == "segments" for row in by_protocol)
    assert written["run"]["train_videos"] == 32
