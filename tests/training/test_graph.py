"""Steps from graphs, with a stand-in for a CUDA graph that works on the CPU: what is replayed is what was captured."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iefvad.checkpoints.hub import IEFVAD
from iefvad.data.batches import Batch, Clips, split_validation
from iefvad.model.config import ModelConfig
from iefvad.model.losses import LossWeights
from iefvad.training.distributed import Processes
from iefvad.training.graph import LENGTHS, WARM_UPS, GraphedStep, pad, padded_length
from iefvad.training.run import Run
from iefvad.training.settings import TrainConfig, resolve
from iefvad.training.sources import load_benchmark
from iefvad.training.step import make_optimizer, set_rate, training_step
from iefvad.training.trainer import Trainer, why_no_graph
from tests.helpers.stores import write_store

CPU, LONGEST, STEPS = torch.device("cpu"), 40, 36


def batches(count: int) -> list[Batch]:
    """Two clips each, of up to `LONGEST` segments."""
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        lengths = torch.randint(2, LONGEST + 1, (2,), generator=random)
        image, event = torch.randn(2, 2, int(lengths.max()), 16, generator=random)
        for features in (image, event):
            features[torch.arange(features.shape[1]) >= lengths[:, None]] = 0
        found.append(Batch(image, event, lengths, torch.tensor([0.0, 1.0])))
    return found


class Pretended:
    """Captures a step like a CUDA graph: it runs again on the same memory, and writes its losses where they were."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        losses = torch.full((4,), torch.nan)

        def replay() -> None:
            self.replays += 1
            losses.copy_(run())

        return replay, losses


def train(how: Callable[[Callable[[Batch], Tensor]], Callable[[Batch], Tensor]], *, dropout: float = 0.1) -> Tensor:
    """Losses of the steps, and the weights of the classifier after them."""
    torch.manual_seed(0)
    config = ModelConfig(dim=16, heads=2, refine_steps=3, dropout=dropout)
    model = IEFVAD(config, backend="auto").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    step = how(lambda batch: training_step(model, batch, optimizer, LossWeights()))
    torch.manual_seed(1)
    losses = [step(batch).clone() for batch in batches(STEPS)]
    return torch.cat([*losses, model.classifier.weight.detach().flatten()])


# float32 sums over padded rows in another order, over all steps; the masks of dropout are the same.
def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return train(lambda step: step)


def test_padding_changes_nothing(plain: Tensor) -> None:
    assert_same(train(lambda step: GraphedStep(step, CPU, LONGEST)), plain)


def test_replayed_steps_train_as_plain_ones(plain: Tensor) -> None:
    capture = Pretended()
    assert_same(train(lambda step: GraphedStep(step, CPU, LONGEST, capture=capture)), plain)
    shapes = Counter(padded_length(batch.image.shape[1], LONGEST) for batch in batches(STEPS))
    assert capture.captures == sum(count > WARM_UPS for count in shapes.values()) > 1
    assert capture.replays == sum(max(0, count - WARM_UPS) for count in shapes.values())


def test_steps_that_cannot_be_captured_run_plainly(plain: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    attempts = 0

    def fail(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    assert_same(train(lambda step: GraphedStep(step, CPU, LONGEST, capture=fail)), plain)
    out = capsys.readouterr().out
    assert attempts == 1 and out.count("note:") == 1
    assert "operation not permitted when stream is capturing; so nothing is captured" in out


@pytest.mark.parametrize("longest", [1, 5, 32, 200, 256])
def test_lengths_are_few_and_never_shorter(longest: int) -> None:
    found = [padded_length(segments, longest) for segments in range(1, longest + 1)]
    assert all(segments <= length <= longest for segments, length in enumerate(found, 1))
    assert len(set(found)) <= LENGTHS and found == sorted(found)
    assert padded_length(longest + 7, longest) == longest + 7


def test_padding_is_zeros() -> None:
    (batch,) = batches(1)
    segments = batch.image.shape[1]
    padded = pad(batch, segments + 3)
    assert torch.equal(padded.image[:, :segments], batch.image) and not padded.event[:, segments:].any()
    assert pad(batch, segments) is batch


def test_what_captures_nothing_is_said() -> None:
    gpu = torch.device("cuda")
    assert why_no_graph(Processes(), gpu) is None
    assert "several processes" in str(why_no_graph(Processes(0, 2, 0), gpu))
    assert "nothing to capture on cpu" in str(why_no_graph(Processes(), CPU))


def test_the_rate_of_a_graph_is_a_tensor_that_stays() -> None:
    settings = resolve(TrainConfig(lr=0.5))
    model = torch.nn.Linear(2, 1)
    plain, captured = (make_optimizer(model, settings, capturable=capturable) for capturable in (False, True))
    rate = captured.param_groups[0]["lr"]
    set_rate(plain, 0.5)
    set_rate(captured, 0.5)
    assert plain.param_groups[0]["lr"] == 0.25
    assert captured.param_groups[0]["lr"] is rate and rate.item() == 0.25 and captured.param_groups[0]["capturable"]


def test_a_training_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_store(tmp_path / "store", train=16)
    losses = []
    for graph in (False, True):
        settings = resolve(
            TrainConfig(
                features=str(store),
                out=str(tmp_path / f"{graph}"),
                preset="ucf-crime",
                cuda_graph=graph,
                epochs=2,
                batch=2,
            )
        )
        benchmark = load_benchmark(settings, progress=False)
        training, held_out = split_validation(benchmark.train, 0.2, seed=0)
        run = Run.create(settings)
        trainer = Trainer(run, run.variants[0], 0, dim=benchmark.dim)
        trainer.fit(Clips(training, max_segments=16), held_out, [], progress=False)
        losses += [row["loss"] for row in run.history]
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-4)  # as above
    assert capsys.readouterr().out.count("note: --cuda-graph: there is nothing to capture on cpu") == 1
    Run.create(dataclasses.replace(settings, cuda_graph=False, resume=True))  # a run may go on without it
