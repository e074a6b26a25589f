"""Peak memory of one training step of each way, each in a process of its own.

    python -m bench.end_to_end._train_memory --way fused --device cpu --shape 16 256 768

prints {"state_mb", "step_mb", "peak_mb"}: weights, optimiser state and batch; the highest memory during a step beyond
them (gradients and all that the backward pass needs); the sum. On the CPU that is resident memory, on a GPU what
torch's allocator handed out. Both are of a second step, when nothing is compiled or set up any more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from bench.end_to_end._ways import WAYS, Training
from bench.memory import answer, ask, peak_of
from iefvad.data.batches import Batch
from iefvad.model.config import ModelConfig


def random_batch(shape: Sequence[int], device: torch.device, seed: int = 0) -> Batch:
    """(B, T, D) random features of full length, every other video abnormal."""
    batch, segments, dim = shape
    generator = torch.Generator().manual_seed(seed)
    image, event = torch.randn(2, batch, segments, dim, generator=generator)
    labels = (torch.arange(batch) % 2).float()
    return Batch(image, event, torch.full((batch,), segments), labels).to(device)


def measure_here(name: str, shape: Sequence[int], heads: int, device: torch.device) -> dict[str, float]:
    """`state_mb`, `step_mb`, `peak_mb` of one step, measured in this process."""
    training = Training(name, ModelConfig(dim=shape[2], heads=heads), device)
    batch = random_batch(shape, device)
    training.step(batch)
    training.optimizer.zero_grad(set_to_none=True)
    held = [*training.model.parameters(), *training.model.buffers(), *vars(batch).values()]
    held += [value for state in training.optimizer.state.values() for value in state.values()]
    state = sum(tensor.nbytes for tensor in held) / 1e6
    step = peak_of(lambda: training.step(batch), device)
    return {"state_mb": state, "step_mb": step, "peak_mb": state + step}


def measure(name: str, shape: Sequence[int], heads: int, device: torch.device, timeout: float) -> dict[str, Any]:
    """One record of a way, with the three numbers or a `reason`, from a process of its own."""
    record: dict[str, Any] = {"provider": name, "shape": list(shape), "state_mb": None, "step_mb": None}
    record |= {"peak_mb": None, "reason": None}
    arguments = ["--way", name, "--device", str(device), "--heads", str(heads), "--shape", *map(str, shape)]
    return record | ask("bench.end_to_end._train_memory", arguments, timeout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the record of one way as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.end_to_end._train_memory")
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--shape", type=int, nargs=3, default=[16, 256, 768])
    options = parser.parse_args(arguments)
    return answer(lambda: measure_here(options.way, options.shape, options.heads, torch.device(options.device)))


if __name__ == "__main__":
    raise SystemExit(main())
