"""The ways to train IEF-VAD that `bench train` times: one network, one batch, one optimiser step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench import associative
from bench.end_to_end._plain_model import PlainIEFVAD
from ief_kernels import Scan
from iefvad.data.batches import Batch
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights, total_loss
from iefvad.model.network import Network
from iefvad.training.step import training_step

LEARNING_RATE = 2e-5
WEIGHTS = LossWeights()


@dataclass(frozen=True)
class Way:
    """One way: what it is, and how it is made.

    Attributes:
        about: a line for people.
        backend: of `ief_kernels`; None for the plain model.
        scan: "own", or what a compiled network's loop over time becomes: "loop" leaves it to eager code (unrolled, 40
            steps take minutes to compile), "associative" makes it torch's `associative_scan`.
        half: under bfloat16 autocast.
    """

    about: str
    backend: str | None
    scan: str = "own"
    half: bool = False

    @property
    def compiled(self) -> bool:
        return self.scan != "own"


WAYS = {
    "plain": Way("eager, attention weights, every elementwise step and every hidden layer in memory", None),
    "reference": Way("eager reference operators, as `iefvad train` without --fused", "reference"),
    "compile": Way("torch.compile of the reference, but for its loop over time", "reference", "loop"),
    "associative": Way("torch.compile of the reference, loop as torch's associative_scan", "reference", "associative"),
    "fused": Way("as `iefvad train --fused`", "auto"),
    "fused-bfloat16": Way("as `iefvad train --fused --precision bfloat16`", "auto", half=True),
}
FUSED = ("fused", "fused-bfloat16")
COMPILED = ("compile", "associative")


class _AssociativeScan(nn.Module):
    """The network's scan by `associative_scan`, on the same parameter."""

    def __init__(self, scan: Any) -> None:
        super().__init__()
        self.scan = scan

    def forward(
        self, x: Tensor, var: Tensor, lengths: Tensor, initial_state: None = None, nu: Tensor | None = None
    ) -> Scan:
        if nu is not None:
            raise ValueError("the robust update has no associative form")
        valid = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        noise = self.scan.process_noise()
        found = associative.kalman_scan(torch.where(valid, x, 0), torch.where(valid, var, 1), noise, self.scan.eps)
        mean, variance, gain = (torch.where(valid, values, 0) for values in found)
        return Scan(mean, variance, gain, (mean[:, -1], variance[:, -1]))


class Training:
    """A network of one way with its optimiser; all ways made from one `seed` start with the same weights.

    Attributes:
        model: the eager module, whose parts are timed by :class:`Sections`.
    """

    def __init__(self, name: str, config: ModelConfig, device: torch.device, *, seed: int = 0) -> None:
        way = WAYS[name]
        torch.manual_seed(seed)
        network = Network(config, backend=way.backend or "reference").to(device)
        self.name, self.way, self.device = name, way, device
        self.model: nn.Module = network if way.backend else PlainIEFVAD(network)
        if way.scan == "associative":
            network.scan = _AssociativeScan(network.scan)  # type: ignore[assignment]
        elif way.scan == "loop":
            assert network.scan is not None
            network.scan.forward = torch.compiler.disable(network.scan.forward)  # type: ignore[method-assign]
        self.network = torch.compile(self.model, dynamic=False) if way.compiled else self.model
        # The plain way takes torch's default; the trainer's optimiser is one kernel.
        fused = True if way.backend else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=fused)
        self.model.train()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What the forward pass runs under."""
        if self.way.half:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def loss(self, batch: Batch) -> Tensor:
        """The total loss."""
        with self.autocast():
            if self.way.backend is None:
                loss: Tensor = self.network(batch, WEIGHTS)
                return loss
            output = self.network(batch.image, batch.event, batch.lengths)
            return total_loss(output, batch.labels, batch.lengths, WEIGHTS).total

    def step(self, batch: Batch) -> None:
        """One optimiser step: for all but the plain way the trainer's own."""
        if self.way.backend is not None:
            training_step(self.network, batch, self.optimizer, WEIGHTS, autocast=self.autocast())
            return
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The configuration in which all ways compute the same loss."""
    return replace(config, dropout=0.0)


class Sections:
    """Times the parts of eager training steps: each part's forward and backward pass, and the optimiser.

    The graph is cut behind the encoders, the fusion, the scan and the refinement: what comes out of a part is
    detached, and once the gradients of it are known, they are sent through the part on its own. The gradients are those
    of one backward pass; `clock` waits for the device. What lies between two parts counts with the later one.
    """

    def __init__(self, training: Training, clock: Callable[[], float]) -> None:
        self.training, self.clock = training, clock
        self.seconds: dict[str, float] = {}
        self._cuts: list[tuple[str, list[Tensor], list[Tensor]]] = []
        self._last = 0.0
        model: Any = training.model
        for encoder in model.encoders.values():
            self._cut(encoder, "forward", "encoders")
        self._cut(model.fusion, "with_terms" if training.way.backend else "forward", "fusion and loss terms")
        self._cut(model.scan, "forward", "scan")
        self._cut(model.refinement, "forward", "refinement")

    def step(self, batch: Batch) -> None:
        """One step as `Training.step`, adding to `seconds` by section."""
        self._cuts = []
        self._last = self.clock()
        loss = self.training.loss(batch)
        self.training.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._mark("classifier and loss")
        for section, outputs, leaves in reversed(self._cuts):
            pairs = [(out, leaf.grad) for out, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
            torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
            self._mark(section)
        self._cuts = []
        self.training.optimizer.step()
        self._mark("optimiser")

    def _mark(self, section: str) -> None:
        now = self.clock()
        self.seconds[section] = self.seconds.get(section, 0.0) + now - self._last
        self._last = now

    def _cut(self, owner: Any, method: str, section: str) -> None:
        original = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            found = original(*arguments, **options)
            outputs: list[Tensor] = []
            leaves: list[Tensor] = []
            cut = _detached(found, outputs, leaves)
            self._cuts.append((section, outputs, leaves))
            self._mark(section)
            return cut

        setattr(owner, method, timed)


def _detached(value: Any, outputs: list[Tensor], leaves: list[Tensor]) -> Any:
    """The value, a tensor or nested tuples of them, with leaves in place of the tensors that have a gradient."""
    if isinstance(value, Tensor):
        if not value.requires_grad:
            return value
        leaf = value.detach().requires_grad_()
        outputs.append(value)
        leaves.append(leaf)
        return leaf
    parts = [_detached(part, outputs, leaves) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
