from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ief_kernels import _triton, explain, reference, refine
from ief_kernels._triton import COOPERATIVE
from ief_kernels.refinement import triton_launch as host
from ief_kernels.refinement import triton_products as products
from ief_kernels.refinement.native import kept_steps
from tests.helpers.kernel_checks import assert_near, copies, gradients, leaf

# Sums of up to 100 products in another order; half precision rounds the products' inputs at every step.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(params=["one launch", "many launches"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways forward, whatever the number of tokens."""
    if request.param == "one launch" and not COOPERATIVE:
        pytest.skip("this triton has no cooperative launch")
    monkeypatch.setattr(host, "FEW_TOKENS", 10**9 if request.param == "one launch" else 0)


def inputs(
    shape: tuple[int, ...], dim: int, hidden: int, blocks: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """z, w1, b1, w2, b2; hidden units well on or well off, since at relu's kink a rounding changes a whole unit."""
    torch.manual_seed(0)
    sizes = [(*shape, dim), (blocks, hidden, dim), (blocks, hidden), (blocks, dim, hidden), (blocks, dim)]
    tensors = [leaf(*size, dtype=dtype) for size in sizes]
    for weight in (tensors[1], tensors[3]):
        weight.data.mul_(0.4 / max(weight.shape[-1], 1) ** 0.5)
    tensors[2].data.copy_(tensors[2].sign() * 3)
    return tensors


def agree(tensors: list[Tensor], dtype: torch.dtype, **options: int) -> None:
    wide = copies(tensors, torch.float64)
    got = refine(*tensors, backend="triton", **options)
    options.pop("checkpoint_every", None)
    want = reference.refine(*wide, **options)
    assert got.dtype == dtype
    assert_near(got, want, TOLERANCE[dtype])
    for a, b in zip(gradients([got], tensors), gradients([want], wide), strict=True):
        assert a is not None and a.dtype == dtype
        assert_near(a, b, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [((1,), 1, 1, 1), ((2, 35), 33, 70, 2), ((3,), 100, 17, 2), ((), 4, 4, 3)], ids=str)
def test_is_the_float64_reference(dtype: torch.dtype, sizes: tuple[tuple[int, ...], int, int, int]) -> None:
    agree(inputs(*sizes, dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("blocks", "steps", "every"), [(5, 5, 2), (1, 4, 1), (1, 3, 2), (4, 4, 3), (3, 3, 100)])
def test_checkpoints_and_shared_blocks(dtype: torch.dtype, blocks: int, steps: int, every: int) -> None:
    agree(inputs((19,), 18, 21, blocks, dtype), dtype, steps=steps, checkpoint_every=every)


# What one launch shares with many is the backward pass.
@pytest.mark.parametrize("path", ["many launches"], indirect=True)
@pytest.mark.parametrize(
    ("size", "blocks", "steps", "every", "tokens"),
    [(1, 3, 3, 1, 130), (2, 6, 6, 1, 130), (2, 6, 6, 1, 19), (2, 1, 6, 1, 19), (3, 7, 7, 4, 130), (2, 1, 5, 3, 130)],
)
def test_groups_of_steps(
    monkeypatch: pytest.MonkeyPatch, size: int, blocks: int, steps: int, every: int, tokens: int
) -> None:
    monkeypatch.setattr(host, "GROUP_BYTES", size * tokens * (2 * 21 + 18) * 4)
    assert host.group_size(tokens, 18, 21, 4) == size
    monkeypatch.setattr(products, "_SHARE", 64)  # weight gradients of 130 tokens have parts
    agree(inputs((tokens,), 18, 21, blocks), torch.float32, steps=steps, checkpoint_every=every)


@pytest.mark.parametrize("shape", [(0,), (2, 0)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    tensors = inputs(shape, 5, 6, 2)
    result = refine(*tensors, backend="triton")
    assert result.shape == (*shape, 5)
    for grad, tensor in zip(gradients([result], tensors), tensors, strict=True):
        assert grad is not None and torch.equal(grad, torch.zeros_like(tensor))


def test_no_hidden_units() -> None:
    agree(inputs((3,), 5, 0, 2), torch.float32)


def test_strided() -> None:
    z, *weights = inputs((6, 7), 10, 6, 3)
    view = z.transpose(0, 1)[::2, :, ::2]
    weights[0] = leaf(3, 5, 6, dtype=torch.float32).detach().transpose(1, 2).requires_grad_()
    weights[2] = leaf(3, 5, 12, dtype=torch.float32).detach()[:, :, ::2].requires_grad_()
    weights[3] = leaf(3, 5, dtype=torch.float32)
    plain = copies([view, *weights], torch.float64)
    got, want = refine(view, *weights, backend="triton"), reference.refine(*plain)
    assert_near(got, want, TOLERANCE[torch.float32])
    for a, b in zip(gradients([got], [view, *weights]), gradients([want], plain), strict=True):
        assert a is not None and b is not None
        assert_near(a, b, TOLERANCE[torch.float32])


def test_nan_stays_in_its_row() -> None:
    z, *weights = (t.detach() for t in inputs((70,), 9, 9, 2))
    expected = refine(z, *weights, backend="triton")
    z[3, 4] = float("nan")
    got = refine(z, *weights, backend="triton")
    assert got[3].isnan().all()
    rest = torch.arange(70) != 3
    assert torch.equal(got[rest], expected[rest])


def test_products_in_half_precision_keep_half_the_bytes() -> None:
    tensors = inputs((8,), 16, 16, 6)
    wide = copies(tensors, torch.float64)
    expected = gradients([reference.refine(*wide)], wide)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.float16):
        got = refine(*tensors, backend="triton")
    assert got.dtype == torch.float32
    assert [(t.dtype, len(t)) for t in kept if not any(t is weight for weight in tensors)] == [(torch.float16, 5)]
    for a, b in zip(gradients([got], tensors), expected, strict=True):
        assert a is not None and b is not None and a.dtype == torch.float32
        assert_near(a, b, TOLERANCE[torch.float16])


def test_needs_no_weight_gradients() -> None:
    z, *weights = inputs((5,), 6, 7, 3)
    frozen = [weight.detach() for weight in weights]
    expected = gradients([refine(z, *weights, backend="triton")], [z])
    assert torch.equal(*(gradients([refine(z, *frozen, backend="triton")], [z])[0], expected[0]))  # type: ignore[arg-type]


def test_repeats_bit_for_bit() -> None:
    tensors = inputs((3, 37), 40, 30, 2)
    runs = [[out, *gradients([out], tensors)] for out in (refine(*tensors, backend="triton") for _ in range(2))]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))  # type: ignore[arg-type]


# Configurations are those of many launches; what one launch shares with them is the backward pass.
@pytest.mark.parametrize("path", ["many launches"], indirect=True)
@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_every_configuration(index: int) -> None:
    with _triton.forced(index):
        agree(inputs((2, 67), 70, 65, 2), torch.float32)
        agree(inputs((2, 67), 70, 65, 2, torch.float16), torch.float16)


def test_weight_gradients_of_many_tokens_have_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_SHARE", 64)
    assert products.parts(200, 9, 8)[0] == 4
    agree(inputs((200,), 8, 9, 1), torch.float32, steps=2)


@pytest.mark.parametrize("blocks", [1, 3])
def test_registered_operators(blocks: int) -> None:
    z, *weights = (t.detach() for t in inputs((4,), 5, 6, blocks))
    ops = torch.ops.ief_kernels
    for every in (1, 2):
        settings = (0.5, 3, every, torch.float16)
        opcheck(ops.refine_forward, (z, *weights, *settings, "triton"))
        _, saved = ops.refine_forward(z, *weights, *settings, "triton")
        assert len(saved) == len(kept_steps(3, every))
        opcheck(ops.refine_backward, (torch.randn_like(z), z, saved, *weights, *settings, True, "triton"))


def test_compiles_without_graph_breaks() -> None:
    tensors = inputs((4,), 5, 6, 3)

    def call(*arguments: Tensor) -> Tensor:
        return refine(*arguments, backend="triton") * 2

    got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors), call(*tensors)
    assert torch.equal(got, want)
    for a, b in zip(gradients([got], tensors), gradients([want], tensors), strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


def test_explained() -> None:
    assert "auto takes triton" in explain("refine", torch.float16)
    assert "takes native" in explain("refine", torch.float64)
    tokens = torch.empty(5, 4)
    assert ("all steps in one launch (" in explain("refine", tokens)) == (host.FEW_TOKENS > 0)


def test_plans_depend_on_shapes_alone() -> None:
    assert host.group_size(512, 768, 768, 2) >= 9  # two clips: all steps together
    assert host.group_size(32768, 768, 768, 2) == 1
    assert products.parts(32768, 768, 768) == (8, 4096)
    assert products.parts(100, 768, 768) == (1, 128)
    assert all((count - 1) * share < 5000 <= count * share for count, share in [products.parts(5000, 64, 8192)])
