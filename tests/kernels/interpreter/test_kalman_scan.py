"""The scan's Triton kernels on the CPU, on both paths, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ief_kernels import BackendUnavailable, KalmanScan, Scan, _triton, explain, kalman_scan
from ief_kernels.kalman_scan.paths import forced_path
from ief_kernels.kalman_scan.triton_launch import configs
from tests.helpers.kernel_checks import SCAN_RELATIVE, assert_near, copies, gradients, leaf, tolerance

PATHS = ("sequential", "chunks")
DTYPES = (torch.float32, torch.float16)


def inputs(batch: int, steps: int, dim: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """x, var, process noise, initial s and p."""
    torch.manual_seed(seed)
    state = [leaf(batch, dim, dtype=torch.float32), leaf(batch, dim, dtype=torch.float32, low=0.2)]
    x, var = leaf(batch, steps, dim, dtype=dtype), leaf(batch, steps, dim, dtype=dtype, low=0.2)
    return [x, var, leaf(dim, dtype=torch.float32, low=0.0), *state]


def run(tensors: list[Tensor], *, carried: bool = True, backend: str = "triton", **options: Any) -> list[Tensor]:
    x, var, noise, s, p = tensors
    scan = kalman_scan(
        x, var, process_noise=noise, initial_state=(s, p) if carried else None, backend=backend, **options
    )
    return flat(scan)


def flat(scan: Scan) -> list[Tensor]:
    return [scan.mean, scan.var, scan.gain, *scan.state]


def compare(tensors: list[Tensor], *, carried: bool, relative: float, **options: Any) -> None:
    """Outputs and all gradients, against the reference in float64."""
    wide = copies(tensors, torch.float64)
    used = 5 if carried else 3
    got = run(tensors, carried=carried, **options)
    want = run(wide, carried=carried, backend="reference", **options)
    assert [t.dtype for t in got] == [tensors[0].dtype] * 3 + [torch.float32] * 2
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, relative)
    rounded = tensors[0].dtype
    grads = gradients(got, tensors[:used], rounded=rounded), gradients(want, wide[:used], rounded=rounded)
    for a, b in zip(*grads, strict=True):
        assert a.isfinite().all()
        assert_near(a, torch.zeros_like(a) if b is None else b, 2 * relative)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("shape", [(2, 11, 5), (1, 9, 130)], ids=str)
def test_is_the_float64_reference(path: str, dtype: torch.dtype, carried: bool, shape: tuple[int, int, int]) -> None:
    with forced_path(path, 4):
        compare(inputs(*shape, dtype=dtype), carried=carried, relative=SCAN_RELATIVE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("carried", [False, True])
def test_robust(dtype: torch.dtype, carried: bool) -> None:
    tensors = inputs(2, 7, 5, dtype=dtype)
    nu, nu_wide = torch.tensor(4.0, requires_grad=True), torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    wide = copies(tensors, torch.float64)
    with forced_path("chunks", 4):  # cannot be forced: it is not associative
        got = run(tensors, carried=carried, nu=nu)
        grads = gradients(got, [*tensors[:3], nu], rounded=dtype)
    want = run(wide, carried=carried, nu=nu_wide, backend="reference")
    expected = gradients(want, [*wide[:3], nu_wide], rounded=dtype)
    pairs = zip([*got, *grads], [*want, *expected], strict=True)
    for a, b in pairs:
        assert_near(a, b, 2 * SCAN_RELATIVE[dtype])


# Half precision keeps every 32nd state: no state, one, the last step's, and more than one.
@pytest.mark.parametrize("steps", [31, 32, 70])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("robust", [False, True])
def test_backward_from_kept_states(steps: int, carried: bool, robust: bool) -> None:
    tensors = inputs(5, steps, 5, dtype=torch.float16)
    lengths = torch.tensor([steps, 0, 1, 33, 32])
    for tensor in tensors[:2]:
        tensor.data[torch.arange(steps) >= lengths[:, None]] = float("nan")
    wide = copies(tensors, torch.float64)
    used = 5 if carried else 3
    options: dict[str, Any] = {"lengths": lengths, "nu": 4.0 if robust else None}
    got = run(tensors, carried=carried, **options)
    want = run(wide, carried=carried, backend="reference", **options)
    grads = gradients(got, tensors[:used], rounded=torch.float16)
    expected = gradients(want, wide[:used], rounded=torch.float16)
    for a, b in zip([*got, *grads], [*want, *expected], strict=True):
        assert_near(a, b.nan_to_num(), 2 * SCAN_RELATIVE[torch.float16])


def test_half_precision_keeps_few_states() -> None:
    x, var, noise, *_ = (t.detach() for t in inputs(2, 70, 3, dtype=torch.float16))
    for shape, path in (((2, 2, 2, 3), "sequential"), ((2, 2, 70, 3), "chunks")):
        with forced_path(path, 16):
            states = torch.ops.ief_kernels.kalman_scan_forward(
                x, var, None, noise, None, 1e-8, None, None, "triton", True
            )[-1]
        assert states.shape == shape and states.dtype == torch.float32


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("carried", [False, True])
def test_padding_is_invisible(path: str, carried: bool) -> None:
    lengths = torch.tensor([9, 0, 4, 6, 40], dtype=torch.int32)  # none, a whole chunk, part of one, more than T
    tensors = inputs(5, 9, 3)
    padding = torch.arange(9) >= lengths[:, None]
    for tensor in tensors[:2]:
        tensor.data[padding] = float("nan")
    wide = copies(tensors, torch.float64)
    with forced_path(path, 4):
        got = run(tensors, carried=carried, lengths=lengths)
        grads = gradients(got, tensors[: 5 if carried else 3])
    want = run(wide, carried=carried, lengths=lengths, backend="reference")
    expected = gradients(want, wide[: 5 if carried else 3])
    for a, b in zip([*got, *grads], [*want, *expected], strict=True):
        assert_near(a, torch.nan_to_num(b), 1e-5)
    assert all((t[padding] == 0).all() for t in (*got[:3], *grads[:2]))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("which", range(5))
def test_gradient_through_one_output(path: str, which: int) -> None:
    tensors = inputs(1, 6, 3)
    wide = copies(tensors, torch.float64)
    with forced_path(path, 2):
        grads = gradients(run(tensors)[which : which + 1], tensors)
    expected = gradients(run(wide, backend="reference")[which : which + 1], wide)
    for a, b in zip(grads, expected, strict=True):
        assert_near(a, torch.zeros_like(a) if b is None else b, 1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_strided(path: str) -> None:
    base = inputs(5, 4, 14)[:2]
    views = [t.transpose(0, 1)[:, ::2, 3:10] for t in base]  # unit stride in d
    gaps = [t.transpose(0, 1)[:, ::2, ::2] for t in base]
    noise = leaf(14, dtype=torch.float32, low=0.1)
    state = [leaf(14, 4, dtype=torch.float32, low=0.2) for _ in range(2)]
    for x, var in (views, gaps):
        tensors = [x, var, noise[::2], *(t[::2].t() for t in state)]
        plain = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in tensors]
        with forced_path(path, 2):
            got, want = run(tensors), run(plain)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
            outer = torch.autograd.grad(sum(t.sum() for t in got), tensors)  # expanded incoming gradients
            inner = torch.autograd.grad(sum(t.sum() for t in want), plain)
        assert all(torch.equal(a, b) for a, b in zip(outer, inner, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_empty_or_one_step(path: str, shape: tuple[int, int, int], carried: bool) -> None:
    with forced_path(path, 1):
        compare(inputs(*shape), carried=carried, relative=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_a_state_carried_on_equals_one_call(path: str) -> None:
    tensors = inputs(2, 10, 3, dtype=torch.float16)
    x, var, noise, *_ = tensors
    with forced_path(path, 2):
        whole = run(tensors, carried=False)
        first = kalman_scan(x[:, :6], var[:, :6], process_noise=noise, backend="triton")
        second = kalman_scan(x[:, 6:], var[:, 6:], process_noise=noise, initial_state=first.state, backend="triton")
    joined = [torch.cat([a, b], 1) for a, b in zip(first[:3], second[:3], strict=True)]
    for a, b in zip([*joined, *second.state], whole, strict=True):
        if path == "sequential":
            assert torch.equal(a, b)
        assert_near(a, b, 1e-6 if a.dtype == torch.float32 else 1e-3)


# Without process noise nothing is forgotten; wide variances make the gain anything between 0 and 1.
def test_long_sequence_in_chunks() -> None:
    x = torch.randn(1, 520, 3, generator=torch.Generator().manual_seed(0)) + 3
    var = 10 ** (4 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 2)
    assert "chunks of 16 steps" in explain("kalman_scan", x)
    got = flat(kalman_scan(x, var, backend="triton"))
    want = flat(kalman_scan(x.double(), var.double(), backend="reference"))
    # The gain of step t is near 1/t, so that a share t/T of an error made at step t is left: of T roundings, a half.
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, tolerance(torch.float32, roundings=520 / 2))


def test_long_sequence_in_chunks_backward() -> None:
    tensors = inputs(1, 75, 3)
    tensors[1].data = 10 ** (4 * torch.rand(1, 75, 3) - 2)
    tensors[2].data.zero_()
    with forced_path("chunks"):
        # 1/variance reaches 100, and with it the gradients' spread: hence relative to the largest
        compare(tensors, carried=False, relative=1e-5)


@pytest.mark.parametrize("index", range(1, len(configs(4))))
def test_every_configuration(index: int) -> None:
    with _triton.forced(index), forced_path("chunks", 3):
        compare(inputs(1, 7, 70), carried=False, relative=SCAN_RELATIVE[torch.float32])


@pytest.mark.parametrize("path", PATHS)
def test_repeats_bit_for_bit(path: str) -> None:
    tensors = inputs(2, 6, 3)
    runs = []
    with forced_path(path, 2):
        for _ in range(2):
            result = run(tensors)
            runs.append([*result, *gradients(result, tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("optional", [False, True])
def test_registered_operators(dtype: torch.dtype, optional: bool) -> None:
    x, var, noise, s, p = (t.detach() for t in inputs(1, 2, 3, dtype=dtype))
    lengths, weight = (torch.tensor([1]), torch.full((1,), 0.2)) if optional else (None, None)
    arguments = (x, var, lengths, noise if optional else noise[:1], weight, 1e-8)
    arguments += (*((s, p) if optional else (None, None)), "triton")
    ops = torch.ops.ief_kernels
    checks = ("test_schema", "test_faketensor")
    opcheck(ops.kalman_scan_forward, (*arguments, True), test_utils=checks)
    wide = [torch.randn(1, 2, 3) for _ in range(2)]
    grads = (torch.randn_like(x), None, torch.randn_like(x), torch.randn(1, 3), None)
    opcheck(ops.kalman_scan_backward, (*grads, *wide, *arguments), test_utils=checks)


@pytest.mark.parametrize("path", PATHS)
def test_compiles_without_graph_breaks(path: str) -> None:
    x, var, *_ = inputs(1, 3, 4, dtype=torch.float16)
    module = KalmanScan(4, "learned", backend="triton")
    runs = []
    with forced_path(path, 2):
        for call in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
            scan = call(x, var)
            runs.append([*flat(scan), *gradients(flat(scan), [x, var, *module.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_what_does_not_serve() -> None:
    with pytest.raises(BackendUnavailable, match="float64"):
        kalman_scan(torch.zeros(1, 2, 3).double(), torch.ones(1, 2, 3).double(), backend="triton")
