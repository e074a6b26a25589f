"""Training never waits for a GPU between two looks at the losses."""

from __future__ import annotations

import pytest
import torch

from iefvad.data.batches import Batch
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, Share
from iefvad.model.network import Network
from iefvad.training import trainer
from iefvad.training.run import Run, Variant
from iefvad.training.settings import TrainConfig, resolve
from iefvad.training.step import training_step
from iefvad.training.trainer import Trainer
from tests.helpers.waiting import GPU, waiting


def batch_on_gpu(dim: int = 16) -> Batch:
    """A batch as `Clips` makes it: lengths are on the CPU."""
    features = torch.empty(2, 40, dim, device=GPU)
    return Batch(features, features, torch.tensor([40, 7]), torch.empty(2, device=GPU))


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"modality": "image", "standardize": True},
        {"window": 8, "nu": "learned"},
        {"released": True, "process_noise": 0.1},
        {"noise": "gaussian", "temporal": "none", "dropout": 0.0},
        {"temporal": "robust-kalman", "nu": "learned"},
        {"standardize": True, "surprise": True, "repair": True, "fusion": "gated", "refinement": "guided"},
        {"fusion": "cross-attention", "refinement": "shared", "loss_weights": "learned"},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_step_never_waits(choices, backend, monkeypatch):
    network = Network(ModelConfig(dim=16, heads=4, refine_steps=2, **choices), backend=backend).train().to(GPU)
    mil = "segment" if "window" in choices else "topk"
    with waiting(monkeypatch) as waits:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        for _ in range(2):
            training_step(network, batch_on_gpu(), optimizer, LossWeights(), mil, share=Share(0.5, 0.25))
    assert waits.found == []


def test_an_epoch_waits_only_where_it_looks_at_the_losses(monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "CHECK", 3)
    monkeypatch.setattr(trainer, "resolve_device", lambda name: GPU)
    monkeypatch.setattr(trainer, "epoch_batches", lambda *rest, **others: [[0, 1]] * 7)
    monkeypatch.setattr(Trainer, "_parts", lambda self, clips, order: ((batch_on_gpu(), Share(), None) for _ in order))
    config = resolve(TrainConfig(fused=True, heads=4))
    with waiting(monkeypatch) as waits:
        training = Trainer(Run(tmp_path, config), Variant("fusion", "fusion", config.method), 0, dim=16)
        waits.found.clear()  # weights were moved to the device
        clips = type("Clips", (), {"labels": torch.zeros(2), "lengths": torch.tensor([40, 7])})
        row = training._train_epoch(clips, training._step())
    assert row["loss"] == 1.0  # what a copy from the stand-in contains
    assert len(waits.found) == 3, waits.found  # at steps 3, 6 and 7
    assert all("tolist()" in wait for wait in waits.found)


def test_what_waits_is_found(monkeypatch):
    values = torch.empty(3, device=GPU)
    with waiting(monkeypatch) as waits:
        for wait in (
            lambda: values[0].item(),
            lambda: bool(values[0] > 0),
            lambda: values.tolist()[0],
            lambda: values.cpu(),
            lambda: torch.zeros(3).copy_(values),
            lambda: torch.zeros(3).to(GPU),
            lambda: values.copy_(torch.zeros(3)),
            lambda: values.new_tensor(1.0),
            lambda: torch.tensor([1.0], device=GPU),
            lambda: values[torch.tensor([0, 1])],
        ):
            before = len(waits.found)
            wait()
            assert len(waits.found) > before
        before = len(waits.found)
        for fine in (
            lambda: values.to(torch.float64),
            lambda: torch.zeros(3).to(GPU, non_blocking=True),
            lambda: values.copy_(torch.zeros(3), non_blocking=True),
            lambda: values + 1.0,
            lambda: values * torch.tensor(2.0),
            lambda: values.new_full((), 1.0),
            lambda: torch.zeros(3).tolist(),
        ):
            fine()
    assert len(waits.found) == before
