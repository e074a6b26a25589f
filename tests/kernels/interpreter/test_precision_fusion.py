from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ief_kernels import Fusion, Terms, _triton, explain, fusion_and_terms, fusion_terms, precision_fusion, reference
from ief_kernels._counters import counter
from ief_kernels.precision_fusion import triton_launch as launcher
from tests.helpers.kernel_checks import (
    FUSION_FLOAT32,
    FUSION_RELATIVE,
    assert_near,
    copies,
    gradients,
    leaf,
    norm_tolerance,
    tolerance,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


def inputs(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [leaf(*shape, dtype=dtype) for _ in range(4)]


def flat(result: tuple[Fusion, Terms]) -> list[Tensor]:
    return [*result[0], *result[1]]


def compare(got: list[Tensor], want: list[Tensor], relative: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, relative)


def run(part: str, tensors: list[Tensor], nus: tuple[Tensor, ...], lengths: Tensor, backend: str) -> list[Tensor]:
    function = {"both": fusion_and_terms, "terms": fusion_terms, "fusion": precision_fusion}[part]
    limits = {} if part == "fusion" else {"lengths": lengths}
    if backend == "reference":
        function = getattr(reference, function.__name__)
    else:
        limits["backend"] = backend
    result = function(*tensors, nu=nus, **limits)
    return flat(result) if part == "both" else [*result]


# 2100 columns are more than the backward pass holds in registers
@pytest.mark.parametrize(
    ("part", "dtype"),
    [("both", torch.float32), ("both", torch.float16), ("fusion", torch.float32), ("terms", torch.float32)],
    ids=str,
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 5), (3, 7, 300), (1, 2, 768), (1, 2, 2100)], ids=str)
@pytest.mark.parametrize("per_dim", [False, True])
def test_is_the_float64_reference(dtype: torch.dtype, shape: tuple[int, ...], per_dim: bool, part: str) -> None:
    tensors = inputs(*shape, dtype=dtype)
    wide = copies(tensors, torch.float64)
    nus = [leaf(shape[-1] if per_dim else 1, low=2.0, dtype=torch.float32), leaf(1, low=5.0, dtype=torch.float32)]
    wide_nus = copies(nus, torch.float64)
    lengths = torch.tensor([shape[1], 0, 2][: shape[0]])
    got = run(part, tensors, tuple(nus), lengths, "triton")
    want = run(part, wide, tuple(wide_nus), lengths, "reference")
    assert all(result.dtype == (torch.float32 if result.dim() == 0 else dtype) for result in got)
    relative = FUSION_RELATIVE[dtype]
    if part != "fusion":
        assert_near(got.pop(), want.pop(), norm_tolerance(FUSION_FLOAT32, shape[-1]))
    compare(got, want, relative)
    leaves, wide_leaves = [*tensors, *nus], [*wide, *wide_nus]
    compare(gradients(got, leaves, rounded=dtype), gradients(want, wide_leaves, rounded=dtype), relative)


@pytest.mark.parametrize("fields", [("mean",), ("var",), ("mean", "var"), ("w_img",), ("w_evt", "mean")], ids=str)
@pytest.mark.parametrize("with_terms", [False, True])
def test_gradient_of_some_outputs(fields: tuple[str, ...], with_terms: bool) -> None:
    tensors = inputs(2, 5, 37)
    wide = copies(tensors, torch.float64)
    chosen = []
    for backend, leaves in (("triton", tensors), ("reference", wide)):
        fusion, terms = fusion_and_terms(*leaves, lengths=torch.tensor([5, 2]), backend=backend)
        chosen.append([getattr(fusion, name) for name in fields] + ([terms.cosine] if with_terms else []))
    for got, want in zip(gradients(chosen[0], tensors), gradients(chosen[1], wide), strict=True):
        if want is None:
            assert got is None or (got == 0).all()
        else:
            assert_near(got, want, FUSION_FLOAT32)


