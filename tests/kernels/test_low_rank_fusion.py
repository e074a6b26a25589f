from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, kl_divergence
from torch.library import opcheck

from ief_kernels import (
    BackendUnavailable,
    Fusion,
    LowRankFusion,
    explain,
    fusion_and_terms,
    fusion_terms,
    low_rank_fusion,
    low_rank_kl,
    precision_fusion,
    reference,
)
from tests.helpers.kernel_checks import (
    BACKENDS,
    assert_near,
    copies,
    gradients,
    instruction_set,
    leaf,
    low_rank_tolerance,
    needs_native,
    threads,
)

SHAPES = [(1, 1, 1), (2, 63, 5), (3, 7, 500), (1, 2, 768)]


def inputs(*shape: int, rank: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    """The four tensors and both factors, whose VᵀV has eigenvalues of about 1, below 4."""
    torch.manual_seed(seed)
    tensors = [leaf(*shape, dtype=dtype) for _ in range(4)]
    for _ in range(2):
        factor = torch.randn(shape[-1], rank, dtype=torch.float64) / math.sqrt(max(shape[-1], rank, 1))
        tensors.append(factor.to(dtype).requires_grad_())
    return tensors


def literal(tensors: list[Tensor], c_i: Any, c_e: Any, eps: float) -> list[Tensor]:
    """The definition with whole matrices, inverted as they stand."""
    mu_i, lv_i, mu_e, lv_e, factor_i, factor_e = tensors
    precisions = []
    for c, logvar, factor in ((c_i, lv_i, factor_i), (c_e, lv_e, factor_e)):
        scale = (c * logvar.exp() + eps).sqrt()
        inner = torch.eye(len(factor), dtype=factor.dtype) + factor @ factor.T
        precisions.append((scale[..., :, None] * inner * scale[..., None, :]).inverse())
    covariance = sum(precisions).inverse()  # type: ignore[union-attr]
    gain_i, gain_e = (covariance @ precision for precision in precisions)
    mean = (gain_i @ mu_i[..., None] + gain_e @ mu_e[..., None])[..., 0]
    return [mean, *(matrix.diagonal(dim1=-2, dim2=-1) for matrix in (covariance, gain_i, gain_e))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nu", [None, 8.0, (3.0, None)])
@pytest.mark.parametrize("eps", [1e-8, 0.5])
@pytest.mark.parametrize("rank", [1, 5])
def test_is_the_definition(backend: str, nu: Any, eps: float, rank: int) -> None:
    tensors = inputs(2, 7, 5, rank=rank)
    for factor in tensors[4:]:
        factor.data *= 3
    factors = [1.0 if n is None else n / (n + 1) for n in (nu if isinstance(nu, tuple) else (nu, nu))]
    expected = literal(tensors, *factors, eps)
    result = low_rank_fusion(*tensors, nu=nu, eps=eps, backend=backend)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(gradients(result, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("lengths", [None, torch.tensor([9, 4])], ids=str)
def test_without_correlations_it_is_precision_fusion(backend: str, rank: int, lengths: Tensor | None) -> None:
    tensors = inputs(2, 9, 70, rank=rank, dtype=torch.float32)
    for factor in tensors[4:]:
        factor.data.zero_()
    result = low_rank_fusion(*tensors, lengths=lengths, backend=backend)
    if lengths is None:
        expected = precision_fusion(*tensors[:4], backend=backend)
    else:
        expected = fusion_and_terms(*tensors[:4], lengths=lengths, backend=backend)[0]
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-7, atol=1e-7)  # one or two roundings
    pairs = zip(gradients(result, tensors[:4]), gradients(expected, tensors[:4]), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)  # the same numbers, multiplied in another order


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [2, 9])
def test_is_the_float64_reference(backend: str, dtype: torch.dtype, shape: tuple[int, ...], rank: int) -> None:
    tensors = copies(inputs(*shape, rank=rank), dtype)
    tensors[4:] = copies(tensors[4:], torch.float32)
    wide = copies(tensors, torch.float64)
    nu, wide_nu = (leaf(1, low=2.0, dtype=t) for t in (torch.float32, torch.float64))
    wide_nu.data.copy_(nu)
    lengths = torch.tensor([shape[1], 0, 2][: shape[0]])
    result = low_rank_fusion(*tensors, nu=nu, lengths=lengths, backend=backend)
    expected = reference.low_rank_fusion(*wide, nu=wide_nu, lengths=lengths)
    assert all(field.dtype == dtype for field in result)
    relative = low_rank_tolerance(dtype, shape[-1], rank)
    for got, want in zip(result, expected, strict=True):
        assert_near(got, want, relative)
    grads = gradients(result, [*tensors, nu], rounded=dtype), gradients(expected, [*wide, wide_nu], rounded=dtype)
    for got, want in zip(*grads, strict=True):
        assert_near(got, want, relative)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_sum_to_one_and_are_derivatives_of_the_mean(backend: str) -> None:
    tensors = inputs(1, 1, 6)
    for factor in tensors[4:]:
        factor.data *= 3
    result = low_rank_fusion(*tensors, backend=backend)
    torch.testing.assert_close(result.w_img + result.w_evt, torch.ones_like(result.w_img))
    assert 0 < result.w_img.mean() < 1
    for d in range(6):
        grad = torch.autograd.grad(result.mean[0, 0, d], [tensors[0], tensors[2]], retain_graph=True)
        torch.testing.assert_close(grad[0][0, 0, d], result.w_img[0, 0, d])
        torch.testing.assert_close(grad[1][0, 0, d], result.w_evt[0, 0, d])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_stays_finite_at_both_ends(backend: str, dtype: torch.dtype) -> None:
    ends = [-1e4, -100.0, -88.0, 0.0, 60.0, 88.0, 100.0, 1e4]
    pairs = torch.tensor(list(itertools.product(ends, ends)), dtype=dtype)
    mixed = pairs[torch.randperm(len(pairs))]  # tiny and huge variances beside each other in a row
    logvars = [torch.stack([pairs[:, k], mixed[:, k], torch.zeros(len(pairs))], -1).to(dtype) for k in (0, 1)]
    tensors = [torch.randn(64, 3).to(dtype), logvars[0], torch.ones(64, 3).to(dtype), logvars[1]]
    tensors = [*(t.requires_grad_() for t in tensors), *inputs(3, rank=2, dtype=torch.float32)[4:]]
    for eps in (1e-8, 0.0):
        result = low_rank_fusion(*tensors, eps=eps, backend=backend)
        if dtype == torch.float16:  # a shift of the mean by many deviations of a huge variance is beyond float16
            assert all(field.isfinite().all() for field in result[1:])
            continue
        assert all(field.isfinite().all() for field in result)
        torch.testing.assert_close(result.w_img + result.w_evt, torch.ones_like(result.w_img))
        for grad in gradients([result.w_img, result.w_evt], tensors):
            assert grad is None or grad.isfinite().all()


@needs_native
def test_saturates_like_the_reference() -> None:
    torch.manual_seed(0)
    tensors = inputs(4, 3, 33)
    for logvar in tensors[1:4:2]:
        logvar.data.copy_(torch.rand(4, 3, 33) * 24 - 12).add_(700 * torch.randint(0, 2, (4, 3, 1)))
    nu = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    results = [low_rank_fusion(*tensors, nu=nu, backend=backend) for backend in ("reference", "native")]
    shown = []
    for found in results:
        scale = found.var.detach().sqrt()
        shown.append([found.mean / scale.clamp(min=1), found.var.log(), found.w_img, found.w_evt])
    for want, got in zip(*shown, strict=True):
        torch.testing.assert_close(got, want)
    for want, got in zip(*(gradients(outputs, [*tensors, nu]) for outputs in shown), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[4, 0, 2], [0, 0, 0], [9, -3, 1]], ids=str)
def test_padding_is_invisible(backend: str, lengths: list[int]) -> None:
    tensors = inputs(3, 4, 5)
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    found = []
    for filler in (float("nan"), 7.0):
        filled = [torch.where(valid[..., None], t.detach(), filler).requires_grad_() for t in tensors[:4]]
        filled += copies(tensors[4:], torch.float64)
        result = low_rank_fusion(*filled, lengths=torch.tensor(lengths), backend=backend)
        terms = [low_rank_kl(filled[1], filled[4], lengths=torch.tensor(lengths))]
        found.append([*result, *terms, *gradients([*result, *terms], filled)])
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want) and got.isfinite().all()
    assert all((part[~valid] == 0).all() for part in (*found[0][:4], *found[0][5:9]))
    whole = low_rank_fusion(*(t[valid] for t in tensors[:4]), *tensors[4:], backend=backend)
    for got, want in zip(found[0][:4], whole, strict=True):
        torch.testing.assert_close(got[valid], want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0,)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    tensors, nu = inputs(*shape), leaf(1, low=2.0)
    result = low_rank_fusion(*tensors, nu=nu, backend=backend)
    assert all(field.shape == shape for field in result)
    assert low_rank_kl(tensors[1], tensors[4], nu=nu) == 0
    for grad, tensor in zip(gradients(result, [*tensors, nu]), [*tensors, nu], strict=True):
        assert grad is not None and grad.shape == tensor.shape and (grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided(backend: str) -> None:
    base = [leaf(7, 6, 9), leaf(7, 6, 9), leaf(7, 6, 9), leaf(7, 6, 9), leaf(2, 10), leaf(2, 10)]
    views = [*(t.transpose(0, 1)[::2, :, 1:6] for t in base[:4]), *(t[:, ::2].T for t in base[4:])]
    plain = [view.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for view in views]
    results = [low_rank_fusion(*t, backend=backend) for t in (views, plain)]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    outer, inner = gradients(results[0], base), gradients(results[1], plain)
    seen = [*(t.transpose(0, 1)[::2, :, 1:6] for t in outer[:4]), *(t[:, ::2].T for t in outer[4:])]
    for got, want in zip(seen, inner, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shapes", [((), (5,)), ((1,), (4, 1))], ids=str)
def test_gradcheck(backend: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    tensors, nus = inputs(2, 4, 5, rank=2), [leaf(*shape, low=1.5) for shape in shapes]
    lengths = torch.tensor([4, 1])

    def run(*arguments: Tensor) -> tuple[Tensor, ...]:
        return tuple(low_rank_fusion(*arguments[:6], nu=(arguments[6], arguments[7]), lengths=lengths, backend=backend))

    assert gradcheck(run, (*tensors, *nus))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", Fusion._fields)
def test_a_gradient_of_one_output_alone(backend: str, name: str) -> None:
    tensors = inputs(2, 3, 6)
    expected = dict(zip(Fusion._fields, literal(tensors, 8 / 9, 8 / 9, 1e-8), strict=True))
    result = low_rank_fusion(*tensors, backend=backend)._asdict()
    for got, want in zip(gradients([result[name]], tensors), gradients([expected[name]], tensors), strict=True):
        assert got is not None or want is None
        if got is not None:
            torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want)


@pytest.mark.parametrize("nu", [None, 8.0])
def test_kl_is_the_divergence_of_the_whole_covariance(nu: float | None) -> None:
    tensors = inputs(2, 3, 6)
    mu, logvar, factor = tensors[0], tensors[1], tensors[4]
    scale = ((1.0 if nu is None else nu / (nu + 1)) * logvar.exp()).sqrt()
    inner = torch.eye(6, dtype=torch.float64) + factor @ factor.T
    belief = MultivariateNormal(mu, scale[..., :, None] * inner * scale[..., None, :])
    normal = MultivariateNormal(torch.zeros_like(mu), torch.eye(6, dtype=torch.float64))
    want = kl_divergence(belief, normal).mean() / 6
    got = fusion_terms(*tensors[:4], nu=nu).kl_img + low_rank_kl(logvar, factor, nu=nu)
    torch.testing.assert_close(got, want)
    wanted = [mu, logvar, factor]
    for a, b in zip(gradients([got], wanted), gradients([want], wanted), strict=True):
        torch.testing.assert_close(a, b)
    half = low_rank_kl(logvar.to(torch.bfloat16), factor.to(torch.bfloat16))
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low_rank_kl(logvar.float(), factor.float()), low_rank_kl(logvar.float(), factor.float()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_round_its_products(backend: str) -> None:
    tensors = [t.detach() for t in inputs(2, 3, 40, dtype=torch.float32)]
    expected = [*low_rank_fusion(*tensors, backend=backend), low_rank_kl(tensors[1], tensors[4])]
    with torch.autocast("cpu", torch.bfloat16):
        result = [*low_rank_fusion(*tensors, backend=backend), low_rank_kl(tensors[1], tensors[4])]
    assert all(torch.equal(got, want) for got, want in zip(result, expected, strict=True))


def test_module_adds_the_low_rank_part_of_the_loss() -> None:
    module = LowRankFusion(6, 2, nu="learned", start=1.0)
    tensors = [t.float() for t in inputs(2, 3, 6)[:4]]
    lengths = torch.tensor([3, 1])
    fused, terms = module.with_terms(*tensors, lengths)
    factors = module.factors()
    expected = low_rank_fusion(*tensors, *factors, nu=module.nu(), lengths=lengths)
    assert all(torch.equal(got, want) for got, want in zip(fused, expected, strict=True))
    plain = fusion_terms(*tensors, nu=module.nu(), lengths=lengths)
    for own, other, logvar, factor in zip(terms, plain, tensors[1::2], factors, strict=False):
        assert torch.equal(own, other + low_rank_kl(logvar, factor, nu=8.0, lengths=lengths)) and own > other
    sum(terms).backward()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in module.parameters())
    torch.testing.assert_close(LowRankFusion(4000, 4).factors()[0].norm(dim=0), torch.full((4,), 0.1), rtol=0.1, atol=0)
    assert repr(module) == "LowRankFusion(6, rank=2, nu=learned, eps=1e-08)"
    assert LowRankFusion(6, 0)(*tensors).mean.shape == (2, 3, 6)
    with pytest.raises(ValueError, match="rank must not be negative"):
        LowRankFusion(6, -1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    module = LowRankFusion(8, 3, start=1.0, backend=backend)
    tensors = [leaf(2, 5, 8, dtype=torch.float32) for _ in range(4)]
    lengths = torch.tensor([5, 3])

    def run(*given: Tensor) -> list[Tensor]:
        fused, terms = module.with_terms(*given, lengths)
        return [*fused, *terms]

    torch.compiler.reset()
    compiled, expected = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors), run(*tensors)
    wanted = [*tensors, *module.parameters()]
    pairs = zip([*compiled, *gradients(compiled, wanted)], [*expected, *gradients(expected, wanted)], strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want)


@needs_native
def test_repeats_bit_for_bit_with_any_number_of_threads() -> None:
    tensors, nu = inputs(5, 37, 130, rank=5, dtype=torch.float32), leaf(130, low=2.0, dtype=torch.float32)
    runs = []
    for count in (1, 2, 2, 5):
        with threads(count):
            result = low_rank_fusion(*tensors, nu=nu, lengths=torch.tensor([37, 1, 0, 20, 36]), backend="native")
            runs.append([*result, *gradients(result, [*tensors, nu])])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@needs_native
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    tensors = inputs(2, 9, 77, rank=6, dtype=torch.float32)
    wide = copies(tensors, torch.float64)
    with instruction_set(isa) as there:
        if not there:
            pytest.skip(f"no {isa} here")
        result = low_rank_fusion(*tensors, backend="native")
        grads = gradients(result, tensors)
    expected = reference.low_rank_fusion(*wide)
    for got, want in zip([*result, *grads], [*expected, *gradients(expected, wide)], strict=True):
        assert_near(got, want, low_rank_tolerance(torch.float32, 77, 6))


@needs_native
@pytest.mark.parametrize("with_lengths", [False, True])
def test_registered_operators(with_lengths: bool) -> None:
    tensors = [t.detach() for t in inputs(2, 3, 4, dtype=torch.float32)]
    c = [torch.full((1,), 0.9), torch.rand(4) + 0.1]
    lengths = torch.tensor([3, 1]) if with_lengths else None
    ops = torch.ops.ief_kernels
    opcheck(ops.low_rank_fusion_forward, (*tensors, *c, lengths, 1.0, 0.8, 1e-8, "native"))
    grads = [torch.randn(2, 3, 4), None, torch.randn(2, 3, 4), None]
    opcheck(ops.low_rank_fusion_backward, (*grads, *tensors, *c, lengths, 1.0, 0.8, 1e-8, with_lengths, "native"))


@needs_native
def test_second_derivative_is_refused() -> None:
    tensors = inputs(2, 3, 4)
    fusion = low_rank_fusion(*tensors, backend="native")
    (grad,) = torch.autograd.grad(fusion.mean.sum(), tensors[4], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not available"):
        grad.sum().backward()
    fusion = low_rank_fusion(*tensors, backend="reference")
    (grad,) = torch.autograd.grad(fusion.mean.sum(), tensors[4], create_graph=True)
    grad.sum().backward()


@needs_native
def test_ranks_that_no_kernel_takes_go_to_the_reference() -> None:
    tensors = inputs(1, 2, 20, rank=17)
    expected = reference.low_rank_fusion(*tensors)
    assert all(torch.equal(got, want) for got, want in zip(low_rank_fusion(*tensors), expected, strict=True))
    with pytest.raises(BackendUnavailable, match="a rank of at most 16, not 17"):
        low_rank_fusion(*tensors, backend="native")
    assert "auto takes reference" in explain("low_rank_fusion", *tensors[:4], rank=17)
    assert "auto takes native" in explain("low_rank_fusion", *tensors[:4], rank=16)


def test_bad_input() -> None:
    good = inputs(2, 3, 4)
    with pytest.raises(ValueError, match="logvar_evt has shape"):
        low_rank_fusion(*good[:3], good[3][:1], *good[4:])
    with pytest.raises(ValueError, match=r"factor_img must be \(4, r\)"):
        low_rank_fusion(*good[:4], good[4].T, good[5])
    with pytest.raises(ValueError, match="factor_evt has rank 2, but factor_img has rank 3"):
        low_rank_fusion(*good[:5], good[5][:, :2])
    with pytest.raises(TypeError, match="factor_evt must be a floating-point tensor"):
        low_rank_fusion(*good[:5], good[5].long())
    with pytest.raises(ValueError, match="nu must be positive"):
        low_rank_fusion(*good, nu=0.0)
    with pytest.raises(ValueError, match="with lengths"):
        low_rank_fusion(*(t[0] for t in good[:4]), *good[4:], lengths=torch.tensor([3, 2]))
    with pytest.raises(ValueError, match="factor must be"):
        low_rank_kl(good[1], good[4].T)


@needs_native
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70)),
    rank=st.integers(1, 16),
    nu=st.one_of(st.none(), st.floats(0.5, 1e6)),
    eps=st.sampled_from([0.0, 1e-8, 1e-2]),
    seed=st.integers(0, 1000),
)
def test_property(shape: tuple[int, ...], rank: int, nu: float | None, eps: float, seed: int) -> None:
    tensors = inputs(*shape, rank=rank, dtype=torch.float32, seed=seed)
    wide = copies(tensors, torch.float64)
    got = low_rank_fusion(*tensors, nu=nu, eps=eps, backend="native")
    want = reference.low_rank_fusion(*wide, nu=nu, eps=eps)
    grads = gradients(got, tensors), gradients(want, wide)
    for a, b in zip((*got, *grads[0]), (*want, *grads[1]), strict=True):
        assert_near(a, b, low_rank_tolerance(torch.float32, shape[-1], rank))
