from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ief_kernels import _triton, event_synthesis, reference
from ief_kernels.event_synthesis import triton_launch as host
from tests.helpers.kernel_checks import surrogate_tolerance

pytestmark = pytest.mark.gpu

# 16-byte loads, words, shifted words; RGB and luma.
SHAPES = [(2, 5, 16, 20, 3), (3, 4, 6, 10, 3), (2, 3, 5, 7, 3), (6, 12, 24), (2, 3, 6, 10), (2, 4, 7, 9)]
DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16)
MOST_CONFIGS = 3


def frames_of(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, spread: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    frames = torch.randint(0, spread, shape, generator=generator, dtype=torch.uint8)
    if dtype != torch.uint8:
        frames = (frames + torch.rand(shape, generator=generator)).to(dtype)
    return frames.to(device)


def carry_of(frames: Tensor) -> Tensor:
    at = -4 if frames.dim() >= 4 and frames.shape[-1] == 3 else -3
    return frames.select(at, 0).flip(-2).contiguous()


def skip_bfloat16(device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("triton's interpreter gets bfloat16 wrong")


def test_there_are_no_more_configurations() -> None:
    tuners = (host._wide, host._wide_grey, host._narrow, host._floats, host._back)
    assert all(1 <= len(tuner.configs) <= MOST_CONFIGS for tuner in tuners)


@pytest.mark.parametrize("index", range(MOST_CONFIGS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_configuration(device: torch.device, index: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    skip_bfloat16(device, dtype)
    frames = frames_of(shape, dtype, device)
    with _triton.forced(index):
        for number, normalize in enumerate(("clamp", "segment", "batch", "none")):
            options: dict[str, Any] = {"normalize": normalize, "threshold": 40.5, "clamp": 3}
            options["polarity"] = "split" if number % 2 else "merged"
            carry = carry_of(frames) if number in (1, 2) else None
            got = event_synthesis(frames, carry=carry, backend="triton", **options)
            want = reference.event_synthesis(frames.cpu(), carry=None if carry is None else carry.cpu(), **options)
            assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("index", range(MOST_CONFIGS))
@pytest.mark.parametrize("polarity", ["merged", "split"])
def test_gradients_against_float64(device: torch.device, index: int, polarity: str) -> None:
    # whole grey levels, so that float32 and float64 count the same events
    levels = frames_of((2, 5, 7, 9, 3), torch.uint8, device, spread=40)
    options: dict[str, Any] = {"surrogate": 3.0, "threshold": 7, "clamp": 2, "polarity": polarity}

    def run(dtype: torch.dtype, where: torch.device, backend: str) -> list[Tensor]:
        frames = levels.to(where, dtype).requires_grad_()
        carry = levels[:, 0].flip(-2).to(where, dtype).requires_grad_()
        maps = event_synthesis(frames, carry=carry, backend=backend, **options)
        return [maps, *torch.autograd.grad(maps.square().sum(), [frames, carry])]

    with _triton.forced(index):
        runs = [run(torch.float32, device, "triton") for _ in range(2)]
    for got, again, want in zip(*runs, run(torch.float64, torch.device("cpu"), "reference"), strict=True):
        assert torch.equal(got, again)
        # the square doubles the maps' error; a clamped map of counts is exact
        relative, absolute = surrogate_tolerance(torch.float32)
        torch.testing.assert_close(got.double().cpu(), want, rtol=relative, atol=absolute)


def test_compiles_without_graph_breaks(cuda: torch.device) -> None:
    def maps(frames: Tensor) -> Tensor:
        return event_synthesis(frames, surrogate=4.0, backend="triton") * 2

    for dtype in (torch.uint8, torch.float32):
        frames = frames_of((2, 3, 16, 20, 3), dtype, cuda)
        assert torch.equal(torch.compile(maps, fullgraph=True)(frames), maps(frames))


@pytest.mark.parametrize("normalize", ["clamp", "segment", "batch", "none"])
def test_is_captured_in_a_graph(cuda: torch.device, normalize: str) -> None:
    frames = frames_of((2, 5, 16, 20, 3), torch.uint8, cuda)
    event_synthesis(frames, normalize=normalize, backend="triton")  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = event_synthesis(frames, normalize=normalize, backend="triton")
    frames.copy_(frames.flip(1, 2))
    graph.replay()
    assert torch.equal(got, event_synthesis(frames, normalize=normalize, backend="triton"))


def test_on_the_second_device(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    frames = frames_of((2, 5, 16, 20, 3), torch.uint8, torch.device("cuda:1"))
    got = event_synthesis(frames, normalize="segment", backend="triton")
    assert torch.equal(got.cpu(), reference.event_synthesis(frames.cpu(), normalize="segment"))
