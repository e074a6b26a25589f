"""The calls of `python -m bench --matrix`: every operator, forward and backward, in every way that changes its kernels.

Tensors are on the CPU, for `fake_gpu`. Sizes are small: what is compiled depends on dtypes, on which arguments are
there and on divisibility by 16, hardly on sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import ief_kernels
from bench.launches import LAUNCHES, Launches
from ief_kernels._triton import forced
from ief_kernels.refinement import triton_launch as refinement

FLOATS = ("fp32", "bf16", "fp16")
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "u8": torch.uint8,
}
OPERATORS = (
    "precision_fusion",
    "fusion_terms",
    "fusion_and_terms",
    "kalman_scan",
    "refine",
    "event_synthesis",
)
MOST_CONFIGS = 5
"""The longest list of configurations of any tuner."""


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        op: the public function.
        name: what is special about the call.
        kind: which row of `LAUNCHES` holds for it.
        forward: makes the inputs, calls the operator, and returns the sum of the outputs whose gradients are wanted, or
            None without a backward pass.
        dtypes: names among `DTYPES` that it runs with.
        steps: number of refinement steps.
        quick: dtypes in the short selection.
        every: repeat it with each configuration of its tuners.
        config: which configuration all tuners take (the last if they have fewer); None: what the package chooses.
    """

    op: str
    name: str
    kind: str
    forward: Callable[[torch.dtype], Tensor | None]
    dtypes: Sequence[str] = FLOATS
    steps: int = 0
    quick: Sequence[str] = ()
    every: bool = False
    config: int | None = None

    @property
    def launches(self) -> Launches:
        """The numbers of launches that `bench.launches` promises."""
        return LAUNCHES[self.kind]


def _total(*outputs: Tensor) -> Tensor:
    return torch.stack([output.float().sum() for output in outputs]).sum()


def _inputs(dtype: torch.dtype, *shapes: tuple[int, ...], trained: str | Sequence[int] = "all") -> list[Tensor]:
    """Tensors of these shapes; those at the positions in `trained` ask for a gradient."""
    return [
        torch.rand(shape, dtype=torch.float32).to(dtype).requires_grad_(trained == "all" or index in trained)
        for index, shape in enumerate(shapes)
    ]


def _fusion(
    shape: tuple[int, ...] = (2, 40, 768),
    *,
    fuse: bool = True,
    terms: bool = False,
    lengths: Sequence[int] | None = None,
    nu: str = "number",
    trained: str | Sequence[int] = "all",
    wanted: slice = slice(None),
    strided: bool = False,
) -> Callable[[torch.dtype], Tensor | None]:
    def forward(dtype: torch.dtype) -> Tensor | None:
        wide = (*shape[:-1], 2 * shape[-1]) if strided else shape
        tensors = [tensor[..., : shape[-1]] for tensor in _inputs(dtype, *[wide] * 4, trained=trained)]
        scale: Any = 8.0
        if nu == "none":
            scale = None
        elif nu == "trained":
            scale = tuple(torch.full((), 8.0, requires_grad=True) for _ in range(2))
        elif nu == "per dimension":
            scale = tuple(torch.full((shape[-1],), 8.0, requires_grad=True) for _ in range(2))
        rows = None if lengths is None else torch.tensor(lengths)
        outputs: list[Tensor] = []
        if fuse and terms:
            fused, found = ief_kernels.fusion_and_terms(*tensors, nu=scale, lengths=rows, backend="triton")
            outputs = [*fused, *found]
        elif terms:
            outputs = [*ief_kernels.fusion_terms(*tensors, nu=scale, lengths=rows, backend="triton")]
        else:
            outputs = [*ief_kernels.precision_fusion(*tensors, nu=scale, backend="triton")]
        return _total(*outputs[wanted]) if outputs[0].requires_grad else None

    return forward


