from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from ief_kernels import BackendUnavailable, Fusion, Terms, fusion_and_terms, fusion_terms, precision_fusion, reference
from tests.helpers.kernel_checks import (
    BACKENDS,
    FUSION_FLOAT32,
    FUSION_RELATIVE,
    assert_near,
    copies,
    gradients,
    instruction_set,
    leaf,
    needs_native,
    norm_tolerance,
    threads,
    tolerance,
)

SHAPES = [(1, 1, 1), (2, 63, 5), (3, 7, 500), (1, 2, 768)]


def inputs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [leaf(*shape, dtype=dtype) for _ in range(4)]


def flat(result: tuple[Fusion, Terms]) -> list[Tensor]:
    return [*result[0], *result[1]]


def literal(mu_i: Tensor, lv_i: Tensor, mu_e: Tensor, lv_e: Tensor, c_i: Any, c_e: Any, eps: float) -> list[Tensor]:
    """The formulas as they are written in the docstring."""
    v_i, v_e = c_i * lv_i.exp(), c_e * lv_e.exp()
    w_i, w_e = 1 / (v_i + eps), 1 / (v_e + eps)
    total = w_i + w_e
    kl = [-0.5 * (1 + v.log() - mu**2 - v).mean() for mu, v in ((mu_i, v_i), (mu_e, v_e))]
    cosine = (1 - torch.cosine_similarity(mu_i, mu_e, dim=-1)).mean()
    norm = (mu_i.norm(dim=-1) - mu_e.norm(dim=-1)).abs().mean()
    return [(w_i * mu_i + w_e * mu_e) / total, 1 / total, w_i / total, w_e / total, *kl, cosine, norm]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nu", [None, 8.0, (3.0, None), (2.0, float("inf"))])
