"""Operators on random sizes, strides, dtypes, lengths and values, and their registered operators on broken operands.

Results are compared with the eager reference in float64.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ief_kernels
from ief_kernels import _native
from tests.fuzz.case import Case, Ended, Outcome, judged
from tests.helpers.operands import SAME, breakages, calls

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Some hundred roundings of the dtype, relative to the largest value: sums of up to 3000 elements, and exponentials.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
SIZES = (0, 1, 2, 3, 7, 16, 17, 31, 33, 64, 65)
NAN, INF = float("nan"), float("inf")
BACKEND = "native" if _native.available() else "auto"


def prepare(stock: Path) -> None:
    """Nothing is needed."""


def strided(generator: random.Random, tensor: Tensor) -> Tensor:
    """Return the same values somewhere else in memory."""
    return random_choice(generator, [lambda t: t, *SAME.values()])(tensor) if tensor.dim() else tensor


def random_choice(generator: random.Random, items: Any) -> Any:
    """Return one of the items."""
    return generator.choice(list(items))


def _lengths(r: random.Random, batch: int, steps: int) -> Tensor | None:
    if r.random() < 0.3:
        return None
    values = [r.choice((0, 1, steps // 2, steps, steps - 1, -3, steps + 5)) for _ in range(batch)]
    return torch.tensor(values, dtype=r.choice((torch.int64, torch.int32, torch.int16)))


def _padding(tensors: list[Tensor], lengths: Tensor | None) -> None:
    if lengths is not None:
        padded = torch.arange(tensors[0].shape[1]) >= lengths.long()[:, None]
        for tensor in tensors:
            tensor[padded] = NAN


Call = Callable[..., Any]


def _flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [t for part in found for t in _flat(part)]


def _valid(name: str, r: random.Random) -> tuple[str, list[Tensor], Call]:
    """Return a description, the tensors of a call, and the call of them and a backend."""
    dtype = r.choice(DTYPES)
    batch, steps, dim = r.choice((0, 1, 2, 3, 5)), r.choice((*SIZES, 130, 300)), r.choice((*SIZES, 129, 700))
    if batch * steps * dim > 100_000:
        steps = 7
    lengths = _lengths(r, batch, steps)
    nu = r.choice((None, 8.0, 0.5, INF, 1e6))
    eps = r.choice((0.0, 1e-8, 1e-3))
    described = f"{dtype}, {batch}×{steps}×{dim}, lengths {None if lengths is None else lengths.tolist()}, ν {nu}"
    if name == "kalman_scan":
        tensors = [torch.randn(batch, steps, dim).to(dtype), (torch.rand(batch, steps, dim) + 0.1).to(dtype)]
        _padding(tensors, lengths)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        noise: Any = r.choice((0.0, 0.3, torch.rand(dim, dtype=wide)))
        state = None
        if r.random() < 0.5:
            state = (torch.randn(batch, dim, dtype=wide), torch.rand(batch, dim, dtype=wide) + 0.1)

        def scan(ts: list[Tensor], backend: str) -> Any:
            options = {"lengths": lengths, "process_noise": noise, "nu": nu, "eps": eps, "backend": backend}
            return ief_kernels.kalman_scan(*ts, initial_state=state, **options)

        return described, tensors, scan
    if name == "refine":
        hidden, blocks = r.choice((1, 3, 16, 33)), r.choice((0, 1, 2, 4))
        dim = min(dim, 65)
        shapes = ((blocks, hidden, dim), (blocks, hidden), (blocks, dim, hidden), (blocks, dim))
        tensors = [torch.randn(batch, steps, dim), *(torch.randn(s) / max(s[-1], 1) for s in shapes)]
        every = r.choice((1, 2, 5))
        return (
            described,
            [t.to(dtype) for t in tensors],
            lambda ts, backend: ief_kernels.refine(*ts, checkpoint_every=every, backend=backend),
        )
    if name == "event_synthesis":
        shape = (batch, r.choice((0, 1, 2, 5)), r.choice((1, 3, 9)), r.choice((1, 4, 33)), *r.choice(((), (3,))))
        frames = torch.randint(0, 256, shape)
        kind = r.choice((torch.uint8, torch.float32, torch.float64))
        options = {
            "normalize": r.choice(("clamp", "segment", "batch", "none")),
            "polarity": r.choice(("merged", "split")),
            "layout": "rgb" if len(shape) == 5 else "luma",
            "threshold": r.choice((0, 10, 300.0)),
            "clamp": r.choice((1, 3, 255)),
        }
        return (
            f"{kind}, {shape}, {options}",
            [frames.to(kind)],
            lambda ts, backend: ief_kernels.event_synthesis(*ts, backend=backend, **options),
        )
    spread = 1.0 if dtype in (torch.float16, torch.bfloat16) else r.choice((1.0, 8.0))
    tensors = [torch.randn(batch, steps, dim) * (spread if k % 2 else 1.0) for k in range(4)]
    _padding(tensors, lengths)
    if name == "low_rank_fusion":
        rank = r.choice((0, 1, 3, 16))
        factors = [torch.randn(dim, rank) / max(dim, 1) ** 0.5 for _ in range(2)]
        return (
            f"{described}, rank {rank}",
            [t.to(dtype) for t in (*tensors, *factors)],
            lambda ts, backend: ief_kernels.low_rank_fusion(*ts, nu=nu, lengths=lengths, eps=eps, backend=backend),
        )
    if lengths is None or name == "fusion_and_terms":
        return (
            described,
            [t.to(dtype) for t in tensors],
            lambda ts, backend: ief_kernels.fusion_and_terms(*ts, nu=nu, lengths=lengths, eps=eps, backend=backend),
        )
    tensors = [t.nan_to_num(1.0) for t in tensors]
    return (
        described,
        [t.to(dtype) for t in tensors],
        lambda ts, backend: ief_kernels.precision_fusion(*ts, nu=nu, eps=eps, backend=backend),
    )


def _both(tensors: list[Tensor], call: Call, backend: str, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and gradients of a weighted sum of them."""
    leaves = [t.detach().requires_grad_(t.dtype.is_floating_point) for t in tensors]
    outputs = _flat(call(leaves, backend))
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o.shape, generator=generator) for o in outputs]
    wanted = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not wanted:
        return outputs, []
    total = sum((o * w.to(o.dtype)).sum(dtype=torch.float64) for o, w in wanted)
    grads = torch.autograd.grad(total, [t for t in leaves if t.requires_grad], allow_unused=True)  # type: ignore[arg-type]
    return [o.detach() for o in outputs], [g for g in grads if g is not None]


