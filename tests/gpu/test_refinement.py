from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ief_kernels import Refinement, _triton, reference, refine
from ief_kernels.refinement import library_products
from ief_kernels.refinement import triton_launch as host
from ief_kernels.refinement import triton_products as products
from tests.helpers.kernel_checks import assert_near, copies, gradients, leaf

pytestmark = pytest.mark.gpu

# float32 sums up to 768 products in another order; half precision rounds the products' inputs at every step.
RELATIVE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
ONE, MANY = 10**9, 0


def inputs(
    device: torch.device, rows: int, dim: int, hidden: int, blocks: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """z, w1, b1, w2, b2; hidden units well on or well off, since at relu's kink a rounding changes a whole unit."""
    torch.manual_seed(0)
    sizes = [(rows, dim), (blocks, hidden, dim), (blocks, hidden), (blocks, dim, hidden), (blocks, dim)]
    tensors = [leaf(*size, dtype=dtype) for size in sizes]
    for weight in (tensors[1], tensors[3]):
        weight.data.mul_(0.4 / weight.shape[-1] ** 0.5)
    tensors[2].data.copy_(tensors[2].sign() * 3)
    return [tensor.detach().to(device).requires_grad_() for tensor in tensors]


def sums_gradients(outputs: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """`gradients`, whose random weights are drawn on the CPU, for tensors on any device."""
    return [g.cpu() for g in gradients([out.cpu() for out in outputs], tensors) if g is not None]


def agree(tensors: list[Tensor], **options: int) -> None:
    dtype = tensors[0].dtype
    wide = [t.detach().double().cpu().requires_grad_() for t in tensors]
    got = refine(*tensors, backend="triton", **options)
    options.pop("checkpoint_every", None)
    want = reference.refine(*wide, **options)
    assert_near(got.cpu(), want, RELATIVE[dtype])
    for a, b in zip(sums_gradients([got], tensors), sums_gradients([want], wide), strict=True):
        assert_near(a, b, RELATIVE[dtype])


@pytest.mark.parametrize("limit", [ONE, MANY])
def test_repeats_bit_for_bit(device: torch.device, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "FEW_TOKENS", limit)
    tensors = inputs(device, 200, 96, 130, 3)
    runs = []
    for _ in range(2):
        out = refine(*tensors, backend="triton")
        runs.append([out, *sums_gradients([out], tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", list(RELATIVE), ids=str)
@pytest.mark.parametrize("limit", [0, 10**9])
def test_library_and_triton(
    cuda: torch.device, dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "LIBRARY_TOKENS", limit)
    library = 0 if dtype == torch.float32 else 1  # its place among the providers
    with _triton.forced(library):
        agree(inputs(cuda, 300, 96, 130, 3, dtype))
        agree(inputs(cuda, 300, 96, 130, 3, dtype), checkpoint_every=2)
        agree(inputs(cuda, 300, 96, 130, 1, dtype), steps=3)
    with torch.inference_mode():
        z, *weights = inputs(cuda, 1200, 96, 130, 4, dtype)
        assert_near(refine(z, *weights), reference.refine(*copies([z, *weights], torch.float64)), RELATIVE[dtype])


def test_what_the_library_offers(cuda: torch.device) -> None:
    assert library_products._works(library_products._fused_relu, cuda, torch.float32)
    if hasattr(torch.ops.aten.addmm, "dtype_out"):
        assert library_products.widens(cuda, torch.bfloat16)


def test_tf32_follows_torch(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(cuda, 300, 256, 256, 2)
    exact = refine(*tensors, backend="triton")
    monkeypatch.setattr(products, "precision", lambda dtype: "tf32")
    rounded = refine(*tensors, backend="triton")
    assert not torch.equal(rounded, exact)
    assert_near(rounded, exact, 5e-3)


@pytest.mark.parametrize("rows", [50, 2000])
def test_compiles_without_graph_breaks(cuda: torch.device, rows: int) -> None:
    module = Refinement(96, steps=3, backend="triton").to(cuda)
    z = torch.randn(rows, 96, device=cuda, requires_grad=True)
    got, want = torch.compile(module, fullgraph=True)(z), module(z)
    assert torch.equal(got, want)
    (a,), (b,) = torch.autograd.grad(got.square().sum(), z), torch.autograd.grad(want.square().sum(), z)
    assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [50, 2000])
def test_is_captured_in_a_graph(cuda: torch.device, rows: int) -> None:
    z, *weights = (t.detach() for t in inputs(cuda, rows, 96, 130, 3))
    refine(z, *weights, backend="triton")  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = refine(z, *weights, backend="triton")
    z.mul_(0.5)
    graph.replay()
    assert torch.equal(got, refine(z, *weights, backend="triton"))


def test_on_the_second_device(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    for rows in (50, 2000):
        agree(copies(inputs(torch.device("cuda:1"), rows, 96, 130, 2), torch.float32))