@DTYPES
def test_stays_finite_and_saturates_like_the_reference(dtype: torch.dtype) -> None:
    ends = [-1e4, -100.0, -88.0, -60.0, 0.0, 60.0, 79.5, 88.0, 100.0, 1e4]
    pairs = torch.tensor(list(itertools.product(ends, ends)))
    columns = (torch.randn(100, 1), pairs[:, :1], torch.ones(100, 1), pairs[:, 1:])
    tensors = [column.to(dtype).requires_grad_() for column in columns]
    same = copies(tensors, dtype)
    nu, same_nu = (torch.tensor([3.0], requires_grad=True) for _ in range(2))
    got = precision_fusion(*tensors, nu=nu, backend="triton")
    want = precision_fusion(*same, nu=same_nu, backend="reference")
    # On each side two exponentials of arguments up to their own logvar, and a rounding to float16 at the end. The mean
    # is a sum of two products that may cancel, so its error is measured against their sizes.
    sizes = sum(torch.where(t.detach().abs() > 88, 88, t.detach().abs()).double() for t in tensors[1::2])
    relative = (
        tolerance(torch.float32, exps=4, divisions=4, roundings=12) + tolerance(torch.float32, roundings=1) * sizes
    )
    if dtype == torch.float16:
        relative = relative + tolerance(dtype, roundings=2)
    parts = want.w_img.abs() * tensors[0].abs() + want.w_evt.abs() * tensors[2].abs()
    for name, a, b in zip(Fusion._fields, got, want, strict=True):
        scale = (parts if name == "mean" else b.abs()).detach().double()
        smallest = torch.finfo(dtype).tiny if dtype == torch.float16 else 1e-30
        assert ((a - b).detach().double().abs() <= relative * scale + smallest).all(), name
    # The reference's gradient of var itself cancels between two float32 variances far apart; that of its logarithm
    # tells. A float16 variance may be 0, and has no room for such a pair.
    logarithm = (lambda t: t) if dtype == torch.float16 else torch.log
    chosen = [
        [logarithm(field) if name == "var" else field for name, field in f._asdict().items()] for f in (got, want)
    ]
    grads, expected = gradients(chosen[0], [*tensors, nu]), gradients(chosen[1], [*same, same_nu])
    for a, b in zip(grads, expected, strict=True):
        assert a is not None and a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=2e-3 if dtype == torch.float16 else 2e-5, atol=2e-5)
    terms = fusion_terms(*tensors, backend="triton")
    assert all(term.isfinite() for term in terms)
    if dtype == torch.float32:  # the gradient of exp(100) is beyond float16
        assert all(grad is not None and grad.isfinite().all() for grad in gradients(terms, tensors))


def test_a_sum_of_saturated_terms_does_not_overflow() -> None:
    tensors = [t.detach() for t in inputs(40, 300)]
    tensors[1] += 200
    tensors[3] += 200
    got, want = (fusion_terms(*tensors, backend=backend) for backend in ("triton", "reference"))
    assert got.kl_img.isfinite() and got.kl_evt.isfinite()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [[4, 0, 2], [0, 0, 0], [9, -3, 1]], ids=str)
@pytest.mark.parametrize("integer", [torch.int64, torch.int32])
def test_padding_is_invisible(lengths: list[int], integer: torch.dtype) -> None:
    tensors = inputs(3, 4, 5)
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    dirty = [torch.where(valid[..., None], t.detach(), float("nan")).requires_grad_() for t in tensors]
    clean = [torch.where(valid[..., None], t.detach(), 7.0).requires_grad_() for t in tensors]
    nus = [leaf(1, low=2.0, dtype=torch.float32), leaf(5, low=2.0, dtype=torch.float32)]
    limits = torch.tensor(lengths, dtype=integer)
    results = [flat(fusion_and_terms(*t, nu=tuple(nus), lengths=limits, backend="triton")) for t in (dirty, clean)]
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want) and got.isfinite().all()
    assert all((field[~valid] == 0).all() for field in results[0][:4])
    pairs = zip(gradients(results[0], [*dirty, *nus]), gradients(results[1], [*clean, *nus]), strict=True)
    for index, (got, want) in enumerate(pairs):
        assert got is not None and want is not None
        assert torch.equal(got, want) and got.isfinite().all()
        assert index > 3 or (got[~valid] == 0).all()
    if not valid.any():
        assert all(term == 0 for term in results[0][4:])


def test_nan_in_a_valid_position_comes_out() -> None:
    for index, names in enumerate(
        (("mean", "kl_img", "cosine", "norm"), ("mean", "var", "w_img", "kl_img"), ("cosine",), ("w_evt", "kl_evt"))
    ):
        tensors = [t.detach() for t in inputs(2, 3, 5)]
        tensors[index][1, 1, 2] = float("nan")
        fusion, terms = fusion_and_terms(*tensors, backend="triton")
        results = {**fusion._asdict(), **terms._asdict()}
        for name in names:
            assert results[name].isnan().any(), name
        assert all(field.isnan().sum() <= 1 for field in fusion)