def _differs(
    got: list[Tensor], want: list[Tensor], dtype: torch.dtype, what: str, *, corners: tuple[int, ...] = ()
) -> str | None:
    """Return how tensors differ, or None.

    Args:
        corners: numbers of tensors of which one row in a hundred, and at least one, may differ: a rounded input of a
            ReLU near 0 may be on its other side, which changes the gradients of this hidden unit.
    """
    if len(got) != len(want):
        return f"{len(got)} {what} and not {len(want)}"
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape:
            return f"{what} {k} has shape {tuple(a.shape)} and not {tuple(b.shape)}"
        if not a.numel():
            continue
        half, a, b = a.dtype == torch.float16, a.double(), b.double()
        if half:
            b = torch.where(b.isfinite(), b.clamp(-65504, 65504), b)
        if not torch.equal(a.isfinite(), b.isfinite()):
            return f"{what} {k}: {int((a.isfinite() != b.isfinite()).sum())} elements are not finite in one of both"
        fine = b.isfinite()
        if not bool(fine.any()):
            continue
        scale = max(1.0, float(b[fine].abs().max()))
        errors = torch.where(fine, (a - b).abs(), 0) / scale
        if k in corners:
            units = errors.flatten() if a.dim() < 3 else errors.flatten(0, -2).amax(-1)
            errors = units.sort().values[: -max(1, len(units) // 100)]
        error = float(errors.max()) if errors.numel() else 0.0
        if error > TOLERANCE[dtype]:
            return f"{what} {k} differ by {error:.2e}"
    return None


def _compare(
    tensors: list[Tensor], call: Call, r: random.Random, *, grads: bool = True, corners: tuple[int, ...] = ()
) -> str | None:
    """Return how the operator differs from the reference in float64, or None."""
    dtype = tensors[0].dtype if tensors[0].dtype.is_floating_point else torch.float32
    seed = r.randrange(1 << 30)
    wide = [t.double() if t.dtype.is_floating_point else t for t in tensors]
    got, got_grads = _both([strided(r, t) for t in tensors], call, BACKEND, seed)
    want, want_grads = _both(wide, call, "reference", seed)
    reason = _differs(got, want, dtype, "outputs")
    if reason is None and grads:
        reason = _differs(got_grads, want_grads, dtype, "gradients", corners=corners if dtype.itemsize == 2 else ())
    return reason


def _say(reason: str | None) -> int:
    """Note a fault for the judge."""
    if reason is not None:
        Path("silent").write_text(reason)
        print(reason, file=sys.stderr)
    return 0


def _refuse(error: Exception) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 2


def _judge(folder: Path, ended: Ended) -> Outcome:
    outcome = judged(folder, ended)
    return "silent" if outcome == "fine" and (folder / "silent").exists() else outcome


OPERATORS = (*("kalman_scan", "precision_fusion", "fusion_and_terms", "low_rank_fusion", "refine", "event_synthesis"),)
RAW = tuple(calls())
NUMBERS: tuple[tuple[str, str], ...] = (
    *(("kalman_scan", name) for name in ("eps", "process_noise", "nu")),
    *(("precision_fusion", name) for name in ("eps", "nu")),
    *(("fusion_and_terms", name) for name in ("eps", "nu")),
    *(("fusion_terms", name) for name in ("nu",)),
    *(("low_rank_fusion", name) for name in ("eps", "nu")),
    *(("refine", name) for name in ("attenuation", "steps", "checkpoint_every")),
    *(("event_synthesis", name) for name in ("threshold", "clamp", "surrogate")),
)
MEANINGLESS: tuple[Any, ...] = (
    *(NAN, True, 10**400, "a", [1.0], torch.tensor(NAN), torch.tensor([True]), 1j, object()),
    *(-3.0, -1, -INF, torch.tensor(-5.0), torch.tensor(-INF)),
)


def _numbers(r: random.Random, number: int) -> Case:
    op, name = NUMBERS[number % len(NUMBERS)]
    value = r.choice(MEANINGLESS)
    if (
        name == "attenuation"
        and isinstance(value, float | int | Tensor)
        and value in (-3.0, -1, -5.0)
        and value is not True
    ):
        value = INF  # a negative attenuation means something
    backend = r.choice((BACKEND, "reference"))
    sizes = (2, 3, 4)
    tensors = {
        "kalman_scan": lambda: [torch.randn(sizes), torch.rand(sizes)],
        "refine": lambda: [torch.randn(s) for s in (sizes, (1, 5, 4), (1, 5), (1, 4, 5), (1, 4))],
        "event_synthesis": lambda: [255 * torch.rand(sizes)],
        "low_rank_fusion": lambda: [torch.randn(s) for s in (*[sizes] * 4, (4, 2), (4, 2))],
    }.get(op, lambda: [torch.randn(sizes) for _ in range(4)])()

    def act() -> int:
        try:
            getattr(ief_kernels, op)(*tensors, **{name: value}, backend=backend)
        except (ValueError, TypeError) as error:  # a tensor of another dtype is a TypeError
            if isinstance(error, TypeError) and not isinstance(value, Tensor):
                raise
            return _refuse(error) if name in str(error) else _say(f"the message does not name {name}: {error}")
        return _say("it passed")

    return Case(f"{op} with {name} = {str(value)[:40]}, {backend}", lambda folder: None, act, _judge)


def _raw(r: random.Random, number: int) -> Case:
    op = RAW[number % len(RAW)]
    fake = r.random() < 0.25
    torch.manual_seed(r.randrange(1 << 30))
    arguments = calls(r.choice(DTYPES))[op]
    if r.random() < 0.2:  # the same values elsewhere
        moved = [strided(r, a) if isinstance(a, Tensor) else a for a in arguments]

        def same() -> int:
            operator = getattr(torch.ops.ief_kernels, op)
            outputs = 5 if op == "kalman_scan_forward" else None  # kept states of padding are not written
            for a, b in zip(_flat(operator(*arguments))[:outputs], _flat(operator(*moved))[:outputs], strict=True):
                if a.dtype.is_floating_point and not torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True):
                    return _say("other results of other strides")
            return 0

        return Case(f"{op} on strided operands", lambda folder: None, same, _judge)
    name, place, value = r.choice(list(breakages(op, arguments)))
    fake = fake and "memory" not in name and name not in ("sparse", "on meta")
    broken = [value if k == place else a for k, a in enumerate(arguments)]

    def act() -> int:
        try:
            if fake:
                with FakeTensorMode() as mode:
                    given = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in broken]
                    getattr(torch.ops.ief_kernels, op)(*given)
            else:
                getattr(torch.ops.ief_kernels, op)(*broken)
        except (ValueError, TypeError, RuntimeError) as error:
            return _refuse(error)
        return _say("it passed")

    return Case(f"{op}: argument {place} {name}{', fake' if fake else ''}", lambda folder: None, act, _judge)


