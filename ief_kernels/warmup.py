"""Compile and measure the GPU kernels for given shapes before they are needed.

Run ``python -m ief_kernels.warmup`` on the machine with the GPU. It fills triton's cache and the file of measured
choices, so that a training's first step starts at once. Kernels are compiled in several processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from . import _triton
from ._measure import processors
from .dispatch import BackendUnavailable, choose
from .event_synthesis import event_synthesis
from .modules import KalmanScan, PrecisionFusion, Refinement

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Shapes(NamedTuple):
    """Sizes of the calls that are to come.

    Attributes:
        batch: B, clips.
        steps: T, segments per clip.
        dim: D.
        hidden: H of refinement.
        refine_steps: N of refinement.
        frames: frames per segment, height and width, of event synthesis.
        dtype: of the data; in half precision refinement runs under `torch.autocast`, as in training.
    """

    batch: int = 128
    steps: int = 256
    dim: int = 768
    hidden: int = 768
    refine_steps: int = 10
    frames: tuple[int, int, int] = (16, 256, 340)
    dtype: torch.dtype = torch.bfloat16


def _data(shapes: Shapes, device: torch.device) -> Tensor:
    data = torch.randn(shapes.batch, shapes.steps, shapes.dim, device=device, dtype=shapes.dtype)
    return data.requires_grad_()


def _lengths(shapes: Shapes, device: torch.device) -> Tensor:
    return torch.full((shapes.batch,), shapes.steps, device=device)


def _precision_fusion(shapes: Shapes, device: torch.device) -> None:
    with torch.no_grad():
        PrecisionFusion()(*(_data(shapes, device) for _ in range(4)))


def _fusion_and_terms(shapes: Shapes, device: torch.device) -> None:
    mu_img, logvar_img, mu_evt, logvar_evt = (_data(shapes, device) for _ in range(4))
    lengths = _lengths(shapes, device)
    fused, terms = PrecisionFusion().with_terms(mu_img, logvar_img, mu_evt, logvar_evt, lengths)
    (fused.mean.sum() + fused.var.sum() + sum(terms)).backward()


def _kalman_scan(shapes: Shapes, device: torch.device) -> None:
    scan = KalmanScan(shapes.dim, "learned").to(device)
    x, var, lengths = (
        _data(shapes, device),
        _data(shapes, device).detach().abs().requires_grad_(),
        _lengths(shapes, device),
    )
    scan(x, var, lengths).mean.sum().backward()
    with torch.no_grad():  # scoring, in chunks that carry the state on
        scan(x, var, lengths, scan(x, var, lengths).state)


def _refine(shapes: Shapes, device: torch.device) -> None:
    refinement = Refinement(shapes.dim, shapes.hidden, shapes.refine_steps).to(device)
    half = shapes.dtype != torch.float32
    rows = _data(shapes, device).reshape(-1, shapes.dim)
    with torch.autocast(device.type, dtype=shapes.dtype) if half else nullcontext():
        refined = refinement(rows)
        refined.sum().backward()
        with torch.no_grad():
            refinement(rows)


def _event_synthesis(shapes: Shapes, device: torch.device) -> None:
    event_synthesis(torch.zeros(shapes.batch, *shapes.frames, 3, dtype=torch.uint8, device=device))


OPERATORS: dict[str, Callable[[Shapes, torch.device], None]] = {
    "fusion_and_terms": _fusion_and_terms,
    "precision_fusion": _precision_fusion,
    "kalman_scan": _kalman_scan,
    "refine": _refine,
    "event_synthesis": _event_synthesis,
}


def call(name: str, shapes: Shapes, device: torch.device, compile_only: bool = False) -> float:
    """Call an operator as training and scoring do, and return the seconds it took.

    Args:
        name: of an operator in `OPERATORS`.
        shapes: sizes of the call.
        device: a GPU.
        compile_only: compile all configurations and measure none of them.
    """
    began = time.perf_counter()
    with _triton.compile_only() if compile_only else nullcontext():
        OPERATORS[name](shapes, device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _compile(name: str, shapes: Shapes, device: str) -> float:
    os.environ["IEF_KERNELS_QUIET"] = "1"
    return call(name, shapes, torch.device(device), compile_only=True)


def warmup(
    shapes: Shapes, names: Sequence[str] = tuple(OPERATORS), device: str = "cuda", processes: int = 1
) -> Iterator[str]:
    """Fill the caches for calls of these sizes.

    Args:
        shapes: sizes of the calls.
        names: of operators in `OPERATORS`.
        device: a GPU.
        processes: number of processes that compile, one operator each. 1: none beside this one.

    Yields:
        One line per operator.
    """
    served = []
    for name in names:
        dtype = torch.uint8 if name == "event_synthesis" else shapes.dtype
        try:
            choice = choose(name, "auto", torch.device(device), dtype)
        except BackendUnavailable as error:
            yield f"{name:<17} left out: {error}"
            continue
        if choice.backend == "triton":
            served.append(name)
        else:
            yield f"{name:<17} needs no warm-up: the backend is {choice.backend} ({choice.reason.rstrip('; ')})"
    if processes > 1 and len(served) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(served)), mp_context=context) as pool:
            compiling = {name: pool.submit(_compile, name, shapes, device) for name in served}
            compiled = {name: future.result() for name, future in compiling.items()}
    else:
        compiled = {}
    # One after the other: a measurement needs the GPU for itself.
    for name in served:
        text = f"compiled in {compiled[name]:.1f} s, measured" if name in compiled else "compiled and measured"
        yield f"{name:<17} {text} in {call(name, shapes, torch.device(device)):.1f} s"


def _parser() -> argparse.ArgumentParser:
    usual = Shapes()
    parser = argparse.ArgumentParser(
        prog="python -m ief_kernels.warmup",
        description="Compile and measure the GPU kernels for given shapes, so that the first step of a training starts "
        "at once. The caches are triton's and IEF_KERNELS_CACHE; `python -m ief_kernels.doctor` shows where they are.",
    )
    sizes = parser.add_argument_group("sizes of a training step")
    sizes.add_argument("--batch", type=int, default=usual.batch, help="clips per batch (default: %(default)s)")
    sizes.add_argument(
        "--steps", type=int, nargs="+", default=[usual.steps], help="segments per clip, several too (default: 256)"
    )
    sizes.add_argument("--dim", type=int, default=usual.dim, help="width of the features (default: %(default)s)")
    sizes.add_argument("--hidden", type=int, help="width inside refinement (default: that of the features)")
    sizes.add_argument(
        "--refine-steps", type=int, default=usual.refine_steps, help="steps of refinement (default: %(default)s)"
    )
    sizes.add_argument(
        "--frames",
        type=int,
        nargs=3,
        default=usual.frames,
        metavar=("S", "H", "W"),
        help="frames per segment, their height and width, for event_synthesis (default: 16 256 340)",
    )
    sizes.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: %(default)s")
    parser.add_argument(
        "--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS), metavar="NAME", help="default: all"
    )
    parser.add_argument("--device", default="cuda", help="GPU, such as cuda:1 (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=processors(), metavar="N", help="processes that compile (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the caches and return the exit status: 2 without a GPU."""
    asked = _parser().parse_args(argv)
    if not torch.cuda.is_available():
        print(
            "torch sees no GPU, so there is nothing to compile for; run this on the machine with the GPU. "
            "`python -m ief_kernels.doctor` shows the versions of torch and of the driver.",
            file=sys.stderr,
        )
        return 2
    for steps in asked.steps:
        shapes = Shapes(
            asked.batch,
            steps,
            asked.dim,
            asked.hidden or asked.dim,
            asked.refine_steps,
            tuple(asked.frames),
            DTYPES[asked.dtype],
        )
        print(f"({shapes.batch}, {shapes.steps}, {shapes.dim}) {asked.dtype} on {asked.device}", flush=True)
        for line in warmup(shapes, asked.operators, asked.device, asked.processes):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
