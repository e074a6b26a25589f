from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from ief_kernels import BackendUnavailable, Scan, kalman_scan, reference
from tests.helpers.kernel_checks import (
    BACKENDS,
    SCAN_RELATIVE,
    assert_near,
    copies,
    gradients,
    instruction_set,
    leaf,
    needs_native,
    threads,
)


def inputs(batch: int, steps: int, dim: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """x, var, process noise, initial s and p."""
    torch.manual_seed(seed)
    return [
        leaf(batch, steps, dim, dtype=dtype),
        leaf(batch, steps, dim, dtype=dtype, low=0.2),
        leaf(dim, dtype=dtype, low=0.0),
        leaf(batch, dim, dtype=dtype),
        leaf(batch, dim, dtype=dtype, low=0.2),
    ]


def flat(scan: Scan) -> list[Tensor]:
    return [scan.mean, scan.var, scan.gain, *scan.state]


def run(tensors: list[Tensor], *, carried: bool = True, **options: Any) -> list[Tensor]:
    x, var, noise, s, p = tensors
    state = (s, p) if carried else None
    return flat(kalman_scan(x, var, process_noise=noise, initial_state=state, **options))


def literal(x: Tensor, var: Tensor, q: float, nu: float | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The update as the precisions say it, for one sequence without an initial state."""
    s, p, rows = x[0], var[0], [(x[0], var[0], torch.ones_like(x[0]))]
    for x_t, var_t in zip(x[1:], var[1:], strict=True):
        robust = 0 if nu is None else (x_t - s) ** 2 / (nu + 1)
        w_s, w_x = 1 / (p + q + eps), 1 / (var_t + eps + robust)
        p = 1 / (w_s + w_x)
        gain = w_x * p
        s = s + gain * (x_t - s)
        rows.append((s, p, gain))
    mean, variance, gains = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return mean, variance, gains


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nu", [None, 3.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_is_the_formula(backend: str, nu: float | None, noise: float) -> None:
    x, var, *_ = inputs(2, 9, 5)
    scan = kalman_scan(x, var, process_noise=noise, nu=nu, eps=1e-3, backend=backend)
    for b in range(2):
        expected = literal(x[b], var[b], noise, nu, 1e-3)
        for got, want in zip(scan[:3], expected, strict=True):
            torch.testing.assert_close(got[b], want)
    torch.testing.assert_close(scan.state, (scan.mean[:, -1], scan.var[:, -1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "relative"), SCAN_RELATIVE.items(), ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 63, 5), (2, 9, 500), (2, 130, 1)], ids=str)
@pytest.mark.parametrize("nu", [None, 4.0])
def test_is_the_float64_reference(
    backend: str, dtype: torch.dtype, relative: float, shape: tuple[int, int, int], nu: float | None
) -> None:
    tensors = inputs(*shape, dtype=dtype)
    wide = copies(tensors, torch.float64)
    lengths = torch.tensor([shape[1], 0, shape[1] // 2][: shape[0]])
    result = run(tensors, nu=nu, lengths=lengths, backend=backend)
    expected = run(wide, nu=nu, lengths=lengths, backend="reference")
    assert all(field.dtype == dtype for field in result[:3])
    assert all(part.dtype == torch.float32 for part in result[3:])
    for got, want in zip(result, expected, strict=True):
        assert_near(got, want, relative)
    grads = gradients(result, tensors, rounded=dtype), gradients(expected, wide, rounded=dtype)
    for got, want in zip(*grads, strict=True):
        assert_near(got, want, relative)


@needs_native
@pytest.mark.parametrize("shape", [(1, 700, 1100), (7, 20, 33)], ids=str)
def test_lanes_cut_into_several_tasks(shape: tuple[int, int, int]) -> None:
    tensors = inputs(*shape)
    for count in (1, 3):
        with threads(count):
            result = run(tensors, carried=False, backend="native")
            expected = run(tensors, carried=False, backend="reference")
            for got, want in zip(result, expected, strict=True):
                torch.testing.assert_close(got, want)
            for got, want in zip(gradients(result, tensors[:3]), gradients(expected, tensors[:3]), strict=True):
                torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nu", [None, 4.0])
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("lengths", [[4, 0, 2], [9, -3, 1]], ids=str)
def test_padding_is_invisible(backend: str, nu: float | None, carried: bool, lengths: list[int]) -> None:
    tensors = inputs(3, 4, 5)
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    both = []
    for filler in (float("nan"), 3.0):
        filled = [torch.where(valid[..., None], t.detach(), filler).requires_grad_() for t in tensors[:2]]
        filled += copies(tensors[2:], torch.float64)
        result = run(filled, carried=carried, nu=nu, lengths=torch.tensor(lengths), backend=backend)
        both.append((result, gradients(result, filled if carried else filled[:3])))
    for got, want in zip(both[0][0], both[1][0], strict=True):
        assert torch.equal(got, want) and got.isfinite().all()
    for got, want in zip(both[0][1], both[1][1], strict=True):
        assert torch.equal(got, want) and got.isfinite().all()
    assert all((field[~valid] == 0).all() for field in (*both[0][0][:3], *both[0][1][:2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_of_short_sequences(backend: str) -> None:
    x, var, noise, s, p = inputs(3, 4, 5)
    lengths = torch.tensor([4, 0, 2])
    scan = kalman_scan(x, var, process_noise=noise, lengths=lengths, initial_state=(s, p), backend=backend)
    torch.testing.assert_close(scan.state[0], torch.stack([scan.mean[0, 3], s[1], scan.mean[2, 1]]))
    torch.testing.assert_close(scan.state[1], torch.stack([scan.var[0, 3], p[1], scan.var[2, 1]]))
    first = kalman_scan(x, var, process_noise=noise, lengths=lengths, backend=backend)
    # a sequence that has not begun: what follows equals a call without a state, up to eps
    then = kalman_scan(x, var, process_noise=noise, initial_state=first.state, backend=backend)
    fresh = kalman_scan(x, var, process_noise=noise, backend=backend)
    torch.testing.assert_close(then.mean[1], fresh.mean[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(then.var[1], fresh.var[1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nu", [None, 4.0])
def test_chunks_equal_one_call(backend: str, dtype: torch.dtype, nu: float | None) -> None:
    x, var, noise, *_ = inputs(2, 23, 6, dtype=dtype)
    whole = kalman_scan(x, var, process_noise=noise, nu=nu, backend=backend)
    state, parts = None, []
    for x_part, var_part in zip(x.split(7, 1), var.split(7, 1), strict=True):
        scan = kalman_scan(x_part, var_part, process_noise=noise, nu=nu, initial_state=state, backend=backend)
        state = scan.state
        parts.append(scan)
    joined = [torch.cat([part[k] for part in parts], 1) for k in range(3)]
    for got, want in zip([*joined, *state], flat(whole), strict=True):
        assert torch.equal(got, want)
    weights = [x, var, noise]
    for got, want in zip(gradients([*joined, *state], weights), gradients(flat(whole), weights), strict=True):
        assert_near(got, want, {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2}[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_noise_it_is_the_weighted_running_mean(backend: str) -> None:
    x, var, *_ = inputs(2, 30, 4)
    scan = kalman_scan(x, var, eps=0.0, backend=backend)
    precision = (1 / var).cumsum(1)
    torch.testing.assert_close(scan.mean, (x / var).cumsum(1) / precision)
    torch.testing.assert_close(scan.var, 1 / precision)


@pytest.mark.parametrize("backend", BACKENDS)
def test_robust_update_becomes_plain_and_bounds_outliers(backend: str) -> None:
    tensors = inputs(2, 9, 5)
    for got, want in zip(run(tensors, nu=float("inf"), backend=backend), run(tensors, backend=backend), strict=True):
        torch.testing.assert_close(got, want)
    x, var, noise, *_ = inputs(1, 6, 3)
    x.data[:, 4] = 1e4
    plain, robust = (kalman_scan(x, var, process_noise=noise, nu=nu, backend=backend).mean for nu in (None, 4.0))
    assert (plain[:, 4] > 1e2).all() and (robust[:, 4] < 10).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("robust", [False, True])
def test_gradcheck(backend: str, carried: bool, robust: bool) -> None:
    tensors = [*inputs(3, 4, 5), leaf(low=1.5)]
    lengths = torch.tensor([4, 0, 3])

    def call(*arguments: Tensor) -> tuple[Tensor, ...]:
        nu = arguments[5] if robust else None
        return tuple(run(list(arguments[:5]), carried=carried, nu=nu, lengths=lengths, backend=backend))

    assert gradcheck(call, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_through_the_state_alone(backend: str) -> None:
    tensors = inputs(2, 5, 3)
    expected = gradients(run(tensors, backend="reference")[3:], tensors)
    for got, want in zip(gradients(run(tensors, backend=backend)[3:], tensors), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)], ids=str)
@pytest.mark.parametrize("carried", [False, True])
def test_empty(backend: str, shape: tuple[int, int, int], carried: bool) -> None:
    tensors = inputs(*shape)
    result = run(tensors, carried=carried, backend=backend)
    assert all(field.shape == shape for field in result[:3])
    if carried and shape[1] == 0:
        assert torch.equal(result[3], tensors[3]) and torch.equal(result[4], tensors[4])
    for grad, tensor in zip(gradients(result, tensors), tensors, strict=True):
        assert grad is None or (grad.shape == tensor.shape and grad.isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided(backend: str) -> None:
    base = inputs(6, 5, 14, seed=2)
    base[3:] = [leaf(14, 5, low=0.2) for _ in range(2)]
    views = [t.transpose(0, 1)[:, ::2, ::2] for t in base[:2]]
    views += [base[2][::2], *(t.t()[:, ::2] for t in base[3:])]
    plain = [view.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for view in views]
    results = [run(tensors, backend=backend) for tensors in (views, plain)]
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
    inner = gradients(results[1], plain)
    outer = gradients(results[0], base)
    assert torch.equal(outer[0].transpose(0, 1)[:, ::2, ::2], inner[0])
    assert torch.equal(outer[2][::2], inner[2])
    assert torch.equal(outer[3].t()[:, ::2], inner[3]) and torch.equal(outer[4].t()[:, ::2], inner[4])


@needs_native
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    tensors = inputs(3, 70, 130, dtype=torch.float32)
    runs = []
    for count in (1, 2, 2, 5):
        with threads(count):
            result = run(tensors, nu=5.0, lengths=torch.tensor([70, 3, 64]), backend="native")
            runs.append([*result, *gradients(result, tensors)])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


@needs_native
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    tensors = inputs(2, 19, 77, dtype=torch.float32)
    wide = copies(tensors, torch.float64)
    with instruction_set(isa) as there:
        if not there:
            pytest.skip(f"no {isa} here")
        result = run(tensors, nu=6.0, backend="native")
        grads = gradients(result, tensors)
    expected = run(wide, nu=6.0, backend="reference")
    for got, want in zip([*result, *grads], [*expected, *gradients(expected, wide)], strict=True):
        assert_near(got, want, SCAN_RELATIVE[torch.float32])


@needs_native
@pytest.mark.parametrize("optional", [False, True])
def test_registered_operators(optional: bool) -> None:
    x, var, noise, s, p = (t.detach() for t in inputs(2, 3, 4, dtype=torch.float32))
    lengths, weight = (torch.tensor([3, 1]), torch.full((1,), 0.2)) if optional else (None, None)
    state = (s, p) if optional else (None, None)
    ops = torch.ops.ief_kernels
    arguments = (x, var, lengths, noise if optional else noise[:1], weight, 1e-8, *state, "native")
    opcheck(ops.kalman_scan_forward, arguments)
    mean, variance, *_ = ops.kalman_scan_forward(*arguments)
    grads = (torch.randn(2, 3, 4), None, torch.randn(2, 3, 4), torch.randn(2, 4), None)
    opcheck(ops.kalman_scan_backward, (*grads, mean, variance, *arguments))


@needs_native
def test_second_derivative_is_refused() -> None:
    x, var, *_ = inputs(2, 3, 4)
    scan = kalman_scan(x, var, backend="native")
    (grad,) = torch.autograd.grad(scan.mean.sum(), var, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not available"):
        grad.sum().backward()


def test_bad_input() -> None:
    x, var, noise, s, p = inputs(2, 3, 4)
    with pytest.raises(ValueError, match=r"x must be \(B, T, D\)"):
        kalman_scan(x[0], var[0])
    with pytest.raises(ValueError, match="var has shape"):
        kalman_scan(x, var[:, :2])
    with pytest.raises(ValueError, match="process_noise must not be negative"):
        kalman_scan(x, var, process_noise=-1.0)
    with pytest.raises(ValueError, match="process_noise must have shape"):
        kalman_scan(x, var, process_noise=noise[:3])
    with pytest.raises(ValueError, match="nu must be positive"):
        kalman_scan(x, var, nu=0.0)
    with pytest.raises(ValueError, match="initial_state"):
        kalman_scan(x, var, initial_state=(s[:1], p[:1]))
    with pytest.raises(BackendUnavailable):
        kalman_scan(x, var, backend="triton")


@needs_native
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 70)),
    noise=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    nu=st.one_of(st.none(), st.floats(0.5, 100.0)),
    spread=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_property(shape: tuple[int, int, int], noise: float, nu: float | None, spread: float, seed: int) -> None:
    x, var, _, s, p = inputs(*shape, dtype=torch.float32, seed=seed)
    var.data.mul_(spread)
    lengths = torch.randint(0, shape[1] + 1, (shape[0],))
    options: dict[str, Any] = {"process_noise": noise, "nu": nu, "lengths": lengths}
    got = flat(kalman_scan(x, var, initial_state=(s, p), backend="native", **options))
    wide = copies([x, var, s, p], torch.float64)
    want = flat(reference.kalman_scan(wide[0], wide[1], initial_state=(wide[2], wide[3]), **options))
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, 1e-5)
    assert ((got[2] >= 0) & (got[2] <= 1)).all()
    for a, b in zip(gradients(got, [x, var, s, p]), gradients(want, wide), strict=True):
        assert_near(a, b, 5e-5)
