from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ief_kernels import PrecisionFusion, _triton, fusion_and_terms, precision_fusion, reference
from ief_kernels.precision_fusion import triton_launch as launcher
from tests.helpers.kernel_checks import (
    FUSION_FLOAT32,
    assert_near,
    copies,
    leaf,
    norm_tolerance,
    tolerance,
)

pytestmark = pytest.mark.gpu


def inputs(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    tensors = [leaf(*shape, dtype=dtype) for _ in range(4)]
    return [tensor.detach().to(device).requires_grad_() for tensor in tensors]


def nu_pair(device: torch.device, dim: int, per_dim: bool) -> list[Tensor]:
    nus = [leaf(dim if per_dim else 1, low=2.0, dtype=torch.float32), leaf(1, low=5.0, dtype=torch.float32)]
    return [nu.detach().to(device).requires_grad_() for nu in nus]


def outputs(
    tensors: list[Tensor], nus: list[Tensor], lengths: Tensor, function: Callable, **keywords: str
) -> list[Tensor]:
    fusion, terms = function(*tensors, nu=tuple(nus), lengths=lengths, **keywords)
    return [*fusion, *terms]


def gradients_on(
    results: list[Tensor], leaves: list[Tensor], rounded: torch.dtype = torch.float64, seed: int = 1
) -> list[Tensor | None]:
    """`kernel_checks.gradients` with the same weights on any device, rounded to a dtype."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(rounded).to(r) for r in results]
    total = sum((weight * result).sum().double() for weight, result in zip(weights, results, strict=True))
    return list(torch.autograd.grad(total, leaves, allow_unused=True))


def test_repeats_bit_for_bit(device: torch.device) -> None:
    tensors, nus = inputs(device, 5, 37, 130), nu_pair(device, 130, True)
    lengths = torch.tensor([37, 1, 0, 20, 36], device=device)
    runs = []
    for _ in range(2):
        result = outputs(tensors, nus, lengths, fusion_and_terms, backend="triton")
        runs.append([*result, *gradients_on(result, [*tensors, *nus])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_large_call_is_tuned_and_right(cuda: torch.device, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IEF_KERNELS_CACHE", str(tmp_path))
    launcher.forward_tuner.cache_clear()
    launcher.backward_tuner.cache_clear()
    tensors, nus = inputs(cuda, 24, 256, 768), nu_pair(cuda, 768, False)
    lengths = torch.arange(24, device=cuda) * 11
    got = outputs(tensors, nus, lengths, fusion_and_terms, backend="triton")
    want = outputs(copies(tensors, torch.float64), copies(nus, torch.float64), lengths, reference.fusion_and_terms)
    for a, b in zip(got[:-1], want[:-1], strict=True):
        assert_near(a, b, FUSION_FLOAT32)
    assert_near(got[-1], want[-1], norm_tolerance(FUSION_FLOAT32, 768))
    gradients_on(got, [*tensors, *nus])
    (file,) = _triton.cache_folder().glob("*.json")
    assert "fusion_forward" in file.read_text() and "fusion_backward" in file.read_text()


def test_saturation(device: torch.device) -> None:
    ends = torch.tensor([-1e4, -100.0, 0.0, 60.0, 88.0, 100.0, 1e4])
    pairs = torch.cartesian_prod(ends, ends)
    columns = (torch.randn(49, 1), pairs[:, :1], torch.ones(49, 1), pairs[:, 1:])
    tensors = [column.to(device).requires_grad_() for column in columns]
    got = precision_fusion(*tensors, backend="triton")
    want = reference.precision_fusion(*copies(tensors, torch.float32))
    # Two exponentials on each side; the mean is a sum of two products that may cancel.
    relative = tolerance(torch.float32, exps=4, exponent=20, divisions=4, roundings=12)
    parts = want.w_img * tensors[0].abs() + want.w_evt * tensors[2].abs()
    for name, a, b in zip(got._fields, got, want, strict=True):
        scale = (parts if name == "mean" else b).detach().abs()
        assert ((a - b).detach().abs() <= relative * scale + 1e-30).all(), name
    assert all(grad is not None and grad.isfinite().all() for grad in gradients_on([*got], tensors))


def test_padding_is_invisible(device: torch.device) -> None:
    tensors, nus = inputs(device, 3, 40, 96), nu_pair(device, 96, False)
    lengths = torch.tensor([40, 0, 17], device=device)
    valid = torch.arange(40, device=device) < lengths[:, None]
    dirty = [torch.where(valid[..., None], t.detach(), float("nan")).requires_grad_() for t in tensors]
    runs = []
    for leaves in (tensors, dirty):
        result = outputs(leaves, nus, lengths, fusion_and_terms, backend="triton")
        runs.append([*result, *gradients_on(result, [*leaves, *nus])])
    assert all(torch.equal(a, b) and b.isfinite().all() for a, b in zip(*runs, strict=True))


def test_compiles_without_a_break(cuda: torch.device) -> None:
    module = PrecisionFusion(nu="learned", backend="triton").to(cuda)
    tensors, lengths = inputs(cuda, 2, 9, 768), torch.tensor([9, 4], device=cuda)

    def step(*leaves: Tensor) -> list[Tensor]:
        fusion, terms = module.with_terms(*leaves, lengths)
        return [*fusion, *terms]

    leaves = [*tensors, *module.parameters()]
    plain, compiled = step(*tensors), torch.compile(step, fullgraph=True)(*tensors)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)
    pairs = zip(gradients_on(plain, leaves), gradients_on(compiled, leaves), strict=True)
    assert all(a is not None and b is not None and torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


@pytest.mark.parametrize("per_dim", [False, True])
def test_graph_capture(cuda: torch.device, per_dim: bool) -> None:
    tensors, nus = inputs(cuda, 3, 20, 768), nu_pair(cuda, 768, per_dim)
    lengths = torch.tensor([20, 5, 0], device=cuda)
    weights = torch.randn(3, 20, 768, device=cuda)

    def step() -> list[Tensor]:
        fusion, terms = fusion_and_terms(*tensors, nu=tuple(nus), lengths=lengths, backend="triton")
        total = (fusion.mean * weights + fusion.var).sum() + terms.kl_img + terms.kl_evt + terms.cosine + terms.norm
        return [*fusion, *terms, *torch.autograd.grad(total, [*tensors, *nus])]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in tensors:
            tensor.mul_(0.5)
        lengths.copy_(torch.tensor([7, 20, 1]))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_second_device(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    tensors, nus = inputs(torch.device("cuda:1"), 2, 9, 100), nu_pair(torch.device("cuda:1"), 100, False)
    lengths = torch.tensor([9, 4], device="cuda:1")
    got = outputs(tensors, nus, lengths, fusion_and_terms, backend="triton")
    want = outputs(copies(tensors, torch.float64), copies(nus, torch.float64), lengths, reference.fusion_and_terms)
    for a, b in zip(got, want, strict=True):
        assert a.device == torch.device("cuda:1")
        assert_near(a, b, norm_tolerance(FUSION_FLOAT32, 100))
