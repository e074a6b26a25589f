"""The CUDA C++ kernel of event_synthesis on a GPU: equal to the reference bit for bit, in graphs and on any stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ief_kernels import BackendUnavailable, _cuda_extension, event_synthesis, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        _cuda_extension.why_not() is not None, reason=_cuda_extension.why_not() or "the CUDA extension is built"
    ),
]
SHAPES = [
    (4, 16, 256, 340, 3),
    (3, 5, 7, 9, 3),
    (2, 300, 3, 5, 3),
    (5, 17, 33, 65, 3),
    (2, 16, 64, 64),
    (3, 31, 7, 5),
    (1, 1, 4, 4, 3),
    (70_000, 2, 1, 3, 3),  # more segments than a grid's second dimension holds
]
EMPTY = [(0, 16, 3, 4, 3), (2, 0, 3, 4, 3), (2, 16, 0, 4, 3)]


def frames_of(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)


@pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=str)
def test_equals_reference_bit_for_bit(cuda: torch.device, shape: tuple[int, ...]) -> None:
    frames = frames_of(shape, cuda)
    carries = [None, 255 - frames[:, 0]] if shape[1] else [None]
    for normalize in ("clamp", "segment", "batch", "none"):
        for polarity in ("merged", "split"):
            for carry in carries:
                options: dict[str, Any] = {"normalize": normalize, "polarity": polarity, "carry": carry}
                options |= {"threshold": 40.5, "clamp": 255 if shape[1] > 255 else 3}
                actual = event_synthesis(frames, backend="native", **options)
                assert actual.is_cuda
                options["carry"] = None if carry is None else carry.cpu()
                expected = reference.event_synthesis(frames.cpu(), **options)
                assert torch.equal(actual.cpu(), expected), (normalize, polarity, carry is not None)


@pytest.mark.parametrize("offset", range(16))
def test_frames_at_any_byte(cuda: torch.device, offset: int) -> None:
    shape = (2, 5, 11, 37, 3)
    room = torch.zeros(offset + 2 * 5 * 11 * 37 * 3, dtype=torch.uint8, device=cuda)
    frames = room[offset:].view(shape)
    frames.copy_(frames_of(shape, cuda))
    for view in (frames, frames[:, ::2], frames[:, :, 2:9, 3:33], frames[:, :, ::2], frames.flip(3)):
        expected = reference.event_synthesis(view.cpu().contiguous(), threshold=30)
        assert torch.equal(event_synthesis(view, threshold=30, backend="native").cpu(), expected)


def test_runs_on_the_current_stream_and_repeats(cuda: torch.device) -> None:
    frames = frames_of((8, 16, 256, 340, 3), cuda)
    first = event_synthesis(frames, normalize="segment", backend="native")
    stream = torch.cuda.Stream(cuda)
    stream.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on another stream would overtake this copy
        late = frames.clone()
        second = event_synthesis(late, normalize="segment", backend="native")
    stream.synchronize()
    assert torch.equal(first, second)


def test_is_captured_in_a_graph(cuda: torch.device) -> None:
    frames = frames_of((3, 16, 40, 52, 3), cuda)
    event_synthesis(frames, normalize="segment", backend="native")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = event_synthesis(frames, normalize="segment", backend="native")
    frames.copy_(frames.flip(2).clone())
    graph.replay()
    assert torch.equal(maps.cpu(), reference.event_synthesis(frames.cpu(), normalize="segment"))


def test_compiles(cuda: torch.device) -> None:
    frames = frames_of((3, 16, 40, 52, 3), cuda)
    compiled = torch.compile(lambda x: event_synthesis(x, backend="native"), fullgraph=True)
    assert torch.equal(compiled(frames), event_synthesis(frames, backend="native"))


def test_second_device(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    frames = frames_of((3, 16, 40, 52, 3), torch.device("cuda", 1))
    maps = event_synthesis(frames, backend="native")
    assert maps.device == frames.device
    assert torch.cuda.current_device() == 0
    assert torch.equal(maps.cpu(), reference.event_synthesis(frames.cpu()))


def test_floating_point_frames_are_refused(cuda: torch.device) -> None:
    with pytest.raises(BackendUnavailable, match="takes uint8 frames"):
        event_synthesis(torch.zeros(4, 3, 3, 3, device=cuda), backend="native")


def test_reads_frames_near_the_speed_of_memory(cuda: torch.device) -> None:
    frames = frames_of((64, 16, 256, 340, 3), cuda)

    def seconds(call: Any) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        best = float("inf")
        for _ in range(10):
            start.record()
            call()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        return best

    moved = frames.numel() / seconds(lambda: event_synthesis(frames, backend="native"))
    copied = 2 * frames.numel() / seconds(lambda: frames.clone())
    assert moved > copied / 3, f"{moved / 1e9:.0f} GB/s against a copy's {copied / 1e9:.0f} GB/s"
