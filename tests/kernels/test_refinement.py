from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from ief_kernels import BackendUnavailable, reference, refine
from ief_kernels.refinement import autograd, library_products
from tests.helpers.kernel_checks import assert_near, copies, gradients, leaf


@pytest.fixture(params=["native", "library"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that needs no extension. "library", which serves on a GPU, runs here in place of native."""
    if request.param == "library":
        monkeypatch.setitem(autograd._KERNELS, "native", library_products)
    return "native"


@pytest.fixture(params=["reference", "native", "library"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `fused`, and the reference."""
    if request.param == "library":
        monkeypatch.setitem(autograd._KERNELS, "native", library_products)
    return "native" if request.param == "library" else str(request.param)


def inputs(
    shape: tuple[int, ...] = (3, 4), dim: int = 5, hidden: int = 6, blocks: int = 4, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """z, w1, b1, w2, b2."""
    torch.manual_seed(0)
    sizes = [(*shape, dim), (blocks, hidden, dim), (blocks, hidden), (blocks, dim, hidden), (blocks, dim)]
    tensors = [leaf(*size, dtype=dtype) for size in sizes]
    for weight in tensors[1:]:
        weight.data.mul_(0.4)
    return tensors


def test_is_the_formula(backend: str) -> None:
    z, w1, b1, w2, b2 = inputs()
    expected = z
    for k in range(4):
        hidden = torch.einsum("hd,...d->...h", w1[k], expected) + b1[k]
        expected = expected - 0.3 * (torch.einsum("dh,...h->...d", w2[k], hidden.clamp(min=0)) + b2[k])
    torch.testing.assert_close(refine(z, w1, b1, w2, b2, attenuation=0.3, backend=backend), expected)


@pytest.mark.parametrize(("blocks", "steps"), [(4, None), (1, 4), (1, 1), (1, None)])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 100])
def test_gradcheck(backend: str, blocks: int, steps: int | None, every: int) -> None:
    tensors = inputs((2, 2), 3, 4, blocks)

    def call(*arguments: Tensor) -> Tensor:
        return refine(*arguments, steps=steps, checkpoint_every=every, backend=backend)

    assert gradcheck(call, tensors)


# Sums of 500 products in another order: a few float32 ulps a step. Half precision: `native` keeps z in float32 and
# rounds the products' inputs, so it errs less than the reference, which rounds z at every step.
@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float32, 5e-6), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)], ids=str
)
@pytest.mark.parametrize("sizes", [((1,), 1, 1), ((2, 63), 5, 7), ((3,), 500, 33), ((), 4, 4)], ids=str)
def test_is_the_float64_reference(
    backend: str, dtype: torch.dtype, relative: float, sizes: tuple[tuple[int, ...], int, int]
) -> None:
    tensors = inputs(*sizes, dtype=dtype)
    for weight in (tensors[1], tensors[3]):
        weight.data.div_(weight.shape[-1] ** 0.5)
    # hidden units well on or well off: at the kink of relu a rounded product changes the gradient by a whole unit
    tensors[2].data.copy_(tensors[2].sign() * 3)
    wide = copies(tensors, torch.float64)
    got, want = refine(*tensors, backend=backend), reference.refine(*wide)
    assert got.dtype == dtype
    assert_near(got, want, relative)
    for a, b in zip(gradients([got], tensors), gradients([want], wide), strict=True):
        assert a is not None and a.dtype == dtype
        assert_near(a, b, relative)


def test_no_steps_gives_z(backend: str) -> None:
    z, *weights = inputs(blocks=0)
    assert torch.equal(refine(z, *weights, backend=backend), z)
    z, *weights = inputs(blocks=1)
    assert torch.equal(refine(z, *weights, steps=0, backend=backend), z)


@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...]) -> None:
    tensors = inputs(shape)
    result = refine(*tensors, backend=backend)
    assert result.shape == (*shape, 5)
    grads = gradients([result], tensors)
    assert all((grad == 0).all() for grad in grads if grad is not None)


