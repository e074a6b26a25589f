"""Small calls of every operator, with inputs and the error that is allowed: what `selftest` runs.

Inputs are rounded to the dtype of the call, so that a reference in float64 takes the same numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .event_synthesis import event_synthesis
from .kalman_scan import kalman_scan
from .kalman_scan.paths import forced_path
from .low_rank_fusion import low_rank_fusion
from .precision_fusion import fusion_and_terms, fusion_terms, precision_fusion
from .refinement import refine

Tensors = Mapping[str, Tensor]
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64)


class Problem(NamedTuple):
    """One call of an operator.

    Attributes:
        operator: name of the public function.
        dtype: of the data.
        label: which shape and options, for messages.
        inputs: tensors by name, on the CPU. Those in floating point get gradients.
        call: ``call(inputs, backend)`` returns the outputs by name.
        relative: ``relative(name)`` returns the error that is allowed for an output, or for ``grad_NAME`` of an input,
            relative to its largest number (at least 1).
        around: context in which the call runs; it may choose among a backend's ways.
    """

    operator: str
    dtype: torch.dtype
    label: str
    inputs: Tensors
    call: Callable[[Tensors, str], dict[str, Tensor]]
    relative: Callable[[str], float]
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def units(dtype: torch.dtype, roundings: float) -> float:
    """Return so many roundings of a dtype as a relative error."""
    return roundings * torch.finfo(dtype).eps / 2


def _random(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype, low: float | None = None) -> Tensor:
        """Normal numbers, or uniform ones in [low, low + 1)."""
        if low is None:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return (torch.rand(shape, generator=generator, dtype=torch.float64) + low).to(dtype)

    return draw


def _parameter(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _lengths(steps: int, batch: int, like: Tensor) -> Tensor:
    return torch.tensor([steps, steps // 2, 0, 1][:batch], device=like.device)


# Fusion: two exponentials of up to 5, two divisions and about twenty other roundings reach a result; half precision
# rounds inputs of the last step, outputs and gradients. The norm term is a difference of two norms near √D, each of a
# sum that rounds log2(D) times. The other terms and the gradients of ν are sums over all n elements, whose roundings
# add up like √n.
def _fusion_relative(dtype: torch.dtype, shape: tuple[int, int, int], name: str) -> float:
    exact, dim = _parameter(dtype), shape[2]
    own: float = units(dtype, 4) if dtype in HALVES else units(exact, 54)
    if name == "norm":
        return max(units(exact, 54), 2 * math.sqrt(dim) * units(exact, 4 + max(dim, 2).bit_length() / 2))
    if name in ("kl_img", "kl_evt", "cosine", "grad_nu_img", "grad_nu_evt"):
        return max(own, units(exact, 54 + math.sqrt(math.prod(shape))))
    return own


FUSION = ("precision_fusion", "fusion_terms", "fusion_and_terms")


def fusion(operator: str, dtype: torch.dtype, shape: tuple[int, int, int], per_dim: bool) -> Problem:
    """Return a problem of one of `FUSION` with learned ν, by dimension or not, and with lengths where it takes them."""
    draw = _random(sum(shape))
    inputs = {name: draw(*shape, dtype=dtype) for name in ("mu_img", "logvar_img", "mu_evt", "logvar_evt")}
    inputs["nu_img"] = draw(shape[2] if per_dim else 1, dtype=_parameter(dtype), low=2.0)
    inputs["nu_evt"] = draw(1, dtype=_parameter(dtype), low=5.0)

    def call(given: Tensors, backend: str) -> dict[str, Tensor]:
        *data, nu_img, nu_evt = given.values()
        options: dict[str, Any] = {"nu": (nu_img, nu_evt), "backend": backend}
        if operator == "precision_fusion":
            return precision_fusion(*data, **options)._asdict()
        options["lengths"] = _lengths(shape[1], shape[0], data[0])
        if operator == "fusion_terms":
            return fusion_terms(*data, **options)._asdict()
        fused, terms = fusion_and_terms(*data, **options)
        return {**fused._asdict(), **terms._asdict()}

    relative = functools.partial(_fusion_relative, dtype, shape)
    return Problem(operator, dtype, f"{shape}{', ν per dimension' if per_dim else ''}", inputs, call, relative)


def low_rank(dtype: torch.dtype, shape: tuple[int, int, int], rank: int) -> Problem:
    """Return a problem of `low_rank_fusion` with learned ν and lengths."""
    draw, exact = _random(sum(shape) + rank), _parameter(dtype)
    inputs = {name: draw(*shape, dtype=dtype) for name in ("mu_img", "logvar_img", "mu_evt", "logvar_evt")}
    for name in ("factor_img", "factor_evt"):
        inputs[name] = draw(shape[2], rank, dtype=exact) / math.sqrt(max(shape[2], rank))
    inputs["nu_img"], inputs["nu_evt"] = (draw(1, dtype=exact, low=low) for low in (2.0, 5.0))

    def call(given: Tensors, backend: str) -> dict[str, Tensor]:
        *data, nu_img, nu_evt = given.values()
        lengths = _lengths(shape[1], shape[0], data[0])
        return low_rank_fusion(*data, nu=(nu_img, nu_evt), lengths=lengths, backend=backend)._asdict()

    # As the fusion; sums over D and over 2r, and an inverse of a matrix with eigenvalues in [1, 5] about three times.
    # Gradients of ν and of the factors are sums over all rows besides, whose roundings add up like √n.
    sums = 15 * (4 + shape[2].bit_length() / 2 + 2 * rank) + math.sqrt(math.prod(shape))
    allowed = max(units(exact, 54 + sums), units(dtype, 4) if dtype in HALVES else 0.0)
    return Problem("low_rank_fusion", dtype, f"{shape}, rank {rank}", inputs, call, lambda name: allowed)


def scan(dtype: torch.dtype, shape: tuple[int, int, int], path: str, *, carried: bool, robust: bool = False) -> Problem:
    """Return a problem of `kalman_scan` with lengths, on one of its two paths (which only the Triton kernels have)."""
    draw, (batch, steps, dim) = _random(sum(shape) + carried), shape
    exact = _parameter(dtype)
    inputs = {"x": draw(*shape, dtype=dtype), "var": draw(*shape, dtype=dtype, low=0.2)}
    inputs["process_noise"] = draw(dim, dtype=exact, low=0.0)
    if robust:
        inputs["nu"] = draw(1, dtype=exact, low=4.0)
    if carried:
        inputs |= {"s": draw(batch, dim, dtype=exact), "p": draw(batch, dim, dtype=exact, low=0.2)}

    def call(given: Tensors, backend: str) -> dict[str, Tensor]:
        state = (given["s"], given["p"]) if carried else None
        lengths, x = _lengths(steps, batch, given["x"]), given["x"]
        noise, nu = given["process_noise"], given.get("nu")
        found = kalman_scan(
            x, given["var"], lengths=lengths, process_noise=noise, nu=nu, initial_state=state, backend=backend
        )
        return {**dict(zip(("mean", "var", "gain"), found[:3], strict=True)), "s": found.state[0], "p": found.state[1]}

    # About ten steps reach a state before it is forgotten, with a division and five roundings each; gradients of
    # parameters are sums over all of them. Half precision rounds outputs, and gradients twice.
    allowed = units(dtype, 4) if dtype in HALVES else units(dtype, 180)
    label = f"{shape}, {path}{', initial state' if carried else ''}{', robust' if robust else ''}"
    return Problem("kalman_scan", dtype, label, inputs, call, lambda name: allowed, lambda: forced_path(path, 8))


def refinement(dtype: torch.dtype, rows: int, dim: int, hidden: int, blocks: int, steps: int, every: int) -> Problem:
    """Return a problem of `refine`."""
    draw = _random(rows + dim)
    sizes = {"w1": (blocks, hidden, dim), "b1": (blocks, hidden), "w2": (blocks, dim, hidden), "b2": (blocks, dim)}
    inputs = {"z": draw(rows, dim, dtype=dtype)} | {name: draw(*size, dtype=dtype) for name, size in sizes.items()}
    for name in ("w1", "w2"):
        inputs[name] = inputs[name] * (0.4 / inputs[name].shape[-1] ** 0.5)
    # Hidden units are well on or well off: at ReLU's kink a rounding changes the gradient by a whole unit.
    inputs["b1"] = inputs["b1"].sign() * 3

    def call(given: Tensors, backend: str) -> dict[str, Tensor]:
        return {"z_N": refine(*given.values(), steps=steps, checkpoint_every=every, backend=backend)}

    # Sums of products in another order; half precision rounds the inputs of the products at every step.
    allowed = {torch.float64: 1e-13, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    label = f"{rows} tokens, D {dim}, H {hidden}, {blocks} of {steps} blocks, keep every {every}"
    return Problem("refine", dtype, label, inputs, call, lambda name: allowed)


def events(dtype: torch.dtype, shape: tuple[int, ...], normalize: str, polarity: str, carried: bool) -> Problem:
    """Return a problem of `event_synthesis`, with gradients where frames are floating point and `normalize` has one."""
    generator = torch.Generator().manual_seed(sum(shape))
    # Whole grey levels, so that every dtype counts the same events.
    frames = torch.randint(0, 40, shape, generator=generator).to(dtype)
    inputs = {"frames": frames}
    if carried:
        inputs["carry"] = frames.select(-4 if shape[-1] == 3 else -3, 0).flip(-2).contiguous()
    surrogate = 3.0 if dtype.is_floating_point and normalize != "none" else None

    def call(given: Tensors, backend: str) -> dict[str, Tensor]:
        options: dict[str, Any] = {"threshold": 7, "clamp": 3, "normalize": normalize, "polarity": polarity}
        maps = event_synthesis(
            given["frames"], carry=given.get("carry"), surrogate=surrogate, backend=backend, **options
        )
        return {"maps": maps}

    def relative(name: str) -> float:
        if name == "maps":  # counts are exact, and their quotient is rounded once
            return units(torch.float32, 1)
        # The slope hangs on two exponentials of up to 17, four divisions and sixteen roundings; of σ near 1 the
        # reference rounds the difference to 1.
        return units(_parameter(dtype), 90) + (units(dtype, 2) if dtype in HALVES else 0.0)

    label = f"{shape}, {normalize}, {polarity}{', carried frame' if carried else ''}"
    return Problem("event_synthesis", dtype, label, inputs, call, relative)


def problems(operator: str, dtype: torch.dtype, small: bool = False) -> list[Callable[[], Problem]]:
    """Return the problems of an operator in one dtype; each is made when it is called.

    Args:
        operator: name of the public function.
        dtype: of the data.
        small: for triton's interpreter, which takes seconds for what a kernel does at once.
    """
    make = functools.partial
    if operator in FUSION:
        # Odd sizes; rows of one tile; rows longer than a tile that backward holds.
        shapes = (
            [(2, 13, 5), (2, 9, 96), (1, 3, 2500)] if small else [(2, 63, 5), (3, 9, 768), (1, 5, 2048), (1, 3, 5000)]
        )
        return [make(fusion, operator, dtype, shape, per_dim) for shape in shapes for per_dim in (False, True)]
    if operator == "low_rank_fusion":
        return [
            make(low_rank, dtype, shape, rank) for shape, rank in (((2, 63, 5), 3), ((3, 9, 768), 4), ((1, 5, 130), 16))
        ]
    if operator == "kalman_scan":
        shape = (3, 35, 40) if small else (3, 70, 200)  # longer than the run of steps behind a kept state
        ways = [("sequential", False), ("chunks", False), ("sequential", True)]
        return [
            make(scan, dtype, shape, path, carried=carried, robust=robust)
            for carried in (False, True)
            for path, robust in ways
        ]
    if operator == "refine":
        # All steps in one launch; products; weight gradients in several parts, and the library's products.
        few, many, more = (19, 63, 70), (257, 64, 48) if small else (300, 128, 256), (2100, 64, 48)
        return [
            make(refinement, dtype, *sizes, blocks=blocks, steps=steps, every=every)
            for sizes in ((few, many) if small else (few, many, more))
            for blocks, steps, every in ((2, 2, 1), (1, 3, 2))
        ]
    # Event synthesis. 16-byte loads, words and shifted words of byte frames; RGB and luma.
    frames = [(2, 5, 16, 20, 3), (2, 3, 5, 7, 3), (4, 12, 24), (2, 4, 7, 9)]
    kinds = [(normalize, shape) for normalize in ("clamp", "segment", "batch", "none") for shape in frames]
    return [
        make(events, dtype, shape, normalize, ("merged", "split")[number // 2 % 2], carried=number % 3 == 1)
        for number, (normalize, shape) in enumerate(kinds)
    ]


def dtypes(operator: str) -> Sequence[torch.dtype]:
    """Return the dtypes that an operator takes."""
    return (torch.uint8, *DTYPES) if operator == "event_synthesis" else DTYPES
