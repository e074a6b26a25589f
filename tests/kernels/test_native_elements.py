"""Element types and instruction sets of the C++ kernels: loads, stores, the exponential, large outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ief_kernels import fusion_and_terms, kalman_scan, precision_fusion, reference
from tests.helpers.kernel_checks import copies, gradients, instruction_set, leaf, needs_native, threads

pytestmark = needs_native

HALVES = (torch.bfloat16, torch.float16)
ISAS = ("scalar", "avx2", "avx512")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param) as there:
        if not there:
            pytest.skip(f"no {request.param} here")
        yield request.param


def fusion(tensors: Sequence[Tensor], lengths: Tensor | None = None) -> list[Tensor]:
    nu = tensors[4] if len(tensors) > 4 else 8.0
    fused, terms = fusion_and_terms(*tensors[:4], nu=nu, lengths=lengths, backend="native")
    return [*fused, *terms]


def scan(tensors: Sequence[Tensor], lengths: Tensor | None = None, nu: float | None = None) -> list[Tensor]:
    x, var, noise, *state = tensors
    initial = (state[0], state[1]) if state else None
    found = kalman_scan(x, var, lengths=lengths, process_noise=noise, nu=nu, initial_state=initial, backend="native")
    return [found.mean, found.var, found.gain, *found.state]


def robust(tensors: Sequence[Tensor], lengths: Tensor | None = None) -> list[Tensor]:
    return scan(tensors, lengths, nu=5.0)


def fusion_inputs(*shape: int) -> list[Tensor]:
    return [*(leaf(*shape, dtype=torch.float32) for _ in range(4)), leaf(shape[-1], low=2.0, dtype=torch.float32)]


def scan_inputs(*shape: int) -> list[Tensor]:
    parts = [leaf(*shape, dtype=torch.float32), leaf(*shape, low=0.1, dtype=torch.float32)]
    return [*parts, leaf(shape[-1], low=0.1, dtype=torch.float32)]


def carried_inputs(*shape: int) -> list[Tensor]:
    state = [leaf(shape[0], shape[2], dtype=torch.float32), leaf(shape[0], shape[2], low=0.1, dtype=torch.float32)]
    return [*scan_inputs(*shape), *state]


CALLS: dict[str, tuple[Callable[..., list[Tensor]], Callable[..., list[Tensor]], int]] = {
    # what is called, its inputs, and how many of these carry data and are narrow
    "fusion": (fusion, fusion_inputs, 4),
    "scan": (scan, scan_inputs, 2),
    "carried scan": (scan, carried_inputs, 2),
    "robust scan": (robust, carried_inputs, 2),
}
# odd and whole vectors of every instruction set; one block of the scan's states, a whole number of them, and parts
SHAPES = [(1, 1, 1), (2, 16, 33), (3, 50, 77), (2, 33, 64)]


@pytest.mark.parametrize("layout", ["contiguous", "strided", "ragged"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_halves_are_the_float32_kernel_rounded(
    isa: str, name: str, dtype: torch.dtype, shape: tuple[int, ...], layout: str
) -> None:
    """Only loads and stores differ, so outputs and gradients are those of float32, rounded, bit for bit."""
    torch.manual_seed(0)
    run, make, narrow = CALLS[name]
    batch, steps, dim = shape
    tensors = make(*shape) if layout != "strided" else make(batch, 2 * steps, dim)
    data = [tensor.detach().to(dtype) for tensor in tensors[:narrow]]
    if layout == "strided":
        data = [tensor[:, ::2] for tensor in data]
    lengths = None
    if layout == "ragged":
        lengths = torch.tensor([steps, 0, steps // 2 + 1][:batch])
        padding = torch.arange(steps) >= lengths[:, None]
        for tensor in data:
            tensor[padding] = math.nan
    half = [*(tensor.requires_grad_() for tensor in data), *tensors[narrow:]]
    wide = [*copies(data, torch.float32), *copies(tensors[narrow:], torch.float32)]
    got, want = run(half, lengths), run(wide, lengths)
    for a, b in zip(got, want, strict=True):
        assert a.isfinite().all() and torch.equal(a, b.to(a.dtype))
    assert sum(a.dtype == dtype for a in got) == (4 if name == "fusion" else 3)
    grads = gradients(got, half, rounded=dtype), gradients(want, wide, rounded=dtype)
    for a, b in zip(*grads, strict=True):
        assert a is not None and b is not None
        assert a.isfinite().all() and torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_read_and_written_as_it_is(isa: str, dtype: torch.dtype) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(1, 1, -1)
    x = bits.view(dtype)
    copied = kalman_scan(x, x, backend="native").mean  # the first step is a copy, through float32
    number = ~x.isnan()
    assert torch.equal(copied.view(torch.int16)[number], bits[number])
    assert copied[~number].isnan().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_stores_round_to_nearest_even(isa: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=generator).to(torch.int32)
    # halfway between two numbers of the narrow type, and one bit beside it; the edges of float16; NaN
    ties = (patterns & ~0x1FFF) | 0x1000 if dtype == torch.float16 else (patterns & ~0xFFFF) | 0x8000
    values = torch.cat([patterns, ties, ties + 1, ties - 1]).view(torch.float32)
    edges = [65504.0, 65519.99, 65520.0, 6.0e-8, 2.9e-8, 2.98023224e-8, 6.1e-5, 3.3895314e38, 3.4028235e38, math.nan]
    values = torch.cat([values, torch.tensor([*edges, *(-edge for edge in edges)])])
    payloads = torch.tensor([0x7FFFFFFF, 0x7F800001, -1, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([values[~values.isinf()], payloads])[None]
    # with a certain state (p = q = eps = 0) the gain is 0 and the mean stays the state
    zero = torch.zeros(1, 1, values.shape[1], dtype=dtype)
    state = (values, torch.zeros_like(values))
    mean = kalman_scan(zero, zero + 1, eps=0.0, initial_state=state, backend="native").mean
    number = ~values.isnan()
    want = values.to(dtype)
    assert torch.equal(mean[0][number].view(torch.int16), want[number].view(torch.int16))
    assert mean[0][~number].isnan().all()


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float32, -30, 75), (torch.float64, -30, 690)], ids=str)
def test_exponential(isa: str, dtype: torch.dtype, low: float, high: float) -> None:
    """Within 2 units in the last place of libm's; var adds at most three roundings of half a unit each."""
    logvar = torch.linspace(low, high, 100_003, dtype=dtype)
    zero = torch.zeros_like(logvar)
    vague = torch.full_like(logvar, 79.9 if dtype == torch.float32 else 699.9)
    sure = logvar < high - 40  # there the vague belief does not matter: exp(-40) is below half a unit
    var = precision_fusion(zero, logvar, zero, vague, nu=None, eps=0.0, backend="native").var[sure]
    exact = torch.tensor([math.exp(value) for value in logvar[sure].double().tolist()], dtype=torch.float64)
    unit = torch.exp2(exact.log2().floor()) * torch.finfo(dtype).eps
    assert ((var.double() - exact).abs() <= (2 + 1.5) * unit).all()


