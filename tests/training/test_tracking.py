"""`--log`: losses and metrics reach the experiment trackers while a run trains, and a resumed run goes on there."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from collections import defaultdict

import pytest

from iefvad.cli.train import main
from iefvad.training import results
from iefvad.training.run import Run
from iefvad.training.tracking import Tracking
from iefvad.training.trainer import Trainer
from tests.helpers.stores import training_flags, write_store

TRACKERS = ("tensorboard", "wandb", "mlflow")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("tracked"))


def flags(store, out, *more):
    return training_flags(store, out, "--modality", "fusion", "--compare", "false", "--epochs", "3", *more)


class Recorded:
    """What the trackers were told: tracker → network → (key, step, value) in order, and the networks that ended."""

    def __init__(self):
        self.rows = {name: defaultdict(list) for name in TRACKERS}
        self.results = {name: defaultdict(dict) for name in TRACKERS}
        self.ended = {name: [] for name in TRACKERS}
        self.fail = False

    def steps(self, tracker, network, key="loss"):
        return [step for name, step, _ in self.rows[tracker][network] if name == key]


@pytest.fixture
def recorded(monkeypatch):
    """Modules in place of the three packages that record what they are told. The real ones are tested below."""
    record = Recorded()

    class SummaryWriter:
        def __init__(self, folder):
            self.network = os.path.basename(folder)
            os.makedirs(folder, exist_ok=True)

        def add_scalar(self, key, value, step):
            if key.startswith("test/"):
                record.results["tensorboard"][self.network][key] = value
            else:
                record.rows["tensorboard"][self.network].append((key, step, value))

        def flush(self):
            pass

        def close(self):
            record.ended["tensorboard"].append(self.network)

    class WandbRun:
        def __init__(self, **options):
            self.network, self.options = options["id"], options
            self.summary = record.results["wandb"][self.network]
            assert options["resume"] == "allow" and options["config"]["lr"] > 0

        def define_metric(self, *arguments, **options):
            pass

        def log(self, values):
            if record.fail:
                raise ConnectionError("no route to host\nmore")
            [step] = (values[axis] for axis in ("epoch", "refit epoch", "step") if axis in values)
            for key, value in values.items():
                record.rows["wandb"][self.network].append((key, step, value))

        def finish(self):
            record.ended["wandb"].append(self.network)

    class MlflowClient:
        numbers = 0

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "1"

        def create_run(self, experiment, tags):
            MlflowClient.numbers += 1
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=str(MlflowClient.numbers)))

        def update_run(self, number, status):
            assert number in record.rows["mlflow"] and status == "RUNNING"

        def log_param(self, number, key, value):
            pass

        def log_metric(self, number, key, value, step=None):
            if key.startswith("test/"):
                record.results["mlflow"][number][key] = value
            else:
                record.rows["mlflow"][number].append((key, step, value))

        def set_terminated(self, number):
            record.ended["mlflow"].append(number)

    modules = {
        "tensorboard": {},
        "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter},
        "wandb": {"init": lambda **options: WandbRun(**options)},
        "mlflow": {"MlflowClient": MlflowClient},
    }
    monkeypatch.setattr(results, "write_run_report", lambda folder: folder)  # no page is needed
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return record


def test_each_tracker_gets_every_epoch_as_it_ends_and_the_metrics(store, tmp_path, monkeypatch, recorded):
    original, seen = Trainer._train_epoch, []

    def watched(self, *arguments):
        seen.append(len(recorded.steps("tensorboard", f"fusion_seed{self.seed}")))
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_epoch", watched)
    assert main(flags(store, tmp_path, "--seeds", "0", "1", "--log", *TRACKERS)) == 0
    assert seen == [0, 1, 2] * 2, "epochs are reported only at the end"
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "metrics.json").read_text())["fusion"]
    numbers = json.loads((tmp_path / "tracking.json").read_text())
    for tracker in TRACKERS:
        for place, seed in enumerate((0, 1)):
            network = numbers[tracker][f"fusion_seed{seed}"]
            rows = recorded.rows[tracker][network]
            expected = [(row["epoch"], row["loss"]) for row in log if row["seed"] == seed]
            assert [(step, value) for key, step, value in rows if key == "loss"] == expected
            assert recorded.results[tracker][network]["test/auc"] == metrics["seeds"]["auc"]["values"][place]
            assert network in recorded.ended[tracker]


def test_a_resumed_run_goes_on_with_the_same_numbers_and_steps(store, tmp_path, monkeypatch, recorded):
    original = Trainer._train_epoch

    def interrupted(self, *arguments):
        if self.progress.epoch == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)
    assert main(flags(store, tmp_path, "--log", "wandb", "mlflow")) == 130
    numbers = json.loads((tmp_path / "tracking.json").read_text())
    assert recorded.ended["wandb"] == [numbers["wandb"]["fusion_seed0"]], "an interrupted network stays open"
    monkeypatch.setattr(Trainer, "_train_epoch", original)
    assert main(flags(store, tmp_path, "--resume", "--log", *TRACKERS)) == 0
    after = json.loads((tmp_path / "tracking.json").read_text())
    assert {name: after[name] for name in ("wandb", "mlflow")} == numbers
    for tracker in TRACKERS:  # TensorBoard was asked for later: it gets the epochs before as well
        assert recorded.steps(tracker, after[tracker]["fusion_seed0"]) == [1, 2, 3], tracker
    assert main(flags(store, tmp_path / "new", "--log", "wandb")) == 0
    assert json.loads((tmp_path / "new" / "tracking.json").read_text())["wandb"] != numbers["wandb"]


def test_a_lost_connection_does_not_end_the_training(store, tmp_path, recorded, capsys):
    recorded.fail = True
    assert main(flags(store, tmp_path, "--log", "wandb", "mlflow")) == 0
    out = capsys.readouterr().out
    assert out.count("--log wandb stopped (no route to host); the training goes on without it") == 1
    [network] = recorded.results["mlflow"]
    assert recorded.steps("mlflow", network) == [1, 2, 3]


def test_a_tracker_that_cannot_start_is_an_error_before_training(store, tmp_path, monkeypatch, recorded, capsys):
    def refused(**options):
        raise RuntimeError("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refused)
    assert main(flags(store, tmp_path, "--log", "wandb")) == 2
    assert "--log wandb cannot be started: no API key" in capsys.readouterr().err
    assert not (tmp_path / "log.jsonl").exists()


def test_a_missing_package_is_one_error_before_training(store, tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in TRACKERS else real(name))
    assert main(flags(store, tmp_path, "--log", "mlflow", "wandb")) == 2
    error = capsys.readouterr().err
    assert "the package mlflow is not installed" in error and "pip install mlflow wandb" in error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        main(flags(store, tmp_path, "--log", "excel"))


def test_nothing_is_reported_unless_asked_for(tmp_path, recorded):
    Tracking().epoch(Run, {"seed": 0})
    Tracking().tested(Run, 0, [])
    Tracking().close()
    assert not any(recorded.rows[name] or recorded.ended[name] for name in TRACKERS)


def test_real_tensorboard(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(flags(store, tmp_path, "--log", "tensorboard")) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard" / "fusion_seed0"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert events.Scalars("test/auc")


def test_real_mlflow(store, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert main(flags(store, tmp_path / "run", "--log", "mlflow")) == 0
    number = json.loads((tmp_path / "run" / "tracking.json").read_text())["mlflow"]["fusion_seed0"]
    assert [row.step for row in MlflowClient().get_metric_history(number, "loss")] == [1, 2, 3]
    run = MlflowClient().get_run(number)
    assert run.info.status == "FINISHED" and run.data.metrics["test/auc"] > 0 and run.data.params["network"] == "fusion"


def test_real_wandb(store, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main(flags(store, tmp_path, "--log", "wandb")) == 0
    number = json.loads((tmp_path / "tracking.json").read_text())["wandb"]["fusion_seed0"]
    [file] = (tmp_path / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb")
    assert file.stat().st_size > 1000
