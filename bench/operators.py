"""What is measured: the cases of each operator, their random inputs, and the work they cannot avoid.

The work of a pass is a lower bound: every input read once, every output written once, and the arithmetic of the
formula without anything computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ief_kernels

SIZES = ("inference", "odd", "small", "training", "long")
CALLS = ("call-overhead", "call-overhead-training")
"""Sizes at which the kernel's work is nothing, so that the time is that of Python and torch around it."""

FRAME = (16, 256, 340, 3)
STEPS = 10


@dataclass(frozen=True)
class Case:
    """One operator on one shape and dtype.

    Attributes:
        op: name in `OPERATORS`.
        size: which of `SIZES` or `CALLS`, or a variant: "robust", "surrogate".
        shape: of the first input: (B, T, D), or (N, S, H, W, 3) frames, or (n, H, W, 3) of one video.
        dtype: of the floating-point inputs.
        trains: gradients are wanted, so backward is timed too.
        latency: a call's time on an idle device is what counts, launches included.
        nu: degrees of freedom of the robust scan, else None.
        calls: number of calls in a row that one sample is the mean of.
        steps: number of blocks of `refine`.
    """

    op: str
    size: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    trains: bool = True
    latency: bool = False
    nu: float | None = None
    calls: int = 1
    steps: int = STEPS


class Work(NamedTuple):
    """Bytes moved and floating-point (or integer) operations done, at least."""

    bytes: int
    operations: int

    def __add__(self, other: object) -> Work:
        if not isinstance(other, Work):
            return NotImplemented
        return Work(self.bytes + other.bytes, self.operations + other.operations)


Inputs = dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """What the benchmark needs to know of an operator.

    Attributes:
        inputs: random arguments for a case; those that carry gradients require them if the case trains.
        work: (forward, backward) of a case.
        graded: the outputs that get a gradient in training.
        ceiling: "copy" where moving bytes bounds it, "gemm" where the matrix products do.
    """

    inputs: Callable[[Case, torch.device], Inputs]
    work: Callable[[Case], tuple[Work, Work]]
    graded: Callable[[Any], Sequence[Tensor]]
    ceiling: str = "copy"


def tensors_of(result: Any) -> list[Tensor]:
    """All tensors of a nested tuple, in order; the scan's `state` is left out, as plain code has none."""
    if isinstance(result, Tensor):
        return [result]
    parts = result[:3] if isinstance(result, ief_kernels.Scan) else result
    return [tensor for part in parts for tensor in tensors_of(part)]