def test_zero_vectors() -> None:
    tensors = inputs(3, 4)
    tensors[0].data[0] = 0
    tensors[2].data[:2] = 0
    terms = fusion_terms(*tensors, backend="triton")
    cosine = torch.cosine_similarity(tensors[0][2], tensors[2][2], dim=0)
    torch.testing.assert_close(terms.cosine, (1 + 1 + 1 - cosine) / 3)
    grad_i, grad_e = torch.autograd.grad(terms.cosine + terms.norm, [tensors[0], tensors[2]])
    assert grad_i.isfinite().all() and grad_e.isfinite().all()
    assert (grad_i[0] == 0).all() and (grad_e[:2] == 0).all() and (grad_i[1] != 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0,)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    tensors = inputs(*shape)
    nu = leaf(1, low=2.0, dtype=torch.float32)
    result = flat(fusion_and_terms(*tensors, nu=nu, backend="triton"))
    assert all(field.shape == shape for field in result[:4])
    assert all(term == 0 for term in result[4:])
    assert all(grad is not None and grad.isfinite().all() for grad in gradients(result, [*tensors, nu]))


@pytest.mark.parametrize("with_terms", [False, True])
def test_strided(with_terms: bool) -> None:
    joined = inputs(5, 6, 14, seed=3)
    base = [joined[0], joined[1], joined[2], joined[3]]
    # one row stride (read in place), rows of a transposed tensor, every other column (both copied)
    views = [base[0][..., :7], base[1].transpose(0, 1)[:5, :5, 7:], base[2][..., ::2], base[3][:, :, 3:10]]
    views = [view[:5, :5] for view in views]
    plain = [view.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for view in views]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        if with_terms:
            return flat(fusion_and_terms(*tensors, backend="triton"))
        return [*precision_fusion(*tensors, backend="triton")]

    results = [run(tensors) for tensors in (views, plain)]
    # another path may add its seven numbers in another order
    relative = tolerance(torch.float32, roundings=8)
    compare(results[0], results[1], relative)
    inner = gradients(results[0], views)
    for got, want in zip(inner, gradients(results[1], plain), strict=True):
        assert_near(got, want, relative)
    results = [run(tensors) for tensors in (views, plain)]
    for leaf_grad, got in zip(gradients(results[0], base), inner, strict=True):
        assert leaf_grad.shape == (5, 6, 14) and (leaf_grad != 0).sum() <= got.numel()


