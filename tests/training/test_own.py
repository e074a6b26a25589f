"""Training on few videos of one's own: the start from the event density, the end by the loss, the warnings."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from iefvad.checkpoints.hub import load_model
from iefvad.cli.evaluate import main as evaluate
from iefvad.cli.train import main
from iefvad.data.batches import Clips
from iefvad.data.datasets import load_store
from iefvad.features.density import add_density, with_density
from iefvad.features.store import FeatureStore
from iefvad.model.config import ModelConfig
from iefvad.model.network import Network
from iefvad.scoring.probe import fit_logistic, probe_scores
from iefvad.training.advice import familiar_limits, loss_advice, results_advice
from iefvad.training.networks import model_config
from iefvad.training.settings import TrainConfig, resolve
from iefvad.utils.advice import Advice, score_text
from tests.helpers.stores import write_store

FAST = ["--members", "1", "--refine-steps", "1", "--projection", "8", "--heads", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("own") / "store", train=16, test=4)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    assert main(["--features", str(store), "--out", str(out), "--lr", "5e-3", *FAST]) == 0
    return out


def rows_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_training_ends_when_the_loss_says_so(run):
    losses = [row["loss_cls"] for row in rows_of(run)]
    assert len(losses) < 300 and losses[-1] <= 0.35 < min(losses[:-1])  # 1.4 / sqrt(16)


def test_a_resumed_run_has_ended_where_it_ended(run, store):
    before = (run / "checkpoint.safetensors").read_bytes()
    flags = ["--features", str(store), "--out", str(run), "--lr", "5e-3", *FAST]
    assert main([*flags, "--resume"]) == 0
    assert (run / "checkpoint.safetensors").read_bytes() == before


def test_before_training_the_score_is_that_of_the_density(store):
    benchmark = load_store(store)
    add_density(benchmark)
    config = resolve(TrainConfig(features=str(store), preset="own", members=2, projection=8, heads=2))
    network = Network(model_config(config, benchmark.dim, "fusion")).eval()
    network.start_at_zero()
    clips = Clips(benchmark.train, max_segments=64)
    for name in network.statistics:
        network.set_statistics(name, clips.features(name))
    video = benchmark.test[0]
    image, event = (values[None] for values in video.features(0))
    logits = network(image, event).logits[0]
    order = np.argsort(video.event_density)
    assert torch.equal(logits.argsort(), torch.from_numpy(order))
    assert torch.allclose(logits, network._density(event)[0], atol=1e-6)
    later = network(image, event, context=2).logits[0]
    assert torch.allclose(later, logits[2:], atol=1e-6)


def test_density_is_the_last_dimension_of_the_events_alone():
    image, event = with_density(torch.ones(2, 3, 4), torch.ones(2, 3, 4), [0.0, 0.001, 1.0])
    assert image.shape == event.shape == (2, 3, 5)
    assert (image[..., -1] == 0).all() and (event[..., 0] == 1).all()
    assert torch.allclose(event[1, :, -1], torch.tensor([0.0, np.log(2), np.log(1001)]).float())


def test_a_run_is_evaluated_with_its_densities(run, store, tmp_path):
    before = json.loads((run / "metrics.json").read_text())["fusion"]["auc"]
    assert evaluate([str(run), "--robustness", "false", "--out", str(tmp_path / "a")]) == 0
    model = run / "checkpoint.safetensors"
    flags = ["--features", str(store), "--robustness", "false", "--out", str(tmp_path / "b")]
    assert evaluate([str(model), *flags]) == 0
    for name in ("a", "b"):
        found = json.loads((tmp_path / name / "metrics.json").read_text())["fusion"]["auc"]
        assert found == pytest.approx(before, abs=1e-9)


def test_without_densities_training_goes_on_without_them(tmp_path, capsys):
    store = write_store(tmp_path / "store", train=8, test=4)
    features = FeatureStore(store)
    for side in features.sidecars():
        image, event, _ = features.read(side.name)
        features.write(side.name, image, event, dataclasses.replace(side, event_density=[]))
    flags = ["--features", str(store), "--out", str(tmp_path / "run"), "--min-steps", "2", "--epochs", "2", *FAST]
    assert main(flags) == 0
    assert "does not start from the density" in capsys.readouterr().out
    assert load_model(tmp_path / "run" / "checkpoint.safetensors").config.density_prior == 0
    assert evaluate([str(tmp_path / "run"), "--robustness", "false"]) == 0


def test_probe_finds_what_separates_the_videos():
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 60, generator=random, dtype=torch.float64) / 60**0.5
    labels = (torch.arange(40) % 4 == 0).double()
    rows[:, 0] += 2 * labels
    weight, bias = fit_logistic(rows, labels)
    p = torch.sigmoid(rows @ weight + bias)
    balance = 20 * torch.where(labels > 0, 1 / labels.sum(), 1 / (40 - labels.sum()))
    gradient = rows.T @ (balance * (p - labels)) + weight
    assert gradient.abs().max() < 1e-6  # the minimum of the penalised loss
    assert weight.argmax() == 0


def test_probe_needs_both_classes_and_few_videos(store, monkeypatch):
    benchmark = load_store(store)
    assert len(probe_scores(benchmark.train, benchmark.test, "5")) == 4
    assert probe_scores(benchmark.train[::2], benchmark.test, "5") is None  # normal videos alone
    monkeypatch.setattr("iefvad.scoring.probe.MOST", 3)
    assert probe_scores(benchmark.train, benchmark.test, "5") is None


def test_loss_near_ln_2_is_a_warning():
    rows = [{"model": "fusion", "seed": 0, "epoch": e, "loss_cls": loss} for e, loss in ((1, 0.69), (2, 0.68))]
    (found,) = loss_advice(rows, "fusion", preset="own")
    assert "--preset own" not in found.remedy
    assert "--preset own" in loss_advice(rows, "fusion", preset="msad")[0].remedy
    assert "0.680" in found.cause and "--lr" in found.remedy
    assert loss_advice([*rows, {**rows[0], "epoch": 3, "loss_cls": 0.4}], "fusion", preset="own") == []
    assert loss_advice(rows, "image", preset="own") == []


def test_a_simpler_way_that_wins_is_a_warning():
    metrics = {
        "fusion": {"auc": 0.8, "ap": 0.5},
        "event density": {"auc": 0.7, "ap": 0.6},
        "linear probe": {"auc": 0.9},
    }
    causes = [found.cause for found in results_advice(metrics, "fusion", 10, preset="own")]
    assert causes == [
        "The event density beats the fusion model on the test videos: AP 0.600 against 0.500.",
        "The linear probe beats the fusion model on the test videos: AUC 0.900 against 0.800.",
    ]
    better = {"fusion": {"auc": 0.95, "ap": 0.7}, "event density": metrics["event density"]}
    assert results_advice(better, "fusion", 10, preset="own") == []
    assert "There are 9 test videos" in results_advice(metrics, "fusion", 9, preset="own")[-1].cause
    undefined = {"fusion": {"auc": None, "ap": None}, "event density": {"auc": 0.5}}
    assert results_advice(undefined, "fusion", 10, preset="own") == []


@pytest.mark.parametrize(
    ("preset", "remedy"),
    [
        ("own", "until there are more training videos."),
        ("synth", "--epochs"),
        ("ucf-crime", "--preset own"),
        (None, "without --normal-only"),
    ],
)
def test_the_remedy_is_not_what_is_done_already(preset, remedy):
    metrics = {"fusion": {"auc": 0.8}, "event density": {"auc": 0.9}}
    found = results_advice(metrics, "fusion", 10, preset=preset)[0].remedy
    assert remedy in found and (preset != "own" or "--preset own" not in found)


def test_warnings_are_in_the_terminal_on_the_page_and_in_metrics(store, tmp_path, capsys):
    flags = ["--features", str(store), "--out", str(tmp_path), "--lr", "1e-9", "--min-steps", "2", "--epochs", "2"]
    assert main([*flags, "--density-prior", "0", *FAST]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    found = [Advice(**row) for row in json.loads((tmp_path / "metrics.json").read_text())["run"]["warnings"]]
    assert any("near ln 2" in warning.cause for warning in found)
    assert any("There are 4 test videos" in warning.cause for warning in found)
    for warning in found:
        assert f"warning: {warning}" in printed
    assert 'class="warnings"' in page and "near ln 2" in page and "Give more test videos" in page


def test_limits_are_twice_the_farthest_training_video(store):
    benchmark = load_store(store)
    clips = Clips(benchmark.train, max_segments=64)
    network = Network(ModelConfig(dim=16, heads=2, standardize=True, refine_steps=1))
    limits = familiar_limits(network, clips)
    means = torch.stack([clips[i][1].double().mean(0) for i in range(len(clips))])
    largest = 0.0
    for i in range(len(clips)):
        rest = torch.cat([clips[j][1].double() for j in range(len(clips)) if j != i])
        scale = rest.std(0, correction=0) + 0.05
        largest = max(largest, float(((means[i] - rest.mean(0)) / scale).square().mean()))
    assert limits["event"] == pytest.approx(2 * largest, rel=1e-6)
    assert familiar_limits(Network(ModelConfig(dim=16, heads=2, refine_steps=1)), clips) == {}


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.5, "0.5"), (0.12345, "0.123"), (0.9996, "0.9996"), (0.99997, "0.99997"), (1.0, "1"), (1.2, "1.2")],
)
def test_a_score_below_1_never_reads_1(score, text):
    assert score_text(score) == text