def _bytes(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


# ---------------------------------------------------------------- events


def _video(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Frames whose pixels wander by up to 12 grey levels around a still picture: about a third of them fire."""
    still = torch.randint(20, 230, (*shape[:-4], 1, *shape[-3:]), dtype=torch.uint8, device=device)
    return still + torch.randint(0, 25, shape, dtype=torch.uint8, device=device)


def _frames(case: Case, device: torch.device) -> Inputs:
    frames = _video(case.shape, device)
    return {"frames": frames.to(case.dtype).requires_grad_(case.trains) if case.trains else frames}


def _event_work(case: Case) -> tuple[Work, Work]:
    pixels = prod(case.shape[:-1])
    size = _bytes(case.dtype) if case.trains else 1
    maps = 4 * pixels // case.shape[-4]
    # five operations for Y, then difference, absolute value, comparison and count
    forward = Work(3 * size * pixels + maps, 9 * pixels)
    # backward writes three gradients per pixel; a sigmoid's slope is about eight operations
    return forward, Work(6 * size * pixels + maps, 20 * pixels)


def _crop_work(case: Case) -> tuple[Work, Work]:
    frames, height, width, _ = case.shape
    resized = frames * 256 * 340
    # bilinear: three channels, two directions, two products and a sum each
    return Work(3 * frames * height * width + frames // 16 * 10 * 4 * 224 * 224, (9 + 18) * resized), Work(0, 0)


# ---------------------------------------------------------------- fusion


def _beliefs(case: Case, device: torch.device) -> Inputs:
    names = ("mu_img", "logvar_img", "mu_evt", "logvar_evt")
    return {name: torch.randn(case.shape, device=device).to(case.dtype).requires_grad_(case.trains) for name in names}


def _lengths(case: Case) -> list[int]:
    """From all T steps down to half of them."""
    batch, steps, _ = case.shape
    return [steps - steps // 2 * row // max(batch - 1, 1) for row in range(batch)]


def _ragged_beliefs(case: Case, device: torch.device) -> Inputs:
    return {**_beliefs(case, device), "lengths": torch.tensor(_lengths(case), device=device)}


def _fusion_work(case: Case) -> tuple[Work, Work]:
    elements, size = prod(case.shape), _bytes(case.dtype)
    # forward: 4 in, 4 out; backward: 4 in and the gradients of mean and var, 4 out. An exponential counts as one.
    return Work(8 * size * elements, 16 * elements), Work(10 * size * elements, 34 * elements)


def _terms_work(case: Case) -> tuple[Work, Work]:
    elements, size = prod(case.shape), _bytes(case.dtype)
    valid = sum(_lengths(case)) * case.shape[-1]
    return Work(size * 4 * valid, 14 * valid), Work(size * (4 * valid + 4 * elements), 14 * valid)


def _fusion_terms_work(case: Case) -> tuple[Work, Work]:
    elements, size = prod(case.shape), _bytes(case.dtype)
    valid = sum(_lengths(case)) * case.shape[-1]
    # as above, but padding need not be read; the terms: two divergences, two norms and a dot product
    forward = Work(size * (4 * valid + 4 * elements), 30 * valid)
    return forward, Work(size * (6 * valid + 4 * elements), 48 * valid)


RANK = 4


def _correlated_beliefs(case: Case, device: torch.device) -> Inputs:
    """Factors whose columns have norms of about 1, in the dtype of the arithmetic."""
    exact = torch.float64 if case.dtype == torch.float64 else torch.float32
    dim = case.shape[-1]
    factors = {
        name: (torch.randn(dim, RANK, device=device, dtype=exact) * dim**-0.5).requires_grad_(case.trains)
        for name in ("factor_img", "factor_evt")
    }
    return {**_beliefs(case, device), **factors}


def _low_rank_work(case: Case) -> tuple[Work, Work]:
    elements, size = prod(case.shape), _bytes(case.dtype)
    square = RANK * RANK
    # Bytes as the fusion. Products of two columns: three blocks of T and three forms; in the backward pass T again,
    # three blocks of the gradient of its inverse, and eight products of a block with a row of a factor.
    forward = Work(8 * size * elements, (30 + 2 * 6 * square) * elements)
    return forward, Work(10 * size * elements, (90 + 2 * 14 * square) * elements)


# ---------------------------------------------------------------- scan


def _scan_inputs(case: Case, device: torch.device) -> Inputs:
    x = torch.randn(case.shape, device=device).to(case.dtype)
    var = (torch.rand(case.shape, device=device) + 0.1).to(case.dtype)
    exact = torch.float64 if case.dtype == torch.float64 else torch.float32  # a parameter keeps its precision
    noise = (torch.rand(case.shape[-1], device=device, dtype=exact) * 0.5 + 0.1).requires_grad_(case.trains)
    extra: Inputs = {} if case.nu is None else {"nu": case.nu}
    return {"x": x.requires_grad_(case.trains), "var": var.requires_grad_(case.trains), "process_noise": noise, **extra}


def _scan_work(case: Case) -> tuple[Work, Work]:
    elements, size = prod(case.shape), _bytes(case.dtype)
    # forward: x, var in; mean, var, gain out. backward: x, var, both states and one gradient in, two out.
    return Work(5 * size * elements, 8 * elements), Work(7 * size * elements, 24 * elements)


# ---------------------------------------------------------------- refinement


def _refine_inputs(case: Case, device: torch.device) -> Inputs:
    """Half of the hidden units are on, half off, each by ten standard deviations of its input.

    Where one lies within rounding of 0, two correct orders of summation give different gradients.
    """
    dim = case.shape[-1]
    bound = dim**-0.5

    def uniform(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).uniform_(-bound, bound)

    values = {
        "z": torch.randn(case.shape, device=device),
        "w1": uniform(case.steps, dim, dim),
        "b1": 6 * uniform(case.steps, dim).sign(),
        "w2": 0.1 * uniform(case.steps, dim, dim),  # small, so that z stays near the size that the margin is for
        "b2": uniform(case.steps, dim),
    }
    return {name: value.to(case.dtype).requires_grad_(case.trains) for name, value in values.items()}


def _refine_work(case: Case) -> tuple[Work, Work]:
    dim, size = case.shape[-1], _bytes(case.dtype)
    elements, weights = prod(case.shape), case.steps * 2 * dim * dim
    products = 2 * weights * (elements // dim)
    return Work(size * (2 * elements + weights), products), Work(size * (3 * elements + 2 * weights), 2 * products)


# ---------------------------------------------------------------- tables

OPERATORS: dict[str, Operator] = {
    "event_synthesis": Operator(_frames, _event_work, tensors_of),
    "ten_crop_events": Operator(_frames, _crop_work, tensors_of),
    "precision_fusion": Operator(_beliefs, _fusion_work, lambda fusion: fusion[:2]),
    "fusion_terms": Operator(_ragged_beliefs, _terms_work, tensors_of),
    "fusion_and_terms": Operator(
        _ragged_beliefs, _fusion_terms_work, lambda result: [*result[0][:2], *tensors_of(result[1])]
    ),
    "low_rank_fusion": Operator(_correlated_beliefs, _low_rank_work, lambda fusion: fusion[:2]),
    "kalman_scan": Operator(_scan_inputs, _scan_work, lambda scan: scan[:1]),
    "refine": Operator(_refine_inputs, _refine_work, tensors_of, ceiling="gemm"),
}


def cases(device: torch.device, *, quick: bool = False) -> list[Case]:
    """All cases for a kind of device; with `quick`, those that a minute on two cores suffices for."""
    if device.type == "cuda":
        return _cuda_cases(quick)
    return _cpu_cases(quick)


def _cpu_cases(quick: bool) -> list[Case]:
    training, inference, long, odd = (16, 256, 768), (1, 256, 768), (1, 8192, 768), (3, 63, 500)
    small = (4, 256, 768)
    segments = 2 if quick else 8
    found = [
        Case("event_synthesis", "training", (segments, *FRAME), torch.uint8, trains=False),
        Case("event_synthesis", "odd", (2, 7, 131, 173, 3), torch.uint8, trains=False),
        Case("ten_crop_events", "training", (16 if quick else 64, 240, 320, 3), torch.uint8, trains=False),
    ]
    for op in ("precision_fusion", "fusion_and_terms", "kalman_scan"):
        found.append(Case(op, "odd", odd))
        found.append(Case(op, "small", small))
        if op == "precision_fusion" or not quick:
            found.append(Case(op, "training", training))
    found.append(Case("low_rank_fusion", "odd", odd))
    if not quick:
        found += [Case("low_rank_fusion", size, shape) for size, shape in (("small", small), ("training", training))]
        found.append(Case("low_rank_fusion", "inference", inference, trains=False, latency=True))
    found += _call_cases()
    if quick:
        return [*found, Case("refine", "odd", odd)]
    found += [
        Case("event_synthesis", "inference", (1, *FRAME), torch.uint8, trains=False, latency=True),
        Case("event_synthesis", "long", (48, *FRAME), torch.uint8, trains=False),
        Case("event_synthesis", "surrogate", (2, *FRAME), torch.float32),
        Case("kalman_scan", "robust", training, nu=8.0),
        Case("refine", "small", small),
        Case("refine", "training", training),
        Case("refine", "training", training, torch.bfloat16),
        Case("refine", "inference", inference, trains=False, latency=True),
        Case("refine", "odd", odd),
    ]
    for op in ("precision_fusion", "fusion_and_terms", "kalman_scan"):
        found.append(Case(op, "inference", inference, trains=False, latency=True))
        found.append(Case(op, "long", long))
        found += [Case(op, "training", training, dtype) for dtype in (torch.bfloat16, torch.float64)]
    return sorted(found, key=lambda case: list(OPERATORS).index(case.op))


def _call_cases() -> list[Case]:
    """Calls on a few elements, without gradients and with; `refine` with one block."""
    without, training = CALLS
    frames = Case("event_synthesis", without, (1, 4, 4, 8, 3), torch.uint8, trains=False, calls=100)
    found = [frames]
    for op in ("precision_fusion", "fusion_terms", "fusion_and_terms", "kalman_scan", "refine"):
        found.append(Case(op, without, (1, 4, 8), trains=False, calls=100, steps=1))
        found.append(Case(op, training, (1, 4, 8), calls=100, steps=1))
    return found


def _cuda_cases(quick: bool) -> list[Case]:
    training, inference, odd = (128, 256, 768), (1, 256, 768), (3, 63, 500)
    small, long = (16, 256, 768), (1, 16384, 768)
    found = [
        Case("event_synthesis", "training", (16 if quick else 128, *FRAME), torch.uint8, trains=False),
        Case("event_synthesis", "odd", (2, 7, 131, 173, 3), torch.uint8, trains=False),
    ]
    dtypes = (torch.bfloat16,) if quick else (torch.float32, torch.bfloat16)
    for op in ("precision_fusion", "fusion_and_terms", "kalman_scan", "refine"):
        found += [Case(op, "training", training, dtype) for dtype in dtypes]
        found.append(Case(op, "odd", odd))
    found.append(Case("low_rank_fusion", "odd", odd))  # it has no kernel for a GPU: the reference and torch.compile
    if quick:
        return found
    found += [
        Case("event_synthesis", "inference", (1, *FRAME), torch.uint8, trains=False, latency=True),
        Case("event_synthesis", "surrogate", (16, *FRAME), torch.float32),
        Case("kalman_scan", "long", long),
        Case("kalman_scan", "robust", training, nu=8.0),
        Case("refine", "inference", inference, torch.bfloat16, latency=True),
        Case("refine", "inference", inference, torch.float32, trains=False, latency=True),
    ]
    for op in ("precision_fusion", "fusion_and_terms", "kalman_scan", "refine"):
        found.append(Case(op, "small", small))
        found.append(Case(op, "training", training, torch.float16))
        if op != "refine":
            found.append(Case(op, "inference", inference, trains=False, latency=True))
    return sorted(found, key=lambda case: list(OPERATORS).index(case.op))
