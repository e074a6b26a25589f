"""Valid calls of the registered operators (``torch.ops.ief_kernels.*``), and what breaks one of their operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ief_kernels.kalman_scan.native import kept_states

B, T, D, H, R = 2, 37, 6, 5, 3
NAN, INF = float("nan"), float("inf")
WRONG_NUMBERS: dict[str, tuple[float, ...]] = {
    "eps": (NAN, INF, -1.0),
    "factor": (NAN, -0.5, 2.0),
    "attenuation": (NAN, INF),
    "surrogate": (0.0, -1.0, NAN, INF),
    "steps": (-1, 5),
    "every": (0, -1),
    "threshold": (-1, 2**31),
    "clamp": (0, 256),
}


class Number(float):
    """A number of a call, which remembers what it is."""

    what: str

    def __new__(cls, what: str, value: float) -> Number:
        """Create it."""
        found = super().__new__(cls, value)
        found.what = what
        return found


class Whole(int):
    """The same for integers."""

    what: str

    def __new__(cls, what: str, value: int) -> Whole:
        """Create it."""
        found = super().__new__(cls, value)
        found.what = what
        return found


def _fusion(dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    return [torch.randn(B, T, D).to(dtype) for _ in range(4)], torch.tensor([T, 5])


def calls(dtype: torch.dtype = torch.float32) -> dict[str, list[Any]]:
    """Return the arguments of a valid call of each operator on the CPU, by the operator's name."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, var, lengths = torch.randn(B, T, D).to(dtype), torch.rand(B, T, D).to(dtype) + 0.1, torch.tensor([T, 9])
    states = [torch.rand(B, D, dtype=wide) for _ in range(2)]
    scan = [x, var, lengths, torch.rand(D, dtype=wide), torch.rand(1, dtype=wide), Number("eps", 1e-8), *states]
    rows = T if dtype == wide else kept_states(T)
    kept = [torch.rand(B, rows, D, dtype=wide) for _ in range(2)]
    incoming = [torch.randn(B, T, D).to(dtype) for _ in range(4)]
    beliefs, ends = _fusion(dtype)
    c = [torch.rand(D, dtype=wide), torch.full((1,), 0.5, dtype=wide)]
    numbers = [Number("factor", 1.0), Number("factor", 0.5), Number("eps", 1e-8)]
    factors = [torch.randn(D, R, dtype=wide) for _ in range(2)]
    z, weights = torch.randn(B, T, D).to(dtype), [torch.randn(s) for s in ((2, H, D), (2, H), (2, D, H), (2, D))]
    refine = [*(w.to(dtype) for w in weights), Number("attenuation", 0.5), Whole("steps", 2), Whole("every", 1), dtype]
    frames = 255 * torch.rand(B, 4, 5, 6, 3).to(dtype)
    rule = [True, Whole("threshold", 100_000), Whole("clamp", 10)]
    maps = torch.rand(B, 2, 5, 6, dtype=wide)
    return {
        "kalman_scan_forward": [*scan, "native", True],
        "kalman_scan_backward": [*incoming[:3], *states, *kept, *scan, "native"],
        "precision_fusion_forward": [*beliefs, *c, ends, *numbers, True, True, "native"],
        "precision_fusion_backward": [
            *incoming,
            torch.rand(4, dtype=wide),
            *beliefs,
            *c,
            ends,
            *numbers,
            True,
            "native",
        ],
        "low_rank_fusion_forward": [*beliefs, *factors, *c, ends, *numbers, "native"],
        "low_rank_fusion_backward": [*incoming, *beliefs, *factors, *c, ends, *numbers, True, "native"],
        "refine_forward": [z, *refine, "native"],
        "refine_backward": [z.clone(), z, torch.randn(1, B * T, D, dtype=wide), *refine, True, "native"],
        "event_synthesis_forward": [frames, frames[:, 0].clone(), *rule, "segment", True, "native"],
        "event_synthesis_backward": [
            *(maps, frames, frames[:, 0].clone(), torch.ones(B, dtype=wide)),
            *(*rule, True, Number("surrogate", 2.0), "native"),
        ],
    }


def _freed(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy.untyped_storage().resize_(0)
    return copy


def _gap(tensor: Tensor) -> Tensor:
    wider = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1))
    wider[..., 1::2] = tensor
    return wider[..., 1::2]


SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "gaps": _gap,
    "another order": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "an offset": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
}
"""Other places in memory of the same values."""

BROKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "of complex numbers": lambda t: t.to(torch.complex64),
    "of truth values": lambda t: t.bool(),
    "one column less": lambda t: t[..., :-1],
    "one column more": lambda t: torch.cat([t, t[..., :1]], -1),
    "without elements": lambda t: t[..., :0],
    "one dimension more": lambda t: t.unsqueeze(0),
    "one dimension less": lambda t: t[0],
    "expanded beyond its size": lambda t: t.unsqueeze(-1).expand(*t.shape, 1000),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}
"""What no operand may be."""


def breakages(op: str, arguments: list[Any]) -> Iterator[tuple[str, int, Any]]:
    """Yield what is broken, the number of the argument, and what takes its place."""
    # Rows of z may have any number of dimensions, and one divisor may stand for all segments.
    anything: dict[str, tuple[int, ...]] = {
        "refine_forward": {"one dimension more": (0,), "one dimension less": (0,)},
        "event_synthesis_backward": {"one column less": (3,)},
    }.get(op, {})
    for place, value in enumerate(arguments):
        if isinstance(value, Tensor):
            for name, change in BROKEN.items():
                if place in anything.get(name, ()):
                    continue
                if value.numel() == 1 and "column less" not in name and "column" in name + "without elements":
                    continue
                yield name, place, change(value)
            if value.dtype.is_floating_point:
                yield "of integers", place, value.to(torch.int32)
            yield "with freed memory", place, _freed(value)
        elif isinstance(value, Number | Whole):
            for wrong in WRONG_NUMBERS[value.what]:
                yield f"{value.what} = {wrong}", place, wrong
        elif isinstance(value, torch.dtype):
            yield "an integer dtype", place, torch.int32
        elif isinstance(value, str):
            for word in ("nothing", "", *(("triton", "reference") if value == "native" else ())):
                yield f"the word {word!r}", place, word
