"""Log-variances and features far outside of what is usual: results stay finite, or show that they are not."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iefvad.model.baselines.config import BASELINES, BaselineConfig
from iefvad.model.baselines.network import BaselineNetwork
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, total_loss
from iefvad.model.network import Network

DIM = 16
LENGTHS = torch.tensor([20, 13])
LABELS = torch.tensor([1.0, 0.0])
VARIANTS: dict[str, dict[str, Any]] = {
    "fusion": {},
    "image": {"modality": "image"},
    "event without recursion": {"modality": "event", "temporal": "none"},
    "image, robust": {"modality": "image", "temporal": "robust-kalman", "nu": "learned"},
    "image, guided": {"modality": "image", "refinement": "guided"},
    "released": {"released": True},
    "gated": {"fusion": "gated"},
    "cross-attention": {"fusion": "cross-attention"},
    "guided": {"refinement": "guided"},
    "robust": {"temporal": "robust-kalman"},
    "low rank": {"covariance_rank": 2},
    "gaussian": {"noise": "gaussian"},
    "learned": {"nu": "learned", "loss_weights": "learned"},
    "two members": {"members": 2},
    "surprise": {"standardize": True, "surprise": True},
}


def wrong(network: nn.Module, loss: Any, output: Any) -> list[str]:
    """Return the names of outputs and gradients that are not finite."""
    loss.total.backward()
    named = {name: getattr(output, name) for name in ("logits", "scores", "fused", "w_img", "w_evt", "gain")}
    named |= {f"state {k}": part for k, part in enumerate(output.state or ())}
    named |= {f"loss {name}": value for name, value in vars(loss).items()}
    named |= {f"gradient of {name}": parameter.grad for name, parameter in network.named_parameters()}
    return [name for name, value in named.items() if isinstance(value, Tensor) and not value.isfinite().all()]


def variant(name: str) -> Network:
    """Return a small network whose statistics are set."""
    torch.manual_seed(0)
    network = Network(ModelConfig(dim=DIM, heads=2, **VARIANTS[name]))
    for modality in network.statistics:
        network.set_statistics(modality, torch.randn(50, DIM))
    return network


def run(network: Network, scale: float = 1.0) -> tuple[Any, Any]:
    """Return the loss and the output of a forward pass on features of this size."""
    image, event = (scale * torch.randn(2, 20, DIM) for _ in range(2))
    output = network(image, event, LENGTHS)
    return total_loss(output, LABELS, LENGTHS, LossWeights()), output


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_log_variances_saturate(name: str, half: bool) -> None:
    for value in (100.0, -100.0, 1e4, -1e4):
        for which in ("both", "first"):
            network = variant(name)
            with torch.no_grad():
                for member in (m for m in network.modules() if isinstance(m, Network)):
                    for encoder in list(member.encoders.values())[: 1 if which == "first" else 2]:
                        encoder.logvar.bias.fill_(value)  # type: ignore[union-attr]
            with torch.autocast("cpu", torch.float16) if half else contextlib.nullcontext():
                loss, output = run(network)
            assert not wrong(network, loss, output), f"log-variance {value} of {which}"


@pytest.mark.parametrize("name", VARIANTS)
def test_huge_features_are_not_hidden(name: str) -> None:
    """Squares of 1e30 are beyond float32: the loss says so where anything is not finite."""
    network = variant(name)
    loss, output = run(network, 1e30)
    assert not output.logits.isfinite().all() or not wrong(network, loss, output)
    if not output.logits.isfinite().all():
        assert not loss.total.isfinite()


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name: str) -> None:
    for value in (0.0, 100.0, -100.0, 1e4, -1e4):
        for scale in (1.0, 1e30):
            torch.manual_seed(0)
            network = BaselineNetwork(BaselineConfig(model=name, dim=DIM)).train()
            for module in network.modules():
                if isinstance(getattr(module, "logvar", None), nn.Linear):
                    nn.init.constant_(module.logvar.bias, value)  # type: ignore[union-attr, arg-type]
            image, event = (scale * torch.randn(2, 20, DIM) for _ in range(2))
            output = network(image, event, LENGTHS)
            loss = network.loss(output, LABELS, LENGTHS)
            found = wrong(network, loss, output)
            hidden = bool(found) and bool(loss.total.isfinite()) and bool(output.logits.isfinite().all())
            assert not hidden, f"{value}, {scale}: {found}"
            assert scale > 1 or not found, f"log-variance {value}: {found}"
            if name != "ur-dmu" and scale > 1:
                break  # the others have no log-variance