def case(number: int, random: random.Random, stock: Path) -> Case:
    """Return one case: valid calls, values that are not finite, broken operands and meaningless numbers in turn."""
    kind, which = number % 8, number // 8
    if kind in (2, 5):
        return _raw(random, 2 * which + (kind == 5))
    if kind == 7:
        return _numbers(random, which)
    name = OPERATORS[(which * 5 + kind) % len(OPERATORS)]
    torch.manual_seed(random.randrange(1 << 30))
    described, tensors, call = _valid(name, random)
    spoiled = ""
    if kind == 6 and name != "event_synthesis" and tensors[0].numel():
        tensor = random.randrange(2 if name == "kalman_scan" else 4 if name != "refine" else 1)
        at = tuple(random.randrange(size) for size in tensors[tensor].shape)
        value = NAN if name == "refine" else random.choice((NAN, INF))  # a ReLU may hide -inf
        tensors[tensor][at] = value
        spoiled = f", {value} in tensor {tensor} at {at}"

    def act() -> int:
        return _say(_compare(tensors, call, random, grads=not spoiled, corners=(1, 2) if name == "refine" else ()))

    return Case(f"{name} on {described}{spoiled}", lambda folder: None, act, _judge)


def unchanged(stock: Path) -> list[Case]:
    """Return a valid call of each operator."""
    return [case(number, random.Random(number), stock) for number in (0, 1, 3, 4, 8, 11)]
