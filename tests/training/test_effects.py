"""Settings are looked at by what they do to the data, before the first epoch."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from iefvad.cli.train import main
from iefvad.data.datasets import load_store
from iefvad.features.videos import Benchmark
from iefvad.training.effects import check_effects
from iefvad.training.run import Variant
from iefvad.training.settings import TrainConfig, resolve
from iefvad.training.trainer import Trainer
from iefvad.utils.errors import UserError
from tests.helpers.stores import training_flags, write_store


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Benchmark:
    return load_store(write_store(tmp_path_factory.mktemp("effects") / "store", train=8, test=4))


def effects(benchmark: Benchmark, world: int = 1, **settings: object) -> list[str]:
    config = resolve(TrainConfig(features="x", preset="ucf-crime", **{"heads": 2, "batch": 2, **settings}))
    return check_effects(config, benchmark, [Variant("fusion", "fusion", config.method)], world)


def of(benchmark: Benchmark, *, train: str = "both", test: str = "both") -> Benchmark:
    def keep(videos, which):
        return [v for v in videos if which == "both" or bool(v.classes) == (which == "abnormal")]

    return dataclasses.replace(
        benchmark, train=keep(benchmark.train, train) if train else [], test=keep(benchmark.test, test) if test else []
    )


def test_a_usual_set_has_no_note(benchmark):
    assert effects(benchmark) == []


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"train": ""}, {}, "has no training videos"),
        ({"test": ""}, {}, "has no test videos"),
        ({"train": "normal"}, {}, "the training list has no abnormal video"),
        ({"train": "abnormal"}, {"mixed": True}, "the training list has no normal video"),
        (
            {"test": "normal"},
            {"select": "test", "validation": 0.0},
            "have no abnormal frame, so AUC and AP are undefined",
        ),
        ({}, {"heads": 3}, "--heads 3 does not divide"),
    ],
)
def test_what_cannot_work_is_refused(benchmark, changes, settings, message):
    with pytest.raises(UserError, match=message):
        effects(of(benchmark, **changes), **settings)


def test_what_works_in_another_way_is_said(benchmark):
    assert "no abnormal frame: AUC and AP" in effects(of(benchmark, test="normal"))[0]
    assert "fewer than --batch 64: each epoch is one step" in effects(benchmark, batch=64)[0]
    assert effects(benchmark, world=5) == ["A batch has 4 clips, so 1 of 5 processes have nothing to train on."]
    one = dataclasses.replace(benchmark, train=benchmark.train[:2])
    assert "too few videos to hold one of each kind out: the last epoch is kept" in effects(one, batch=1)[0]
    lone = [video for video in benchmark.train if not video.classes] + [benchmark.train[1]]
    assert "All held-out videos are normal" in effects(dataclasses.replace(benchmark, train=lone), batch=1)[0]
    unknown = [dataclasses.replace(video, truth=None) for video in benchmark.test]
    assert "no frame truth" in effects(dataclasses.replace(benchmark, test=unknown))[0]
    full = [dataclasses.replace(video, truth=np.ones(16 * video.segments, np.uint8)) for video in benchmark.test]
    assert "no normal frame" in effects(dataclasses.replace(benchmark, test=full))[0]


def test_nothing_is_trained_where_the_data_do_not_allow_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: pytest.fail("a training has begun"))
    store = write_store(tmp_path / "store", train=8, test=4)
    rows = (store / "train.csv").read_text().splitlines()
    (store / "train.csv").write_text("\n".join(row for row in rows if row.endswith((",Normal", ",label"))))
    assert main(training_flags(store, tmp_path / "run", "--min-steps", "0")) == 2
    assert "the training list has no abnormal video" in capsys.readouterr().err


def test_the_crop_that_is_tested_is_in_the_metrics(tmp_path):
    store = write_store(tmp_path / "store", train=8, test=4)  # its only crop is 0
    flags = training_flags(store, tmp_path / "run", "--epochs", "1", "--modality", "image", "--compare", "false")
    assert main([*flags, "--test-crops", "5"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]["test_crops"] == "0"
