from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ief_kernels import _triton, event_synthesis, explain, reference
from ief_kernels.event_synthesis import triton_launch as host
from tests.helpers.kernel_checks import surrogate_tolerance

NORMALIZE = ("clamp", "segment", "batch", "none")
# 16-byte loads where H·W·3 (H·W for luma) is a multiple of 16, words where it is one of 4, shifted words otherwise.
SHAPES = [
    (2, 5, 16, 20, 3),
    (3, 4, 6, 10, 3),
    (2, 2, 3, 5, 7, 3),
    (6, 12, 24),
    (2, 3, 6, 10),
    (2, 4, 7, 9),
    (3, 4, 1, 1, 3),
]
EMPTY = [(0, 16, 3, 4, 3), (2, 0, 3, 4, 3), (2, 16, 0, 4, 3), (2, 3, 0, 5), (0, 4, 5)]


def frames_of(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8, spread: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    frames = torch.randint(0, spread, shape, generator=generator, dtype=torch.uint8)
    return frames if dtype == torch.uint8 else (frames + torch.rand(shape, generator=generator)).to(dtype)


def carry_of(frames: Tensor) -> Tensor:
    at = -4 if frames.dim() >= 4 and frames.shape[-1] == 3 else -3
    return frames_of((*frames.shape[:at], *frames.shape[at + 1 :])).flip(-2).to(frames.dtype)


def equal(frames: Tensor, **options: Any) -> None:
    actual = event_synthesis(frames, backend="triton", **options)
    expected = reference.event_synthesis(frames, **options)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected), (frames.shape, options.keys())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    frames = frames_of(shape, dtype)
    for number, normalize in enumerate(NORMALIZE):
        for polarity in ("merged", "split"):
            carry = carry_of(frames) if (number + len(polarity)) % 2 else None
            equal(frames, normalize=normalize, polarity=polarity, carry=carry, threshold=40.5, clamp=2)
    equal(frames, carry=carry_of(frames), normalize="segment", threshold=0)
    equal(frames, threshold=1e9)


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_nothing_to_count_gives_zeros(shape: tuple[int, ...]) -> None:
    for normalize in NORMALIZE:
        equal(frames_of(shape), normalize=normalize, polarity="split")
        equal(frames_of(shape), normalize=normalize, carry=carry_of(frames_of(shape)))


def test_one_frame_and_one_carried() -> None:
    frames = frames_of((2, 1, 4, 4, 3))
    equal(frames)
    equal(frames, carry=carry_of(frames), normalize="batch")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_strided_frames(dtype: torch.dtype) -> None:
    video = frames_of((3, 12, 8, 10, 3), dtype)
    views = {
        "every second frame": video[:, ::2],
        "crop": video[:, :, 1:7, 3:9],
        "one channel": video[..., 1],
        "channels first": video.movedim(-1, 2).contiguous().movedim(2, -1),
        "frames first": video.transpose(0, 1).contiguous().transpose(0, 1),
        "mirrored": video.flip(3),
        "repeated": video[:, :, :1, :1].expand(-1, -1, 8, 10, -1),
        "from byte 1 on": video.flatten()[1:2161].view(3, 3, 8, 10, 3),
        "from byte 240 on": video.flatten()[240:2400].view(3, 3, 8, 10, 3),
    }
    for name, view in views.items():
        carry = view[:, 1]
        actual = event_synthesis(view, carry=carry, threshold=50, backend="triton")
        expected = reference.event_synthesis(view.contiguous(), carry=carry.contiguous(), threshold=50)
        assert torch.equal(actual, expected), name


def test_memory_from_elsewhere() -> None:
    memory = bytearray(range(241)) * 2
    for offset in range(4):
        equal(torch.frombuffer(memory, dtype=torch.uint8, offset=offset, count=360).view(4, 5, 6, 3))


def test_loads_are_as_wide_as_the_frames_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    kernel = host.kernels().count_bytes

    class Spy:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*arguments: Any, **options: Any) -> None:
                seen.append((options["WIDE"], options["SHIFTED"]))
                kernel[grid](*arguments, **options)

            return launch

    monkeypatch.setattr(host.kernels(), "count_bytes", Spy())
    odd = frames_of((2, 3, 5, 5, 3))
    for frames in (frames_of((2, 3, 16, 20, 3)), frames_of((2, 3, 6, 10, 3)), odd, frames_of((4, 16, 20, 3))[1:]):
        equal(frames)
    equal(frames_of((3, 16, 20, 3)), carry=frames_of((1 + 16 * 20, 3)).flatten()[1:961].view(16, 20, 3))
    assert seen == [(True, False), (False, False), (False, True), (True, False), (False, True)]


def surfaces(rows: int, width: int, pitch: int, offset: int = 0, spare: int = 16) -> Tensor:
    """Bytes (2, 4, rows, width) whose rows begin `pitch` bytes apart, with `spare` bytes behind the last one."""
    count = 8 * rows * pitch - (pitch - width) + spare
    memory = frames_of((offset + count,))
    return memory.as_strided((2, 4, rows, width), (4 * rows * pitch, rows * pitch, pitch, 1), offset)