def _scan(
    shape: tuple[int, int, int] = (2, 40, 768),
    *,
    lengths: Sequence[int] | None = None,
    noise: str = "number",
    robust: bool = False,
    state: bool = False,
    trained: str | Sequence[int] = "all",
    wanted: slice = slice(None),
    strided: bool = False,
) -> Callable[[torch.dtype], Tensor | None]:
    def forward(dtype: torch.dtype) -> Tensor | None:
        batch, steps, dim = shape
        wide = (batch, steps, 2 * dim) if strided else shape
        x, var = (tensor[..., :dim] for tensor in _inputs(dtype, wide, wide, trained=trained))
        asked = bool(trained)
        initial = None
        if state:
            s, p = (torch.rand(batch, dim, requires_grad=asked) for _ in range(2))
            initial = (s, p)
        q: Any = 0.01 if noise == "number" else torch.full((dim if noise == "per dimension" else 1,), 0.01)
        if isinstance(q, Tensor):
            q.requires_grad_(asked)
        nu = torch.full((1,), 8.0, requires_grad=asked) if robust else None
        scan = ief_kernels.kalman_scan(
            x,
            var,
            lengths=None if lengths is None else torch.tensor(lengths),
            process_noise=q,
            nu=nu,
            initial_state=initial,
            backend="triton",
        )
        if not scan.mean.requires_grad:
            return None
        return _total(*(scan.mean, scan.var, scan.gain, *scan.state)[wanted])

    return forward


def _refine(
    rows: tuple[int, ...] = (300,),
    *,
    dim: int = 768,
    hidden: int = 768,
    steps: int = 2,
    shared: bool = False,
    every: int = 1,
    trained: str | Sequence[int] = "all",
    autocast: bool = False,
) -> Callable[[torch.dtype], Tensor | None]:
    def forward(dtype: torch.dtype) -> Tensor | None:
        blocks = 1 if shared else steps
        shapes = ((*rows, dim), (blocks, hidden, dim), (blocks, hidden), (blocks, dim, hidden), (blocks, dim))
        z, *weights = _inputs(torch.float32 if autocast else dtype, *shapes, trained=trained)
        context = torch.autocast("cpu", dtype=dtype) if autocast else contextlib.nullcontext()
        with context:
            refined = ief_kernels.refine(z, *weights, steps=steps, checkpoint_every=every, backend="triton")
        return _total(refined) if refined.requires_grad else None

    return forward


def _events(
    shape: tuple[int, ...] = (2, 5, 32, 32, 3),
    *,
    carry: bool = False,
    surrogate: bool = False,
    normalize: str = "clamp",
    polarity: str = "merged",
    offset: int = 0,
) -> Callable[[torch.dtype], Tensor | None]:
    def forward(dtype: torch.dtype) -> Tensor | None:
        size = torch.Size(shape).numel()
        frames = torch.zeros(size + offset, dtype=dtype)[offset:].view(shape)
        at = -4 if shape[-1] == 3 else -3
        last = torch.zeros((*shape[:at], *shape[at + 1 :]), dtype=dtype) if carry else None
        frames.requires_grad_(surrogate)
        maps = ief_kernels.event_synthesis(
            frames,
            carry=last,
            normalize=normalize,
            polarity=polarity,
            surrogate=2.0 if surrogate else None,
            backend="triton",
        )
        return _total(maps) if maps.requires_grad else None

    return forward