@pytest.mark.parametrize("eps", [1e-8, 0.5])
def test_is_the_formula(backend: str, nu: Any, eps: float) -> None:
    tensors = inputs(2, 7, 5)
    factors = [
        1.0 if n is None or n == float("inf") else n / (n + 1) for n in (nu if isinstance(nu, tuple) else (nu, nu))
    ]
    expected = literal(*tensors, *factors, eps)
    result = flat(fusion_and_terms(*tensors, nu=nu, eps=eps, backend=backend))
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(gradients(result, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(precision_fusion(*tensors, nu=nu, eps=eps, backend=backend), expected[:4], strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(fusion_terms(*tensors, nu=nu, backend=backend), expected[4:], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "relative"), FUSION_RELATIVE.items(), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_float64_reference(backend: str, dtype: torch.dtype, relative: float, shape: tuple[int, ...]) -> None:
    tensors = copies(inputs(*shape), dtype)
    wide = copies(tensors, torch.float64)
    nu, wide_nu = (leaf(1, low=2.0, dtype=t) for t in (torch.float32, torch.float64))
    wide_nu.data.copy_(nu)
    lengths = torch.tensor([shape[1], 0, 2][: shape[0]])
    result = flat(fusion_and_terms(*tensors, nu=nu, lengths=lengths, backend=backend))
    expected = flat(reference.fusion_and_terms(*wide, nu=wide_nu, lengths=lengths))
    assert all(field.dtype == dtype for field in result[:4])
    assert all(term.dtype == torch.float32 for term in result[4:])
    for got, want in zip(result[:-1], expected[:-1], strict=True):
        assert_near(got, want, relative)
    assert_near(result[-1], expected[-1], norm_tolerance(FUSION_FLOAT32, shape[-1]))
    grads = gradients(result, [*tensors, nu], rounded=dtype), gradients(expected, [*wide, wide_nu], rounded=dtype)
    for got, want in zip(*grads, strict=True):
        assert_near(got, want, relative)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_stays_finite_at_both_ends(backend: str, dtype: torch.dtype) -> None:
    ends = [-1e4, -100.0, -88.0, -60.0, 0.0, 60.0, 88.0, 100.0, 1e4]
    pairs = torch.tensor(list(itertools.product(ends, ends)), dtype=dtype)
    tensors = [
        t.requires_grad_()
        for t in (torch.randn(81, 1).to(dtype), pairs[:, :1], torch.ones(81, 1).to(dtype), pairs[:, 1:])
    ]
    result = precision_fusion(*tensors, backend=backend)
    assert all(field.isfinite().all() for field in result)
    torch.testing.assert_close(result.w_img + result.w_evt, torch.ones_like(result.w_img))
    # w·(1 − w) is at most a quarter: of two exponentials half of one reaches a weight
    relative = tolerance(torch.promote_types(dtype, torch.float32), exps=1, divisions=1, roundings=12)
    relative += tolerance(dtype, roundings=1) if dtype == torch.float16 else 0.0
    # what the weights are, from the logarithms of both variances in float64
    logs = [
        torch.logaddexp(t.detach().double() + torch.log(torch.tensor(8 / 9)), torch.tensor(1e-8).double().log())
        for t in tensors[1::2]
    ]
    assert_near(result.w_img, torch.sigmoid(logs[1] - logs[0]), relative)
    for grad in gradients(result, tensors):
        assert grad is not None and grad.isfinite().all()
    terms = fusion_terms(*tensors, backend=backend)
    assert all(term.isfinite() for term in terms)
    if dtype != torch.float16:  # the gradient of exp(100) is beyond float16
        assert all(grad is not None and grad.isfinite().all() for grad in gradients(terms, tensors))


@needs_native
def test_saturates_like_the_reference() -> None:
    torch.manual_seed(0)
    tensors = [
        torch.randn(4, 3, 33),
        torch.rand(4, 3, 33) * 240 - 120,
        torch.randn(4, 3, 33),
        torch.rand(4, 3, 33) * 240 - 120,
    ]
    tensors[1][0, 0], tensors[3][0, 0] = 100.0, 100.0
    nu = torch.tensor([3.0], requires_grad=True)
    for tensor in tensors:
        tensor.requires_grad_()
    results = [precision_fusion(*tensors, nu=nu, backend=backend) for backend in ("reference", "native")]
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    ratios = [
        [field.log() if name == "var" else field for name, field in result._asdict().items()] for result in results
    ]
    for want, got in zip(*(gradients(ratio, [*tensors, nu]) for ratio in ratios), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[4, 0, 2], [0, 0, 0], [9, -3, 1]], ids=str)
def test_padding_is_invisible(backend: str, lengths: list[int]) -> None:
    tensors = inputs(3, 4, 5)
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    dirty = [torch.where(valid[..., None], t.detach(), float("nan")).requires_grad_() for t in tensors]
    clean = [torch.where(valid[..., None], t.detach(), 7.0).requires_grad_() for t in tensors]
    results = [flat(fusion_and_terms(*t, lengths=torch.tensor(lengths), backend=backend)) for t in (dirty, clean)]
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want) and got.isfinite().all()
    assert all((field[~valid] == 0).all() for field in results[0][:4])
    for got, want in zip(gradients(results[0], dirty), gradients(results[1], clean), strict=True):
        assert torch.equal(got, want) and (got[~valid] == 0).all()
    if not valid.any():
        assert all(term == 0 for term in results[0][4:])
    else:
        whole = fusion_terms(*(t[valid] for t in tensors), backend=backend)
        for got, want in zip(results[0][4:], whole, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors(backend: str) -> None:
    tensors = inputs(3, 4)
    tensors[0].data[0] = 0
    tensors[2].data[:2] = 0
    terms = fusion_terms(*tensors, backend=backend)
    cosine = torch.cosine_similarity(tensors[0][2], tensors[2][2], dim=0)
    torch.testing.assert_close(terms.cosine, (1 + 1 + 1 - cosine) / 3)
    grad_i, grad_e = torch.autograd.grad(terms.cosine + terms.norm, [tensors[0], tensors[2]])
    assert grad_i.isfinite().all() and grad_e.isfinite().all()
    assert (grad_i[0] == 0).all() and (grad_e[:2] == 0).all() and (grad_i[1] != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0,)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    tensors = inputs(*shape)
    nu = leaf(1, low=2.0)
    result = flat(fusion_and_terms(*tensors, nu=nu, backend=backend))
    assert all(field.shape == shape for field in result[:4])
    if shape[-1]:
        assert all(term == 0 for term in result[4:])
    assert all(grad is not None and grad.isfinite().all() for grad in gradients(result, [*tensors, nu]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided(backend: str) -> None:
    base = inputs(5, 6, 7, seed=3)
    views = [base[0].transpose(0, 1), base[1].transpose(0, 1), base[2].transpose(0, 1), base[3].transpose(0, 1)]
    views = [view[::2, :, 1:6] for view in views]
    plain = [view.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for view in views]
    results = [flat(fusion_and_terms(*t, backend=backend)) for t in (views, plain)]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-15)
    inner = gradients(results[1], plain)
    for got, want in zip(gradients(results[0], base), inner, strict=True):
        torch.testing.assert_close(got.transpose(0, 1)[::2, :, 1:6], want, rtol=0, atol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shapes", [((), (5,)), ((1,), (4, 1)), ((3, 1, 1), (1, 1, 5))], ids=str)
def test_gradcheck(backend: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    tensors = inputs(3, 4, 5)
    nus = [leaf(*shape, low=1.5) for shape in shapes]
    lengths = torch.tensor([4, 0, 3])

    def run(*arguments: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            flat(fusion_and_terms(*arguments[:4], nu=(arguments[4], arguments[5]), lengths=lengths, backend=backend))
        )

    assert gradcheck(run, (*tensors, *nus))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_dimension(backend: str) -> None:
    tensors = inputs(9)
    assert precision_fusion(*tensors, backend=backend).mean.shape == (9,)


@needs_native
def test_a_gradient_nobody_asked_for_is_not_there() -> None:
    tensors = inputs(2, 3, 4)
    tensors[1].requires_grad_(False)
    fusion, _ = fusion_and_terms(*tensors, backend="native")
    fusion.mean.sum().backward()
    assert tensors[1].grad is None and tensors[0].grad is not None


@needs_native
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    tensors = inputs(5, 37, 130, dtype=torch.float32)
    nu = leaf(130, low=2.0, dtype=torch.float32)
    runs = []
    for count in (1, 2, 2, 5):
        with threads(count):
            result = flat(fusion_and_terms(*tensors, nu=nu, lengths=torch.tensor([37, 1, 0, 20, 36]), backend="native"))
            runs.append([*result, *gradients(result, [*tensors, nu])])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@needs_native
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    tensors = inputs(2, 9, 77, dtype=torch.float32)
    tensors[1].data[0, 0, 0] = 100
    wide = copies(tensors, torch.float64)
    for tensor in (*tensors, *wide):
        tensor.data.clamp_(max=79)
    with instruction_set(isa) as there:
        if not there:
            pytest.skip(f"no {isa} here")
        result = list(precision_fusion(*tensors, backend="native"))
        grads = gradients(result[:1], tensors)
    expected = list(reference.precision_fusion(*wide))
    for got, want in zip(
        [result[0], *result[2:], *grads], [expected[0], *expected[2:], *gradients(expected[:1], wide)], strict=True
    ):
        assert_near(got, want, FUSION_FLOAT32)
    torch.testing.assert_close(result[1].double(), expected[1], rtol=FUSION_FLOAT32, atol=0)


@needs_native
@pytest.mark.parametrize("with_lengths", [False, True])
def test_registered_operators(with_lengths: bool) -> None:
    tensors = [t.detach() for t in inputs(2, 3, 4, dtype=torch.float32)]
    c = [torch.full((1,), 0.9), torch.rand(4) + 0.1]
    lengths = torch.tensor([3, 1]) if with_lengths else None
    ops = torch.ops.ief_kernels
    opcheck(ops.precision_fusion_forward, (*tensors, *c, lengths, 1.0, 0.8, 1e-8, True, with_lengths, "native"))
    opcheck(ops.precision_fusion_forward, (*tensors, *c, lengths, 1.0, 0.8, 1e-8, False, True, "native"))
    grads = [torch.randn(2, 3, 4), None, torch.randn(2, 3, 4), None, torch.randn(4)]
    opcheck(ops.precision_fusion_backward, (*grads, *tensors, *c, lengths, 1.0, 0.8, 1e-8, with_lengths, "native"))


@needs_native
def test_second_derivative_is_refused() -> None:
    tensors = inputs(2, 3, 4)
    fusion = precision_fusion(*tensors, backend="native")
    (grad,) = torch.autograd.grad(fusion.mean.sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not available"):
        grad.sum().backward()
    fusion = precision_fusion(*tensors, backend="reference")
    (grad,) = torch.autograd.grad(fusion.mean.sum(), tensors[1], create_graph=True)
    grad.sum().backward()


def test_bad_input() -> None:
    good = inputs(2, 3, 4)
    with pytest.raises(ValueError, match="logvar_evt has shape"):
        precision_fusion(*good[:3], good[3][:1])
    with pytest.raises(TypeError, match="mu_img must be a floating-point tensor"):
        precision_fusion(good[0].long(), *good[1:])
    with pytest.raises(ValueError, match="nu must be positive"):
        precision_fusion(*good, nu=0.0)
    with pytest.raises(ValueError, match="lengths must have shape"):
        fusion_terms(*good, lengths=torch.tensor([3]))
    with pytest.raises(TypeError, match="integer"):
        fusion_terms(*good, lengths=torch.tensor([3.0, 1.0]))
    with pytest.raises(ValueError, match="with lengths"):
        fusion_terms(*(t[0] for t in good), lengths=torch.tensor([3, 2]))
    with pytest.raises(BackendUnavailable):
        precision_fusion(*good, backend="triton")
    with pytest.raises(ValueError, match="unknown backend"):
        precision_fusion(*good, backend="fastest")


@needs_native
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70)),
    spread=st.floats(0.1, 30.0),
    nu=st.one_of(st.none(), st.floats(0.5, 1e6)),
    eps=st.sampled_from([0.0, 1e-8, 1e-2]),
    seed=st.integers(0, 1000),
)
def test_property(shape: tuple[int, ...], spread: float, nu: float | None, eps: float, seed: int) -> None:
    tensors = inputs(*shape, dtype=torch.float32, seed=seed)
    for logvar in tensors[1::2]:
        logvar.data.mul_(spread).clamp_(-60, 60)
    wide = copies(tensors, torch.float64)
    got = precision_fusion(*tensors, nu=nu, eps=eps, backend="native")
    want = reference.precision_fusion(*wide, nu=nu, eps=eps)
    relative = tolerance(torch.float32, exps=4, exponent=60, divisions=4, roundings=40)
    torch.testing.assert_close(got.var.double(), want.var, rtol=relative, atol=0)
    low, high = torch.minimum(tensors[0], tensors[2]), torch.maximum(tensors[0], tensors[2])
    assert ((got.mean >= low - relative) & (got.mean <= high + relative)).all()
    assert_near(got.w_img, want.w_img, relative)
    for a, b in zip(gradients([got.mean, got.w_img], tensors), gradients([want.mean, want.w_img], wide), strict=True):
        assert_near(a, b, relative)
