"""What is trained for each target."""

from __future__ import annotations

import dataclasses

import pytest

from iefvad.model.baselines.config import BASELINES
from iefvad.reproduce.plan import HYPERPARAMETERS, LOSSES, SECTIONS, STREAMS, TARGETS, experiments, sections_of
from iefvad.reproduce.plan import settings_of as settings
from iefvad.reproduce.run import data_of, metrics_of, plan
from iefvad.sweep.plan import Fold
from iefvad.training.settings import TrainConfig, resolve

ONE = [Fold("", {})]


def differences(one: TrainConfig, other: TrainConfig) -> dict[str, object]:
    pairs = ((item.name, getattr(one, item.name), getattr(other, item.name)) for item in dataclasses.fields(one))
    return {name: new for name, old, new in pairs if old != new and name != "explicit"}


def test_targets_name_sections() -> None:
    assert sections_of(["all"]) == list(SECTIONS)
    assert sections_of(["figure2", "table4", "table3"]) == ["ablations", "classes"]
    assert sections_of(TARGETS) == list(SECTIONS)


def test_shared_trainings_are_planned_with_one_key() -> None:
    config = TrainConfig(seeds=[0, 1])
    _, planned = plan(SECTIONS, config, ONE)
    methods, hyperparameters = 2 + len(BASELINES), sum(len(values) - 1 for _, values in HYPERPARAMETERS.values())
    keys = {each.training.key for each in planned}
    assert len(keys) == 2 * (methods + hyperparameters + len(LOSSES) - 1 + len(STREAMS) - 1)
    default = [each.training.key for each in planned if each.replicate == ("", 0) and each.label in ("ν = 8", "all")]
    measured = [each.training for each in planned if each.training.measures and each.replicate == ("", 0)]
    assert {*default} == {training.key for training in measured}
    assert {name for training in measured for name in training.measures} == {"robustness", "shifts"}


@pytest.mark.parametrize("protocol", ["clean", "paper", "released"])
def test_only_what_is_varied_differs(protocol: str) -> None:
    config = TrainConfig(protocol=protocol, features="x", preset="msad", seeds=[3], lr=1e-3, compare=False)
    plain = resolve(dataclasses.replace(config, modality="fusion"))
    for section in ("ablations", "losses", "classes"):
        for experiment in experiments(section, config):
            for entry in experiment.entries:
                changed = differences(plain, settings(entry, config, 3))
                assert changed == {k: v for k, v in entry.changes.items() if getattr(plain, k) != v}
                if entry.label == experiment.reference:
                    assert not changed


def test_baselines_take_the_users_training_without_the_methods_own_settings() -> None:
    config = TrainConfig(features="x", preset="own", nu=4.0, lambda_kl=0.5, heads=4, epochs=3, seeds=[0])
    (experiment,) = experiments("methods", config)
    found = [settings(entry, config, 0) for entry in experiment.entries]
    assert {each.model for each in found} == {"ief-vad", *BASELINES}
    assert all(each.epochs == 3 and each.preset == "own" for each in found)
    assert {(each.noise, each.nu) for each in found if each.model == "ief-vad"} == {("student-t", 4), ("gaussian", 4)}


def test_gaussian_noise_has_no_nu_to_learn() -> None:
    config = TrainConfig(nu="learned", seeds=[0])
    (experiment,) = experiments("methods", config)
    assert [settings(entry, config, 0).nu for entry in experiment.entries[:2]] == ["learned", 8.0]
    assert all(e.reference is None for e in experiments("ablations", config) if e.name == "nu")


def test_metrics_and_data_follow_the_preset_that_the_user_names() -> None:
    xd = TrainConfig(features="x", preset="xd-violence")
    assert metrics_of(resolve(xd)) == ("ap",)
    assert data_of(xd) == "xd-violence"
    unnamed = TrainConfig(features="x")  # its preset is ucf-crime, but nobody says that the features are
    assert metrics_of(resolve(unnamed)) == ("auc", "ano_auc")
    assert data_of(unnamed) is None
    assert data_of(TrainConfig(preset="synth")) is None


def test_folds_have_their_own_lists() -> None:
    folds = [Fold(name, {"train_list": f"{name}/train.csv", "test_list": f"{name}/test.csv"}) for name in ("a", "b")]
    _, planned = plan(["losses"], TrainConfig(features="x", preset="own", seeds=[0, 1]), folds)
    assert {each.replicate for each in planned} == {("a", 0), ("a", 1), ("b", 0), ("b", 1)}
    assert all(each.training.settings.train_list == f"{each.replicate[0]}/train.csv" for each in planned)
    assert len({each.training.key for each in planned}) == len(planned)