def _fusion_cases() -> Iterator[Case]:
    op = "precision_fusion"
    yield Case(op, "ν is a number", op, _fusion(), every=True, quick=("bf16",))
    yield Case(op, "no ν, odd sizes", op, _fusion((3, 63, 500), nu="none"))
    yield Case(op, "ν is trained", op, _fusion(nu="trained"))
    yield Case(op, "ν per dimension", f"{op}, ν trained per dimension", _fusion(nu="per dimension"), every=True)
    yield Case(op, "strided", op, _fusion(strided=True))
    yield Case(op, "one row", f"{op}, ν trained per dimension", _fusion((1, 1, 768), nu="per dimension"))
    yield Case(op, "gradients of two inputs, from the mean", op, _fusion(trained=(0, 3), wanted=slice(0, 1)))
    yield Case(op, "no gradient", op, _fusion(trained=(), nu="none"))
    for op, fuse in (("fusion_terms", False), ("fusion_and_terms", True)):
        lengths = (7, 40)
        yield Case(op, "lengths", op, _fusion(fuse=fuse, terms=True, lengths=lengths), every=True, quick=("bf16",))
        yield Case(op, "all valid", op, _fusion(fuse=fuse, terms=True))
        yield Case(
            op,
            "ν per dimension",
            f"{op}, ν trained per dimension",
            _fusion(fuse=fuse, terms=True, lengths=lengths, nu="per dimension"),
        )
        yield Case(op, "odd sizes", op, _fusion((3, 63, 500), fuse=fuse, terms=True, lengths=(1, 63, 0), nu="trained"))
        yield Case(op, "one row", op, _fusion((1, 1, 768), fuse=fuse, terms=True, lengths=(1,)))
        yield Case(op, "no gradient", op, _fusion(fuse=fuse, terms=True, lengths=lengths, trained=(), nu="none"))
    op = "fusion_and_terms"
    yield Case(op, "gradient of the terms alone", op, _fusion(terms=True, lengths=(7, 40), wanted=slice(4, None)))
    yield Case(op, "wide rows", op, _fusion((2, 3, 2048), terms=True, lengths=(1, 3)))
    yield Case(
        op,
        "rows above 2048",
        "fusion_and_terms, rows above 2048",
        _fusion((2, 3, 3000), terms=True, lengths=(1, 3)),
        every=True,
    )


def _scan_cases() -> Iterator[Case]:
    op, chunked = "kalman_scan", "kalman_scan in chunks"
    yield Case(op, "all valid", op, _scan(), every=True)
    yield Case(op, "lengths", op, _scan(lengths=(7, 40), noise="trained"))
    yield Case(op, "lengths and state", op, _scan(lengths=(7, 40), state=True), quick=("bf16",))
    yield Case(op, "process noise per dimension", op, _scan(noise="per dimension"))
    yield Case(op, "robust", op, _scan(robust=True, lengths=(7, 40)), every=True)
    yield Case(op, "robust, state", op, _scan(robust=True, state=True, noise="per dimension"))
    yield Case(op, "odd sizes", op, _scan((3, 63, 500)))
    yield Case(op, "strided", op, _scan(strided=True))
    yield Case(op, "T = 1", op, _scan((2, 1, 768)))
    yield Case(op, "one row, state", op, _scan((1, 1, 768), state=True))
    yield Case(op, "gradient of x, from the mean", op, _scan(trained=(0,), wanted=slice(0, 1)))
    yield Case(op, "gradient of x, from the state", op, _scan(trained=(0,), wanted=slice(3, None), lengths=(7, 40)))
    yield Case(op, "no gradient", op, _scan(trained=(), lengths=(7, 40)))
    yield Case(op, "no gradient, state", op, _scan(trained=(), state=True))
    yield Case(op, "chunks, all valid", chunked, _scan((2, 512, 64)), quick=("bf16",))
    yield Case(op, "chunks, lengths and state", chunked, _scan((2, 512, 64), lengths=(7, 512), state=True), every=True)
    yield Case(op, "chunks, odd sizes", chunked, _scan((3, 515, 52), noise="per dimension"))
    yield Case(op, "chunks, no gradient", chunked, _scan((1, 600, 64), trained=()))