def test_repeats_bit_for_bit() -> None:
    tensors = inputs(5, 17, 130)
    nu = leaf(130, low=2.0, dtype=torch.float32)
    lengths = torch.tensor([17, 1, 0, 9, 16])
    runs = []
    for _ in range(2):
        result = flat(fusion_and_terms(*tensors, nu=nu, lengths=lengths, backend="triton"))
        runs.append([*result, *gradients(result, [*tensors, nu])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_configuration(index: int) -> None:
    assert max(len(launcher.forward_tuner(300, False, 4).configs), len(launcher.backward_tuner(512, 4).configs)) <= 3
    tensors = inputs(2, 9, 300)
    wide = copies(tensors, torch.float64)
    nu = leaf(1, low=2.0, dtype=torch.float32)
    wide_nu = nu.detach().double().requires_grad_()
    lengths = torch.tensor([9, 4])
    with _triton.forced(index):
        result = flat(fusion_and_terms(*tensors, nu=nu, lengths=lengths, backend="triton"))
        grads = gradients(result, [*tensors, nu])
        fusion = precision_fusion(*tensors, nu=nu, backend="triton")
        fusion_grads = gradients(fusion, [*tensors, nu])
    expected = flat(reference.fusion_and_terms(*wide, nu=wide_nu, lengths=lengths))
    compare([*result, *grads], [*expected, *gradients(expected, [*wide, wide_nu])], FUSION_FLOAT32)
    expected_fusion = reference.precision_fusion(*wide, nu=wide_nu)
    compare([*fusion, *fusion_grads], [*expected_fusion, *gradients(expected_fusion, [*wide, wide_nu])], FUSION_FLOAT32)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels launched from here on."""
    from triton.runtime.interpreter import GridExecutor

    names: list[str] = []
    run: Any = GridExecutor.__call__

    def counted(launch: Any, *arguments: Any, **keywords: Any) -> Any:
        names.append(launch.fn.__name__)
        return run(launch, *arguments, **keywords)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    return names


@pytest.mark.parametrize("kind", ["a number", "a tensor", "per dimension"])
def test_one_launch_forward_and_one_backward(kind: str, launches: list[str]) -> None:
    nu = 8.0 if kind == "a number" else leaf(1 if kind == "a tensor" else 5, low=2.0, dtype=torch.float32)
    tensors = inputs(3, 4, 5)
    result = flat(fusion_and_terms(*tensors, nu=nu, lengths=torch.tensor([4, 0, 2]), backend="triton"))
    assert launches == ["fusion_forward"]
    gradients(result, tensors if isinstance(nu, float) else [*tensors, nu])
    assert launches == ["fusion_forward", "fusion_backward", *["fusion_factors"] * (kind == "per dimension")]


# Few programs take several tiles each, and the last of them adds their sums.
@pytest.mark.parametrize("programs", [1, 2])
@pytest.mark.parametrize("per_dim", [False, True])
def test_few_programs_and_the_last_of_them(per_dim: bool, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "PROGRAMS", programs)  # of each of two multiprocessors
    tensors, lengths = inputs(3, 7, 300), torch.tensor([7, 0, 5])
    nus = (leaf(300 if per_dim else 1, low=2.0, dtype=torch.float32), 5.0)
    wide = copies([*tensors, nus[0]], torch.float64)
    for _ in range(2):  # the second launch finds the counter that the first has set back
        got = flat(fusion_and_terms(*tensors, nu=nus, lengths=lengths, backend="triton"))
        want = flat(reference.fusion_and_terms(*wide[:4], nu=(wide[4], 5.0), lengths=lengths))
        compare(got[:-1], want[:-1], FUSION_FLOAT32)
        assert_near(got[-1], want[-1], norm_tolerance(FUSION_FLOAT32, 300))
        compare(gradients(got, [*tensors, nus[0]]), gradients(want, wide), FUSION_FLOAT32)
        assert counter(torch.device("cpu")) == 0


@pytest.mark.parametrize("with_lengths", [False, True])
def test_registered_operators(with_lengths: bool) -> None:
    tensors = [t.detach() for t in inputs(2, 3, 4)]
    c = [torch.full((1,), 0.9), torch.rand(4) + 0.1]
    lengths = torch.tensor([3, 1]) if with_lengths else None
    ops = torch.ops.ief_kernels
    opcheck(ops.precision_fusion_forward, (*tensors, *c, lengths, 1.0, 0.8, 1e-8, True, with_lengths, "triton"))
    opcheck(ops.precision_fusion_forward, (*tensors, *c, lengths, 1.0, 0.8, 1e-8, False, True, "triton"))
    grads = [torch.randn(2, 3, 4), None, torch.randn(2, 3, 4), None, torch.randn(4)]
    opcheck(ops.precision_fusion_backward, (*grads, *tensors, *c, lengths, 1.0, 0.8, 1e-8, with_lengths, "triton"))


def test_compiles_without_a_break() -> None:
    tensors = inputs(2, 5, 12)
    nu = leaf(1, low=2.0, dtype=torch.float32)
    lengths = torch.tensor([5, 3])

    def step(*leaves: Tensor) -> list[Tensor]:
        return flat(fusion_and_terms(*leaves[:4], nu=leaves[4], lengths=lengths))  # auto

    plain, compiled = step(*tensors, nu), torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors, nu)
    for got, want in zip(compiled, plain, strict=True):
        torch.testing.assert_close(got, want)
    for got, want in zip(gradients(compiled, [*tensors, nu]), gradients(plain, [*tensors, nu]), strict=True):
        torch.testing.assert_close(got, want)


def test_second_derivative_is_refused() -> None:
    tensors = inputs(2, 3, 4)
    fusion = precision_fusion(*tensors, backend="triton")
    (grad,) = torch.autograd.grad(fusion.mean.sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not available"):
        grad.sum().backward()


def test_explain_names_the_limits() -> None:
    assert "auto takes triton" in explain("fusion_and_terms", torch.float32)
    assert "interpreter (TRITON_INTERPRET=1) gets bfloat16 wrong" in explain("fusion_and_terms", torch.bfloat16)
    assert "does not take torch.float64" in explain("fusion_and_terms", torch.float64)
