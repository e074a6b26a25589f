"""The whole network on the GPU: padding left out changes nothing, and a training step never waits for the device."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("safetensors", reason="the network needs what iefvad needs")

from iefvad.checkpoints.hub import IEFVAD
from iefvad.data.batches import Batch
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, total_loss
from iefvad.training.step import training_step

CONFIG = ModelConfig(dim=128, heads=4, refine_steps=3, dropout=0.0)
LENGTHS = torch.tensor([60, 7, 1, 33])


def batch(device: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image, event = torch.randn(2, 4, 60, 128, generator=generator)
    for features in (image, event):
        features[torch.arange(60) >= LENGTHS[:, None]] = 0
    return Batch(image, event, LENGTHS, torch.tensor([0.0, 1.0, 0.0, 1.0])).to(torch.device(device))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_padding_left_out_on_the_gpu(cuda: torch.device, backend: str) -> None:
    """Lengths on the CPU leave padding out, lengths on the GPU do not; both as the reference on the CPU."""
    found = []
    for device, lengths in (("cpu", LENGTHS), ("cuda", LENGTHS), ("cuda", LENGTHS.cuda())):
        torch.manual_seed(1)
        model = IEFVAD(CONFIG, backend=backend if device == "cuda" else "reference").to(device).train()
        data = batch(device)
        out = model(data.image, data.event, lengths)
        total_loss(out, data.labels, lengths, LossWeights()).total.backward()
        valid = torch.arange(60) < LENGTHS[:, None]
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        found.append((out.logits.cpu()[valid], gradients))
    # float32 products of other libraries, TF32 off, over a few layers.
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)


def test_a_training_step_never_waits(cuda: torch.device) -> None:
    torch.use_deterministic_algorithms(False)  # as in training; put back by the fixture
    model = IEFVAD(CONFIG).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    data = batch("cuda")
    for _ in range(2):  # kernels are compiled and tuned, which waits
        training_step(model, data, optimizer, LossWeights())
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = training_step(model, data, optimizer, LossWeights())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(losses).all()