def _refine_cases() -> Iterator[Case]:
    op, few = "refine", "refine, up to 256 tokens"
    if not refinement.FEW_TOKENS:
        few = op
    dtypes = (*FLOATS, "tf32")
    for rows in ((1,), (16,), (2, 100), (256,)):
        tokens = torch.Size(rows).numel()
        yield Case(op, f"{tokens} tokens", few, _refine(rows), dtypes, steps=2, quick=("bf16",) if tokens == 16 else ())
    yield Case(op, "20 tokens, one block", few, _refine((20,), steps=3, shared=True), dtypes, steps=3)
    yield Case(op, "20 tokens, no gradient", few, _refine((20,), trained=()), dtypes, steps=2)
    yield Case(op, "257 tokens", op, _refine((257,)), dtypes, steps=2, quick=("bf16",))
    yield Case(op, "300 tokens", op, _refine(dim=128, hidden=128), dtypes, steps=2, every=True)
    many = _refine((2560,), dim=128, hidden=128)
    yield Case(op, "2560 tokens", op, many, ("bf16", "fp16"), steps=2)
    yield Case(op, "2560 tokens", "refine, the library's products", many, ("fp32", "tf32"), steps=2)
    yield Case(op, "8192 tokens", "refine, one step in 64 MiB", _refine((8192,), steps=3), ("bf16",), steps=3)
    yield Case(op, "one block", op, _refine(steps=3, shared=True), dtypes, steps=3)
    yield Case(op, "every second state", "refine, every second state kept", _refine(steps=4, every=2), dtypes, steps=4)
    yield Case(op, "gradient of z", "refine, gradient of z alone", _refine(trained=(0,)), dtypes, steps=2, every=True)
    yield Case(op, "no gradient", op, _refine(trained=()), dtypes, steps=2)
    yield Case(op, "odd sizes", op, _refine((3, 101), dim=100, hidden=52), dtypes, steps=2)
    yield Case(op, "N = 1", "refine, N = 1", _refine(steps=1), dtypes, steps=1)
    yield Case(op, "autocast", op, _refine(autocast=True), ("bf16", "fp16"), steps=2)
    yield Case(op, "20 tokens, autocast", few, _refine((20,), autocast=True), ("bf16", "fp16"), steps=2)


def _event_cases() -> Iterator[Case]:
    op, peak = "event_synthesis", "event_synthesis, divided by its peak"
    for dtypes in (("u8",), FLOATS):
        yield Case(op, "RGB", op, _events(), dtypes, every=True)
        yield Case(op, "luma", op, _events((2, 5, 32, 32)), dtypes, every=True)
        yield Case(op, "RGB, carry", op, _events(carry=True), dtypes)
        yield Case(op, "luma, carry, split", op, _events((2, 5, 32, 32), carry=True, polarity="split"), dtypes)
        yield Case(op, "one segment", op, _events((5, 32, 32, 3)), dtypes)
        yield Case(op, "counts", op, _events(normalize="none"), dtypes)
        yield Case(op, "odd sizes", op, _events((2, 5, 31, 29, 3)), dtypes, every=True)
        yield Case(op, "luma, odd sizes", op, _events((2, 5, 31, 29)), dtypes)
        for normalize in ("segment", "batch"):
            yield Case(op, f"by the largest of the {normalize}", peak, _events(normalize=normalize), dtypes)
    yield Case(op, "shifted by a byte", op, _events(offset=1), ("u8",), quick=("u8",))
    yield Case(op, "shifted by a word", op, _events(offset=4), ("u8",))
    yield Case(op, "split", op, _events(polarity="split"), ("u8",))
    yield Case(op, "surrogate", op, _events(surrogate=True), FLOATS, every=True, quick=("bf16",))
    yield Case(op, "surrogate, carry, split", op, _events(surrogate=True, carry=True, polarity="split"), FLOATS)
    yield Case(op, "surrogate, luma, odd sizes", op, _events((2, 5, 31, 29), surrogate=True), FLOATS)
    yield Case(op, "surrogate, by the peak", peak, _events(surrogate=True, normalize="segment"), FLOATS)


def cases() -> list[Case]:
    """Return every call; those marked `every` once more for each configuration by number."""
    found = [*_fusion_cases(), *_scan_cases(), *_refine_cases(), *_event_cases()]
    return found + [
        replace(
            case,
            name=f"{case.name}, configuration {index}",
            dtypes=[dtype for dtype in case.dtypes if dtype != "fp16"],  # compiled like bfloat16
            config=index,
            quick=(),
        )
        for case in found
        if case.every
        for index in range(MOST_CONFIGS)
    ]


@contextlib.contextmanager
def settings(case: Case, dtype: str) -> Iterator[None]:
    """The process's settings that a case runs under: its configuration, and tf32 products where asked for."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = dtype == "tf32"
    try:
        with contextlib.nullcontext() if case.config is None else forced(case.config):
            yield
    finally:
        matmul.allow_tf32 = before
