from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ief_kernels import event_synthesis, reference

pytestmark = pytest.mark.gpu


def frames_of(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, spread: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    frames = torch.randint(0, spread, shape, generator=generator, dtype=torch.uint8)
    if dtype != torch.uint8:
        frames = (frames + torch.rand(shape, generator=generator)).to(dtype)
    return frames.to(device)


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
