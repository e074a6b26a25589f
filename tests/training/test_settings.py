"""Presets, methods, the command line and the YAML file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from iefvad.cli.train import parse_train
from iefvad.training.networks import model_config
from iefvad.training.presets import METHODS, PRESETS
from iefvad.training.run import Run
from iefvad.training.settings import TrainConfig, for_data, load_config, resolve, save_config
from iefvad.utils.errors import UserError


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_and_method_leaves_nothing_open(preset, method):
    config = resolve(TrainConfig(preset=preset, method=method))
    data = {"features", "train_list", "test_list", "annotations", "gt", "cache", "out"}
    assert [name for name, value in dataclasses.asdict(config).items() if value is None and name not in data] == []


def test_published_figures_of_the_presets():
    ucf = resolve(TrainConfig(preset="ucf-crime"))
    assert (ucf.lr, ucf.epochs, ucf.milestones, ucf.factor, ucf.batch) == (2e-5, 10, [4, 8], 0.1, 64)
    shanghai = resolve(TrainConfig(preset="shanghaitech"))
    assert (shanghai.lr, shanghai.epochs, shanghai.milestones, shanghai.factor) == (1e-4, 20, [8, 15], 0.5)
    xd = resolve(TrainConfig(preset="xd-violence"))
    assert (xd.batch, xd.mixed, xd.lambda_kl, xd.milestones) == (2, True, 0.01, [2, 6, 10])
    assert resolve(TrainConfig(preset="msad", method="released")).lambda_cos == 1.0


def test_a_flag_always_wins_over_preset_and_method():
    config = parse_train(
        ["--preset", "ucf-crime", "--method", "paper", "--lr", "0.5", "--process-noise", "0.25", "--nu", "learned"]
    )
    assert (config.lr, config.process_noise, config.nu, config.epochs) == (0.5, 0.25, "learned", 10)


def test_only_fusions_of_this_method_get_a_rank():
    config = resolve(TrainConfig(covariance_rank=4, modality="all", compare=True))
    ranks = {
        variant.name: model_config(variant.apply(config), 32, variant.modality).covariance_rank
        for variant in Run(Path("unused"), config).variants
    }
    assert ranks == {name: 0 if name in ("image", "event", "fusion (released)") else 4 for name in ranks}
    assert len(ranks) >= 5


def test_yaml_round_trip_and_override(tmp_path):
    config = resolve(TrainConfig(seeds=[3, 4], lr=0.125))
    save_config(tmp_path / "config.yaml", config)
    assert load_config(tmp_path / "config.yaml") == config
    again = parse_train(["--config", str(tmp_path / "config.yaml"), "--epochs", "3", "--seeds", "7", "8"])
    assert again == dataclasses.replace(config, epochs=3, seeds=[7, 8], explicit=["lr", "epochs"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "--lr must be greater than 0"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"process_noise": -0.5}, "--process-noise must be at least 0, not -0.5"),
        ({"nu": 0.0}, "--nu must be greater than 0"),
        ({"nu": "learned", "noise": "gaussian"}, "--nu learned needs --noise student-t"),
        ({"scalar_lr": -0.1}, "--scalar-lr must be at least 0"),
        ({"covariance_rank": -2}, "--covariance-rank must be at least 0"),
        ({"covariance_rank": 2, "method": "released"}, "--method released has fusion weights"),
        ({"covariance_rank": 2, "modality": "image"}, "leave --modality image out"),
        ({"covariance_rank": 2, "model": "rtfm"}, "--covariance-rank has no meaning for --model rtfm"),
        ({"validation": 1.0}, "--validation must be below 1"),
        ({"validation": 0.0}, "add --select last"),
        ({"seeds": []}, "--seeds needs at least one"),
        ({"gt": "gt.npy"}, "--train-list and --test-list"),
    ],
)
def test_impossible_settings_are_explained(settings, message):
    with pytest.raises(UserError, match=message):
        resolve(TrainConfig(**settings))


def test_a_folder_that_is_no_run_and_a_foreign_file_are_explained(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("colour: blue\n")
    with pytest.raises(UserError, match="colour"):
        load_config(tmp_path / "config.yaml")


def test_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train(["--colour", "blue"])
    assert stop.value.code == 2
    assert "--colour" in capsys.readouterr().err


def test_few_videos_get_more_epochs():
    own = resolve(TrainConfig(preset="own"))
    few, many = for_data(own, 1, 8), for_data(own, 30, 200)
    assert (few.epochs, few.milestones) == (300, [150, 240]) and (many.epochs, many.milestones) == (10, [5, 8])
    assert (few.until_loss, many.until_loss) == (0.4, 0.2)
    assert 0.2 < for_data(own, 2, 23).until_loss < 0.4
    assert for_data(resolve(TrainConfig(preset="ucf-crime")), 1, 8).epochs == 10
    assert for_data(resolve(TrainConfig(preset="own", until_loss=0.0)), 1, 8).until_loss == 0


def test_a_store_of_ones_own_has_its_preset_and_lists_of_the_field_have_theirs(tmp_path):
    (tmp_path / "store.json").touch()
    store, files = str(tmp_path), str(tmp_path / "npy")
    assert resolve(TrainConfig(features=store)).preset == "own"
    assert resolve(TrainConfig(features=store, train_list="a.csv")).preset == "own"
    assert resolve(TrainConfig(features=files, train_list="a.csv")).preset == "ucf-crime"
    assert resolve(TrainConfig()).preset == "synth"
    assert resolve(TrainConfig(features=store, preset="msad")).preset == "msad"


def test_only_the_network_of_this_project_starts_from_the_density():
    assert resolve(TrainConfig(preset="own")).density_prior == 1
    assert resolve(TrainConfig(preset="own", model="rtfm")).density_prior == 0
    assert resolve(TrainConfig(preset="own", protocol="paper")).density_prior == 1  # what a preset sets, it sets
    with pytest.raises(UserError, match="--density-prior needs"):
        resolve(TrainConfig(preset="ucf-crime", density_prior=1.0))


@pytest.mark.parametrize("words", [["0..2"], ["0-2"], ["0", "1", "2"], ["0,1,2"], ["[0,1,2]"], ["[0,", "1,", "2]"]])
def test_seeds_are_taken_as_people_write_them(words):
    assert parse_train(["--seeds", *words, "--lr", "1e-3"]).seeds == [0, 1, 2]
    if len(words) == 1:
        assert parse_train([f"--seeds={words[0]}"]).seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("x", "is not a seed"),
        ("3..1", "below the first"),
        ("1,1", "twice"),
        ("0..10000", "at most 10,000 seeds; w"),
    ],
)
def test_seeds_that_are_none_are_explained(word, message):
    with pytest.raises(UserError, match=message):
        parse_train(["--seeds", word])
