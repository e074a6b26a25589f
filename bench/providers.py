"""The ways to compute an operator that are timed against each other, and why one does not serve a case."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ief_kernels
import ief_kernels.reference
from bench import associative, plain
from bench.operators import Case, Inputs

PROVIDERS = ("reference", "plain", "compile", "associative", "native", "triton", "cuda")
COMPILED = frozenset({"compile", "associative", "triton"})
"""Providers whose first call compiles."""

SLOW = frozenset({"compile", "associative"})
"""Providers that take from seconds to a minute to compile for one shape."""

# torch.compile unrolls the loop over t; beyond this compiling takes minutes.
UNROLLED = 64
# Plain code touches a whole (B, T, D) tensor at every step of the backward pass.
QUADRATIC = 16384


@dataclass
class Bound:
    """A provider on one input set: a call without arguments, and the leaves whose gradients are asked for."""

    call: Callable[[], Any]
    leaves: list[Tensor]
    gather: Callable[[tuple[Tensor, ...]], list[Tensor]] = list
    """Gradients of the leaves → gradients of the inputs in their order, for comparison."""


def refusal(provider: str, case: Case, device: torch.device, *, quick: bool = False) -> str | None:
    """Why a provider is not tried on a case; None if it is (it may still refuse when called)."""
    if provider == "associative" and (reason := _not_associative(case)):
        return reason
    if quick and (provider, case.op, case.size) != ("compile", "precision_fusion", "training") and provider in SLOW:
        return "compiling takes too long for --quick"
    if case.calls > 1 and provider in ("plain", "compile", "associative"):
        return "the overhead of a call is that of the package's own functions"
    if provider == "plain" and case.op == "low_rank_fusion":
        return "there is no plain code of it beside the reference"
    cuda = device.type == "cuda"
    if provider == "native" and cuda:
        return "its kernels run on the CPU"
    if provider == "cuda" and not cuda:
        return "needs a CUDA device"
    if provider == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1: the interpreter's time means nothing"
    if case.op == "ten_crop_events":
        return None if provider in ("plain", "reference", "native") else "the frames are resized on the host"
    if case.op == "kalman_scan":
        steps = case.shape[1]
        if provider == "compile" and steps > UNROLLED:
            return f"unrolls the loop: {steps} steps take minutes to compile"
        if provider == "plain" and cuda and steps > QUADRATIC:
            return "its backward pass is quadratic in T"
    if provider == "compile" and case.op == "refine" and not cuda and case.dtype != torch.float32:
        return "same matrix products as reference"
    return None


def _not_associative(case: Case) -> str | None:
    if case.op != "kalman_scan":
        return "the scan alone has an associative form"
    if case.nu is not None:
        return "the robust update is not associative"
    if case.dtype != torch.float32 or case.size not in ("training", "long"):
        return "compiling takes about a minute: only training and long, in float32"
    return None


def bind(provider: str, case: Case, inputs: Inputs) -> Bound:
    """A provider's call on these inputs."""
    if provider == "plain" and case.op == "refine":
        return _plain_refine(inputs)
    leaves = [value for value in inputs.values() if isinstance(value, Tensor) and value.requires_grad]
    return Bound(partial(_function(provider, case), **inputs), leaves)


def _function(provider: str, case: Case) -> Callable[..., Any]:
    if case.op == "ten_crop_events":
        return plain.ten_crop_events if provider == "plain" else partial(ten_crop_events, backend=provider)
    settings: dict[str, Any] = {}
    if case.op == "event_synthesis" and case.trains:
        settings["surrogate"] = 1.0
    if provider == "plain":
        name = "soft_event_synthesis" if settings else case.op
        return partial(getattr(plain, name), **settings)
    if provider == "associative":
        return torch.compile(associative.kalman_scan, fullgraph=True, dynamic=False)
    if provider in ("reference", "compile"):
        function = getattr(ief_kernels.reference, case.op)
        if provider == "compile":
            function = torch.compile(function, fullgraph=True, dynamic=False)
        return partial(function, **settings)
    backend = "native" if provider == "cuda" else provider
    return partial(getattr(ief_kernels, case.op), backend=backend, **settings)


def ten_crop_events(frames: Tensor, *, backend: str) -> Tensor:
    """Compute the event maps of ten crops as extraction does: resize by cv2, one map per segment, ten windows.

    Args:
        frames: (n, H, W, 3) uint8 RGB; frames after the last whole segment of 16 are left out.
        backend: of `event_synthesis`.

    Returns:
        (n // 16, 10, 224, 224) float32 in [0, 1].
    """
    from iefvad.video import crops, resize

    whole = frames[: len(frames) // 16 * 16]
    segments = torch.from_numpy(resize(whole.numpy())).unflatten(0, (-1, 16))
    maps = ief_kernels.event_synthesis(segments, backend=backend)
    return torch.from_numpy(crops(maps.numpy(), range(10)))


def _plain_refine(inputs: Inputs) -> Bound:
    z: Tensor = inputs["z"]
    trains = z.requires_grad
    module = plain.Refinement(*(inputs[name].detach() for name in ("w1", "b1", "w2", "b2")))
    module.requires_grad_(trains)
    parameters = list(module.parameters())

    def gather(grads: tuple[Tensor, ...]) -> list[Tensor]:
        if not grads:
            return []
        first, rest = grads[0], grads[1:]
        return [first, *(torch.stack(list(rest[kind::4])) for kind in range(4))]

    return Bound(partial(module, z), [z, *parameters] if trains else [], gather)
