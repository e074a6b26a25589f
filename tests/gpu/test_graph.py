"""Training steps replayed from CUDA graphs: the same losses as plain steps, and masks of dropout drawn anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("safetensors", reason="the network needs what iefvad needs")

from iefvad.checkpoints.hub import IEFVAD
from iefvad.data.batches import Batch
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights
from iefvad.training.graph import WARM_UPS, GraphedStep
from iefvad.training.step import training_step

pytestmark = pytest.mark.gpu
LONGEST, STEPS = 64, 20


def batches(device: torch.device) -> list[Batch]:
    """Two clips each, which fill one of two lengths."""
    random = torch.Generator().manual_seed(0)
    found = []
    for step in range(STEPS):
        longest = LONGEST - 40 * (step % 2) - step % 3
        image, event = torch.randn(2, 2, longest, 128, generator=random)
        lengths = torch.tensor([longest, longest // 2])
        found.append(Batch(image, event, lengths, torch.tensor([0.0, 1.0])).to(device))
    return found


def train(
    device: torch.device, how: Callable[[Callable[[Batch], Tensor]], Callable[[Batch], Tensor]], *, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    model = IEFVAD(ModelConfig(dim=128, heads=4, refine_steps=3, dropout=0.0)).to(device).train()
    rate = torch.tensor(1e-4, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, capturable=True)

    def plain(batch: Batch) -> Tensor:
        autocast = torch.autocast("cuda", torch.bfloat16) if bfloat16 else None
        return training_step(model, batch, optimizer, LossWeights(), autocast=autocast)

    step, losses = how(plain), []
    for number, batch in enumerate(batches(device)):
        rate.fill_(1e-4 if number < STEPS // 2 else 1e-5)
        losses.append(step(batch).clone())
    return torch.stack(losses).cpu(), model.classifier.weight.detach().cpu()


# Rows of padding are left out of the plain step and computed in the graph: sums in another order, over 20 steps.
@pytest.mark.parametrize(("bfloat16", "relative"), [(False, 1e-4), (True, 2e-2)])
def test_the_losses_of_plain_steps(cuda: torch.device, bfloat16: bool, relative: float) -> None:
    made: list[GraphedStep] = []

    def graphed(step: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
        made.append(GraphedStep(step, cuda, LONGEST))
        return made[0]

    expected = train(cuda, lambda step: step, bfloat16=bfloat16)
    found = train(cuda, graphed, bfloat16=bfloat16)
    assert made[0].failure is None and len(made[0]._captured) == 2
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=relative, atol=relative / 10)


def test_masks_are_drawn_anew(cuda: torch.device) -> None:
    model = IEFVAD(ModelConfig(dim=128, heads=4, refine_steps=2, dropout=0.3)).to(cuda).train()
    rate = torch.zeros((), device=cuda)  # weights stay, so only the masks differ
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, capturable=True)
    step = GraphedStep(lambda batch: training_step(model, batch, optimizer, LossWeights()), cuda, LONGEST)
    batch = batches(cuda)[0]
    for _ in range(WARM_UPS + 1):
        step(batch)
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append([step(batch).tolist() for _ in range(3)])
    assert step.failure is None
    assert drawn[0] == drawn[1]  # the seed decides
    assert drawn[0][0] != drawn[0][1] != drawn[0][2]
