from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import BACKENDS, instruction_set, needs_native, threads
from torch import Tensor
from torch.library import opcheck

from ief_kernels import BackendUnavailable, explain, reference, resize_with_events, resized_events

ISAS = ("scalar", "avx2", "avx512")
# (width, height): up, down, one axis each way, exact halves (another rule), not quite halves, one pixel, and widths on
# both sides of what a vector's window holds.
SOURCES = [
    (320, 240),
    (640, 480),
    (1280, 720),
    (680, 512),
    (680, 511),
    (679, 512),
    (680, 256),
    (340, 256),
    (340, 300),
    (1, 1),
    (2, 2),
    (3, 5),
    (1, 240),
    (320, 1),
    (10, 9),
    (21, 9),
    (22, 3),
    (341, 257),
    (500, 60),
    (1921, 33),
]
SIZES = [(340, 256), (7, 5), (1, 1), (65, 3)]


def frames_of(*shape: int, black_and_white: bool = False) -> Tensor:
    frames = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.uint8)
    return (frames > 127).byte() * 255 if black_and_white else frames


def with_cv2(frames: Tensor, size: tuple[int, int]) -> Tensor:
    images = frames.flatten(0, -4).numpy()
    resized = [cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in images]
    return torch.from_numpy(np.stack(resized)).view(*frames.shape[:-3], size[1], size[0], 3)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_reference_resizes_as_cv2_does(source: tuple[int, int]) -> None:
    for extreme in (False, True):
        frames = frames_of(2, source[1], source[0], 3, black_and_white=extreme)
        for size in (*SIZES, (1000, 3), (33, 400)):
            assert torch.equal(reference.resize(frames, size), with_cv2(frames, size)), size


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 90)] * 4))
def test_reference_resizes_as_cv2_does_at_any_size(sizes: tuple[int, int, int, int]) -> None:
    width, height, *size = sizes
    frames = frames_of(1, height, width, 3)
    assert torch.equal(reference.resize(frames, tuple(size)), with_cv2(frames, tuple(size)))


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_native_equals_reference_bit_for_bit(isa: str) -> None:
    with instruction_set(isa) as runs:
        if not runs:
            pytest.skip(f"no {isa} here")
        for width, height in SOURCES:
            frames = frames_of(3, height, width, 3)
            for size in SIZES:
                expected = with_cv2(frames, size)
                kept = resize_with_events(frames, size=size, threshold=20, backend="native")
                assert torch.equal(kept.frames, expected), (width, height, size)
                assert torch.equal(kept.maps, reference.event_synthesis(expected, threshold=20)), (width, height, size)
                assert torch.equal(resized_events(frames, size=size, threshold=20, backend="native"), kept.maps)


@needs_native
@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 90)] * 4), st.integers(0, 3), st.booleans())
def test_native_equals_reference_at_any_size(sizes: tuple[int, int, int, int], length: int, carried: bool) -> None:
    width, height, *size = sizes
    frames = frames_of(2, length, height, width, 3)
    carry = frames_of(2, height, width, 3) if carried else None
    options: dict[str, Any] = {"size": tuple(size), "threshold": 5, "carry": carry, "polarity": "split"}
    actual = resize_with_events(frames, backend="native", **options)
    expected = resize_with_events(frames, backend="reference", **options)
    assert torch.equal(actual.frames, expected.frames)
    assert torch.equal(actual.maps, expected.maps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", ["clamp", "segment", "batch", "none"])
@pytest.mark.parametrize("polarity", ["merged", "split"])
def test_settings_mean_what_they_mean_in_event_synthesis(backend: str, normalize: str, polarity: str) -> None:
    frames, carry = frames_of(3, 6, 40, 52, 3), frames_of(3, 40, 52, 3)
    frames[1] = frames[1, :1]
    options: dict[str, Any] = {"threshold": 30.5, "clamp": 3, "normalize": normalize, "polarity": polarity}
    maps = resized_events(frames, size=(61, 33), carry=carry, backend=backend, **options)
    resized, before = with_cv2(frames, (61, 33)), with_cv2(carry, (61, 33))
    expected = reference.event_synthesis(resized, carry=before, **options)
    assert maps.dtype == expected.dtype
    assert torch.equal(maps, expected)


@needs_native
def test_strided_frames() -> None:
    video = frames_of(3, 8, 40, 90, 3)
    views = {
        "every second frame": video[:, ::2],
        "window": video[:, :, 5:37, 11:80],
        "columns": video[..., ::2, :],
        "channels first": video.movedim(-1, 2).contiguous().movedim(2, -1),
        "frames first": video.transpose(0, 1).contiguous().transpose(0, 1),
        "mirrored": video.flip(3),
        "rows": video[:, :, ::3],
    }
    for name, view in views.items():
        expected = resize_with_events(view.contiguous(), carry=view[:, 0].contiguous(), backend="reference")
        actual = resize_with_events(view, carry=view[:, 0], backend="native")
        assert torch.equal(actual.frames, expected.frames), name
        assert torch.equal(actual.maps, expected.maps), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 16, 9, 9, 3), (2, 0, 9, 9, 3), (0, 9, 9, 3), (2, 0, 3, 1, 4, 3)])
def test_no_frames_give_zeros(backend: str, shape: tuple[int, ...]) -> None:
    kept = resize_with_events(torch.zeros(shape, dtype=torch.uint8), size=(6, 4), backend=backend)
    assert kept.frames.shape == (*shape[:-3], 4, 6, 3)
    assert torch.equal(kept.maps, torch.zeros(*shape[:-4], 4, 6))


@needs_native
def test_result_does_not_depend_on_threads_or_run() -> None:
    frames = frames_of(2, 5, 240, 320, 3)
    results = []
    for count in (1, 2, 3, 2):
        with threads(count):
            results.append(resize_with_events(frames, normalize="segment", backend="native"))
    for other in results[1:]:
        assert torch.equal(results[0].frames, other.frames)
        assert torch.equal(results[0].maps, other.maps)


@needs_native
def test_registered_operator_and_compile() -> None:
    frames = frames_of(2, 4, 20, 30, 3)
    operator = torch.ops.ief_kernels.resized_events_forward
    for keep in (False, True):
        for normalize in ("segment", "none"):
            opcheck(operator, (frames, frames[:, 0], [34, 25], 100_000, 10, normalize, True, keep))
    compiled = torch.compile(resized_events, fullgraph=True, backend="eager")
    assert torch.equal(compiled(frames, size=(34, 25)), resized_events(frames, size=(34, 25)))


def test_says_what_is_wrong() -> None:
    frames = frames_of(2, 4, 5, 3)
    with pytest.raises(TypeError, match="frames must be uint8"):
        resized_events(frames.float())
    with pytest.raises(ValueError, match="at least one pixel"):
        resized_events(frames[:, :0])
    with pytest.raises(ValueError, match=r"\(\.\.\., S, H, W, 3\)"):
        resized_events(frames[..., 0])
    with pytest.raises(ValueError, match="each at least 1"):
        resized_events(frames, size=(0, 4))
    with pytest.raises(ValueError, match="carry must be one frame"):
        resized_events(frames, carry=frames)
    with pytest.raises(BackendUnavailable, match="no triton kernel"):
        resized_events(frames, backend="triton")
    assert "reference" in explain("resized_events", frames)