def test_float64_is_the_reference(isa: str) -> None:
    torch.manual_seed(1)
    tensors = [leaf(3, 19, 37) for _ in range(4)]
    lengths = torch.tensor([19, 0, 7])
    got = fusion(tensors, lengths)
    fused, terms = reference.fusion_and_terms(*tensors, lengths=lengths)
    want = [*fused, *terms]
    # an exponential, a division and about twenty roundings of 1e-16; sums of 700 numbers in another order
    for a, b in zip([*got, *gradients(got, tensors)], [*want, *gradients(want, tensors)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_large_outputs_are_those_of_parts(isa: str, dtype: torch.dtype) -> None:
    """Outputs of 8 MiB and more go past the caches; a part of a batch does not, and both hold the same."""
    torch.manual_seed(2)
    rows = 4 * 4096 // torch.empty(0, dtype=dtype).element_size()
    x, var, other = (leaf(8, rows // 8, 384).detach().to(dtype) for _ in range(3))

    def calls(take: Any) -> list[Tensor]:
        a, b, c = (tensor[take].clone().requires_grad_() for tensor in (x, var, other))
        fused = precision_fusion(a, b, c, b, backend="native")
        found = kalman_scan(a, b.abs() + 0.1, process_noise=0.1, backend="native")
        outputs = [*fused, *found[:3]]
        grads = torch.autograd.grad([fused.mean, fused.var, found.mean], [a, b, c], [c.detach()] * 3)
        return [*outputs, *grads]

    with threads(2):
        whole = calls(slice(None))
        for part in range(0, 8, 2):
            for a, b in zip(whole, calls(slice(part, part + 2)), strict=True):
                assert torch.equal(a[part : part + 2], b)