def test_strided(backend: str) -> None:
    z, *weights = inputs((6, 7), 10)
    view = z.transpose(0, 1)[::2, :, ::2]
    weights[0] = leaf(4, 5, 6).detach().transpose(1, 2).requires_grad_()
    weights[2] = leaf(4, 5, 12).detach()[:, :, ::2].requires_grad_()
    weights[3] = leaf(4, 5)
    plain = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in (view, *weights)]
    got, want = refine(view, *weights, backend=backend), refine(*plain, backend="reference")
    torch.testing.assert_close(got, want)
    for a, b in zip(gradients([got], [view, *weights]), gradients([want], plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    tensors = inputs((2, 9), 16, 16)
    tensors = copies([tensors[0].to(dtype), *tensors[1:]], torch.float32)
    tensors[0] = tensors[0].detach().to(dtype).requires_grad_()
    wide = copies(tensors, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        got = refine(*tensors, backend=backend)
    want = reference.refine(*wide)
    exact = refine(*copies(tensors, torch.float32), backend=backend)
    assert not torch.equal(got.float(), exact)  # the products did run in bfloat16
    if backend == "native":
        assert got.dtype == dtype
    assert_near(got, want, 4e-2)
    for grad, tensor, expected in zip(gradients([got], tensors), tensors, gradients([want], wide), strict=True):
        assert grad is not None and grad.dtype == tensor.dtype
        assert_near(grad, expected, 8e-2)


def test_keeps_every_kth_state_only(fused: str) -> None:
    tensors = inputs((8,), 16, 16, blocks=10)
    sizes: dict[int, int] = {}
    for every in (1, 3, 10):
        kept: list[int] = []

        def pack(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            if not any(tensor is weight for weight in tensors):
                kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            refine(*tensors, checkpoint_every=every, backend=fused)
        sizes[every] = sum(kept)
    assert sizes == {1: 9 * 8 * 16, 3: 3 * 8 * 16, 10: 0}


def test_needs_no_weight_gradients(fused: str) -> None:
    z, *weights = inputs()
    expected = gradients([refine(z, *weights, backend="reference")], [z])
    frozen = [weight.detach() for weight in weights]
    torch.testing.assert_close(gradients([refine(z, *frozen, backend=fused)], [z]), expected)


def test_repeats_bit_for_bit(fused: str) -> None:
    tensors = inputs((3, 37), 40, 30, dtype=torch.float32)
    runs = [[out, *gradients([out], tensors)] for out in (refine(*tensors, backend=fused) for _ in range(2))]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("blocks", [1, 3])
def test_registered_operators(fused: str, blocks: int) -> None:
    z, *weights = (t.detach() for t in inputs(blocks=blocks, dtype=torch.float32))
    settings = (0.5, 3, 2, torch.float32)
    ops = torch.ops.ief_kernels
    opcheck(ops.refine_forward, (z, *weights, *settings, fused))
    _, saved = ops.refine_forward(z, *weights, *settings, fused)
    for with_weights in (True, False):
        opcheck(ops.refine_backward, (torch.randn_like(z), z, saved, *weights, *settings, with_weights, fused))


def test_second_derivative_is_refused(fused: str) -> None:
    tensors = inputs()
    (grad,) = torch.autograd.grad(refine(*tensors, backend=fused).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not available"):
        grad.sum().backward()


def test_bad_input() -> None:
    z, w1, b1, w2, b2 = inputs()
    with pytest.raises(ValueError, match="z has 4 features"):
        refine(z[..., :4], w1, b1, w2, b2)
    with pytest.raises(ValueError, match="b2 must be"):
        refine(z, w1, b1, w2, b1)
    with pytest.raises(ValueError, match="disagrees with the 4 blocks"):
        refine(z, w1, b1, w2, b2, steps=3)
    with pytest.raises(ValueError, match="checkpoint_every"):
        refine(z, w1, b1, w2, b2, checkpoint_every=0)
    with pytest.raises(BackendUnavailable):
        refine(z, w1, b1, w2, b2, backend="triton")


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 9),
    dim=st.integers(1, 20),
    hidden=st.integers(1, 20),
    steps=st.integers(0, 5),
    every=st.integers(1, 6),
    shared=st.booleans(),
    attenuation=st.floats(-1.0, 1.0),
    library=st.booleans(),
)
def test_property(
    rows: int, dim: int, hidden: int, steps: int, every: int, shared: bool, attenuation: float, library: bool
) -> None:
    tensors = inputs((rows,), dim, hidden, 1 if shared else steps)
    with mock.patch.dict(autograd._KERNELS, {"native": library_products} if library else {}):
        got = refine(*tensors, attenuation=attenuation, steps=steps, checkpoint_every=every, backend="native")
        want = reference.refine(*tensors, attenuation=attenuation, steps=steps)
        torch.testing.assert_close(got, want)
        if steps:
            for a, b in zip(gradients([got], tensors), gradients([want], tensors), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("every", [1, 2, 100])
def test_nan_stays_in_its_row(fused: str, dtype: torch.dtype, every: int) -> None:
    z, *weights = (t.detach().to(dtype) for t in inputs((70,), 9, 9, 3))
    weights[0].requires_grad_()
    expected = refine(z, *weights, checkpoint_every=every, backend=fused)
    z[3, 4] = float("nan")
    got = refine(z, *weights, checkpoint_every=every, backend=fused)
    assert got[3].isnan().all()
    rest = torch.arange(70) != 3
    assert torch.equal(got[rest], expected[rest])


def test_large_biases_cancel(fused: str) -> None:
    """The library moves b2 into b1. Where they are a hundred times z, that costs the digits it must, and no more."""
    tensors = [t.detach() for t in inputs((40,), 24, 24, 10, torch.float32)]
    tensors[4].mul_(250)
    wide = [t.double() for t in tensors]
    # ten additions of numbers of about 500 in float32
    assert_near(refine(*tensors, backend=fused), reference.refine(*wide), 5e-6)


def test_plain_products_serve_where_fused_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epilogue that turns NaN into 0, as some libraries have it, is found out."""
    device = torch.device("cpu")
    real = torch._addmm_activation

    def wrong(bias: Tensor, a: Tensor, b: Tensor, *, use_gelu: bool, out: Tensor) -> Tensor:
        return real(bias, a, b, use_gelu=use_gelu, out=out).nan_to_num_(0.0)

    monkeypatch.setattr(library_products, "_found", {})
    assert library_products._works(library_products._fused_relu, device, torch.float32)
    monkeypatch.setattr(library_products, "_found", {})
    monkeypatch.setattr(torch, "_addmm_activation", wrong)
    assert not library_products._works(library_products._fused_relu, device, torch.float32)
    a, w1, b1 = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    a[1, 2] = torch.nan
    out = torch.empty(3, 5)
    library_products._hidden(a, w1, b1, out)
    torch.testing.assert_close(out, torch.nn.functional.linear(a, w1, b1).relu(), equal_nan=True)
    monkeypatch.setattr(library_products, "_found", {})
    monkeypatch.delattr(torch, "_addmm_activation")
    assert not library_products._works(library_products._fused_relu, device, torch.float32)


def test_a_rounded_product_is_not_taken_for_a_wide_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(total: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> None:
        total.copy_(torch.addmm(total, torch.mm(a, b).float(), torch.eye(b.shape[1]), beta=beta, alpha=alpha))

    def wide(total: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> None:
        total.copy_(torch.addmm(total, a.float(), b.float(), beta=beta, alpha=alpha))

    for function, found in ((rounded, False), (wide, True)):
        monkeypatch.setattr(library_products, "_found", {})
        monkeypatch.setattr(library_products, "_add_wide", function)
        assert library_products.widens(torch.device("cpu"), torch.bfloat16) == found
    monkeypatch.setitem(autograd._KERNELS, "native", library_products)
    for blocks, every in ((3, 1), (1, 2)):
        tensors = inputs((6,), 8, 8, blocks, torch.float32)
        tensors[2].data.copy_(tensors[2].sign() * 3)  # no hidden unit near relu's kink
        with torch.autocast("cpu", torch.bfloat16):
            got = refine(*tensors, steps=3, checkpoint_every=every, backend="native")
        exact = copies(tensors, torch.float64)
        want = reference.refine(*exact, steps=3)
        assert_near(got, want, 1e-2)  # operands rounded to 8 bits
        for grad, expected in zip(gradients([got], tensors), gradients([want], exact), strict=True):
            assert grad is not None and grad.dtype == torch.float32
            assert_near(grad, expected, 2e-2)
