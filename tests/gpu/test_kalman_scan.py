"""The scan's Triton kernels on a GPU: long sequences, compilation, graphs, a second device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.kernel_checks import SCAN_RELATIVE, assert_near, leaf

pytest.importorskip("triton")

from ief_kernels import KalmanScan, _triton, kalman_scan
from ief_kernels.kalman_scan.paths import forced_path

pytestmark = pytest.mark.gpu
INTERPRETED = _triton.INTERPRET
SHAPE = (2, 9, 70) if INTERPRETED else (3, 261, 770)
CHUNK = 4 if INTERPRETED else 32
PATHS = ("sequential", "chunks")
# A sum of gradients over all steps (of q) errs by more than a step.
RELATIVE = {**SCAN_RELATIVE, torch.float32: 2 * SCAN_RELATIVE[torch.float32]}


def inputs(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int] = SHAPE) -> list[Tensor]:
    """x, var, process noise, initial s and p on the device."""
    torch.manual_seed(0)
    batch, _, dim = shape
    made = [leaf(*shape, dtype=dtype), leaf(*shape, dtype=dtype, low=0.2), leaf(dim, dtype=torch.float32, low=0.0)]
    made += [leaf(batch, dim, dtype=torch.float32), leaf(batch, dim, dtype=torch.float32, low=0.2)]
    return [tensor.detach().to(device).requires_grad_() for tensor in made]


def run(tensors: list[Tensor], *, carried: bool, backend: str = "triton", **options: Any) -> list[Tensor]:
    x, var, noise, s, p = tensors
    state = (s, p) if carried else None
    scan = kalman_scan(x, var, process_noise=noise, initial_state=state, backend=backend, **options)
    return [scan.mean, scan.var, scan.gain, *scan.state]


def compare(tensors: list[Tensor], *, carried: bool, **options: Any) -> None:
    """Outputs and gradients against the reference in float64 on the CPU."""
    used = 5 if carried else 3
    wide = [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
    got = run(tensors, carried=carried, **options)
    weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in got]
    total = sum((t * w.to(t)).sum(dtype=torch.float32) for t, w in zip(got, weights, strict=True))
    grads = torch.autograd.grad(total, tensors[:used])
    options = {name: o.cpu() if isinstance(o, Tensor) else o for name, o in options.items()}
    want = run(wide, carried=carried, backend="reference", **options)
    pairs = zip(want, weights, got, strict=True)
    total = sum((t * w.to(like.dtype).double()).sum() for t, w, like in pairs)
    expected = torch.autograd.grad(total, wide[:used])
    relative = RELATIVE[tensors[0].dtype]
    for a, b in zip([*got, *grads], [*want, *expected], strict=True):
        assert_near(a.cpu(), b, relative)


@pytest.mark.parametrize("path", PATHS)
def test_repeats_bit_for_bit(device: torch.device, path: str) -> None:
    tensors = inputs(device, torch.float32)
    runs = []
    with forced_path(path, CHUNK):
        for _ in range(2):
            result = run(tensors, carried=True)
            runs.append([*result, *torch.autograd.grad(sum(t.square().sum() for t in result), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_long_sequences_agree_on_both_paths(cuda: torch.device, noise: float) -> None:
    x, var = (t.detach() for t in inputs(cuda, torch.float32, (1, 8192, 768))[:2])
    want = kalman_scan(x.double(), var.double(), process_noise=noise, backend="reference")
    for path in PATHS:
        with forced_path(path):
            got = kalman_scan(x, var, process_noise=noise, backend="triton")
        for a, b in zip([*got[:3], *got.state], [*want[:3], *want.state], strict=True):
            assert_near(a, b, RELATIVE[torch.float32])


# Where tensors are this large, offsets within them do not fit 32 bits.
def test_offsets_beyond_32_bits(cuda: torch.device) -> None:
    if torch.cuda.get_device_properties(cuda).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of GPU memory")
    steps, dim = 1 << 21, 1028  # 2.16e9 numbers of 2 bytes
    x = torch.ones(1, steps, dim, dtype=torch.bfloat16, device=cuda)
    x[:, -5:] = 3.0
    scan = kalman_scan(x, x, process_noise=1e6, backend="triton")
    assert (scan.mean[0, -5:].float() - 3.0).abs().max() < 0.02
    assert (scan.mean[0, -9:-5].float() - 1.0).abs().max() < 0.02


@pytest.mark.parametrize("dtype", list(RELATIVE), ids=str)
def test_compiled_without_graph_breaks(cuda: torch.device, dtype: torch.dtype) -> None:
    module = KalmanScan(SHAPE[2], "learned", backend="triton").to(cuda)
    x, var, *_ = inputs(cuda, dtype)
    compiled = torch.compile(module, fullgraph=True)
    runs = []
    for call in (module, compiled):
        scan = call(x, var)
        weights = [x, var, *module.parameters()]
        runs.append([*scan[:3], *scan.state, *torch.autograd.grad(scan.mean.float().square().sum(), weights)])
    for a, b in zip(*runs, strict=True):
        assert_near(a.cpu(), b.cpu(), RELATIVE[dtype])


@pytest.mark.parametrize("path", PATHS)
def test_graph_capture(cuda: torch.device, path: str) -> None:
    x, var, noise, *_ = inputs(cuda, torch.float32)

    def step() -> list[Tensor]:
        scan = kalman_scan(x, var, process_noise=noise, backend="triton")
        return [scan.mean, *torch.autograd.grad(scan.mean.square().sum(), [x, var, noise])]

    with forced_path(path, CHUNK):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, and measures configurations
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        x.data.copy_(torch.randn_like(x))
        graph.replay()
        for a, b in zip(captured, step(), strict=True):
            torch.testing.assert_close(a, b)


def test_second_device(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    for path in PATHS:
        with forced_path(path, CHUNK):
            compare(inputs(torch.device("cuda:1"), torch.float32), carried=True)