# Row, pitch, first byte and bytes behind the end; whether 16-byte loads and shifted words serve.
@pytest.mark.parametrize(
    ("width", "pitch", "offset", "spare", "wide", "shifted"),
    [
        (32, 64, 0, 0, True, False),
        (30, 32, 16, 2, True, False),  # the last load of a row reaches into the gap
        (30, 32, 0, 0, False, False),  # and there, out of the memory
        (24, 28, 4, 0, False, False),
        (27, 41, 3, 0, False, True),
    ],
)
@pytest.mark.parametrize("rgb", [False, True])
def test_rows_with_a_pitch_are_read_in_place(
    rgb: bool,
    width: int,
    pitch: int,
    offset: int,
    spare: int,
    wide: bool,
    shifted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, Any]] = []
    kernel = host.kernels().count_bytes

    class Spy:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*arguments: Any, **options: Any) -> None:
                seen.append(options)
                kernel[grid](*arguments, **options)

            return launch

    monkeypatch.setattr(host.kernels(), "count_bytes", Spy())
    factor = 3 if rgb else 1
    frames = surfaces(5, width * factor, pitch * factor, offset, spare * factor)
    frames = frames.unflatten(-1, (width, 3)) if rgb else frames
    plain = frames.contiguous()
    for carry, clean in ((None, None), (frames[:, 2], plain[:, 2]), (plain[:, 1], plain[:, 1])):
        for polarity, normalize in (("merged", "clamp"), ("split", "segment")):
            options: dict[str, Any] = {"threshold": 50, "polarity": polarity, "normalize": normalize}
            actual = event_synthesis(frames, carry=carry, backend="triton", **options)
            assert torch.equal(actual, reference.event_synthesis(plain, carry=clean, **options))
            assert seen[-1]["PITCHED"]
            assert seen[-1]["words"].untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()
            if carry is None:
                assert (seen[-1]["WIDE"], seen[-1]["SHIFTED"]) == (wide, shifted)


@pytest.mark.parametrize("index", [1, 2])
def test_every_configuration(index: int) -> None:
    with _triton.forced(index):
        for shape in ((2, 3, 16, 20, 3), (2, 3, 6, 10, 3), (2, 3, 7, 9, 3)):
            equal(frames_of(shape), polarity="split", normalize="segment")
            equal(frames_of(shape)[:, :, :, :-1], polarity="split", normalize="segment")
        equal(frames_of((2, 3, 7, 9, 3), torch.float32), threshold=30)


# ------------------------------------------------------------------------------------------------------- gradients


def gradients(frames: Tensor, carry: Tensor | None, **options: Any) -> list[Tensor]:
    maps = event_synthesis(frames, carry=carry, **options)
    weight = torch.linspace(-1, 2, maps.numel(), dtype=maps.dtype).view(maps.shape)
    return list(torch.autograd.grad((maps * weight).sum(), [frames] if carry is None else [frames, carry]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("polarity", ["merged", "split"])
@pytest.mark.parametrize(
    "shape", [(4, 7, 9, 3), (2, 5, 11, 13, 3), (5, 31, 7), (2, 1, 4, 4, 3), (2, 0, 3, 4, 3)], ids=str
)
def test_gradients_equal_the_reference(shape: tuple[int, ...], polarity: str, dtype: torch.dtype) -> None:
    relative, absolute = surrogate_tolerance(dtype)
    frames = frames_of(shape, dtype, spread=40).requires_grad_()
    for carry, normalize in ((None, "segment"), (carry_of(frames.detach()).requires_grad_(), "clamp")):
        options: dict[str, Any] = {"normalize": normalize, "polarity": polarity, "surrogate": 3.0}
        options |= {"threshold": 7, "clamp": 2}
        actual = gradients(frames, carry, backend="triton", **options)
        expected = gradients(frames, carry, backend="reference", **options)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=relative, atol=absolute)


def test_gradients_of_strided_frames() -> None:
    video = frames_of((3, 6, 8, 9, 3), torch.float32, spread=40).requires_grad_()
    for view in (lambda v: v[:, ::2, 3:7, 4:9], lambda v: v.transpose(0, 1), lambda v: v[..., 1]):
        actual, expected = (
            torch.autograd.grad(event_synthesis(view(video), surrogate=2.0, backend=b).square().sum(), video)[0]
            for b in ("triton", "reference")
        )
        relative, absolute = surrogate_tolerance(torch.float32)
        torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute)


def test_repeats_bit_for_bit() -> None:
    runs = []
    for _ in range(2):
        frames = frames_of((2, 4, 20, 21, 3), torch.float32).requires_grad_()
        maps = event_synthesis(frames, surrogate=5.0, normalize="batch", backend="triton")
        runs.append((maps, *torch.autograd.grad(maps.square().sum(), frames)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ------------------------------------------------------------------------------------------------ torch integration


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_registered_operators(normalize: str) -> None:
    ops = torch.ops.ief_kernels
    frames = frames_of((2, 3, 4, 5, 3), torch.float32)
    carry = carry_of(frames)
    rule = (True, 100_000, 10)
    opcheck(ops.event_synthesis_forward.default, (frames, carry, *rule, normalize, True, "triton"))
    opcheck(ops.event_synthesis_forward.default, (frames_of((2, 3, 4, 5, 3)), None, *rule, normalize, False, "triton"))
    if normalize != "none":
        maps, scale = ops.event_synthesis_forward(frames, carry, *rule, normalize, True, "triton")
        arguments = (torch.randn(maps.shape), frames, carry, scale, *rule, True, 5.0, "triton")
        opcheck(ops.event_synthesis_backward.default, arguments)


def test_compiles_without_graph_breaks() -> None:
    def maps(frames: Tensor) -> Tensor:
        return event_synthesis(frames, surrogate=4.0, backend="triton") * 2

    for dtype in (torch.uint8, torch.float32):
        frames = frames_of((2, 3, 4, 5, 3), dtype)
        assert torch.equal(torch.compile(maps, fullgraph=True, backend="aot_eager")(frames), maps(frames))


def test_explained() -> None:
    assert "auto takes triton" in explain("event_synthesis", torch.uint8)
    assert "takes native" in explain("event_synthesis", torch.float64)
