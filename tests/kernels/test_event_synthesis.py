from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from ief_kernels import BackendUnavailable, _native, event_synthesis, reference
from ief_kernels.event_synthesis.reference import luma, soft_events
from tests.helpers.kernel_checks import BACKENDS, instruction_set, needs_native, surrogate_tolerance, threads

NORMALIZE = ("clamp", "segment", "batch", "none")
# Widths around the blocks of 32 and 64 pixels and the tiles of 2048; RGB unless the last number is not 3.
SHAPES = [
    (16, 7, 9, 3),
    (2, 5, 33, 65, 3),
    (3, 2, 4, 40, 52, 3),
    (4, 31, 7),
    (2, 3, 50, 83),
    (1, 4, 4, 3),
    (300, 3, 5, 3),
]
EMPTY = [(0, 16, 3, 4, 3), (2, 0, 3, 4, 3), (2, 16, 0, 4, 3), (2, 3, 0, 5), (0, 4, 5)]


def frames_of(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8, spread: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    frames = torch.randint(0, spread, shape, generator=generator, dtype=torch.uint8)
    if dtype == torch.uint8:
        return frames
    return (frames + torch.rand(shape, generator=generator)).to(dtype)


def carry_of(frames: Tensor) -> Tensor:
    at = -4 if frames.dim() >= 4 and frames.shape[-1] == 3 else -3
    return frames_of((*frames.shape[:at], *frames.shape[at + 1 :])).flip(-2).to(frames.dtype)


def literal(frames: Tensor, threshold: float, clamp: int, carry: Tensor | None = None) -> list[list[list[int]]]:
    """Counts (2, H, W), brighter and darker, of one RGB segment in Python's integers."""
    every = [*([] if carry is None else [carry]), *frames]
    y = [[[2989 * r + 5870 * g + 1140 * b for r, g, b in row] for row in frame.tolist()] for frame in every]
    limit = round(threshold * 10**4)
    height, width = frames.shape[1:3]

    def count(i: int, j: int, sign: int) -> int:
        steps = [sign * (now[i][j] - before[i][j]) for before, now in pairwise(y)]
        return min(clamp, sum(step > limit for step in steps))

    return [[[count(i, j, sign) for j in range(width)] for i in range(height)] for sign in (1, -1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carried", [False, True])
def test_is_the_formula(backend: str, carried: bool) -> None:
    frames = frames_of((9, 5, 6, 3))
    carry = carry_of(frames) if carried else None
    expected = torch.tensor(literal(frames, 61.53, 3, carry))
    options: dict[str, Any] = {"threshold": 61.53, "clamp": 3, "carry": carry, "backend": backend}
    split = event_synthesis(frames, normalize="none", polarity="split", **options)
    assert split.dtype == torch.uint8
    assert torch.equal(split.int(), expected.int())
    assert 0 < (expected == 3).sum() < expected.numel()
    merged = event_synthesis(frames, **options)
    unclamped = torch.tensor(literal(frames, 61.53, 99, carry)).sum(0)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, unclamped.clamp(max=3).float() / 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threshold_is_strict(backend: str) -> None:
    # Green alone: 20 levels are 11.74 grey levels exactly.
    frames = torch.zeros(2, 1, 1, 3, dtype=torch.uint8)
    frames[1, ..., 1] = 20
    assert event_synthesis(frames, threshold=11.74, backend=backend).item() == 0
    assert event_synthesis(frames, threshold=11.7399, backend=backend).item() == pytest.approx(0.1)
    assert event_synthesis(frames, threshold=1e9, backend=backend).item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_luma_counts_whole_grey_levels(backend: str) -> None:
    frames = torch.tensor([0, 10, 21, 255, 0], dtype=torch.uint8).view(5, 1, 1)
    maps = event_synthesis(frames, normalize="none", polarity="split", backend=backend)
    assert maps.flatten().tolist() == [2, 1]
    assert event_synthesis(frames, threshold=255, normalize="none", backend=backend).item() == 0
    assert event_synthesis(frames, threshold=254.9, normalize="none", backend=backend).item() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_luma_plane_of_an_nv12_surface(backend: str) -> None:
    surface = torch.randint(0, 256, (2, 5, 18, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    luma = surface[..., :12, :40]  # 12 rows of luma, 6 of chroma, a pitch of 48
    for layout in ("auto", "luma"):
        maps = event_synthesis(luma, threshold=30, layout=layout, backend=backend)
        assert torch.equal(maps, event_synthesis(luma.contiguous(), threshold=30, backend="reference"))
    grey = luma[..., None].expand(-1, -1, -1, -1, 3)
    # The weights of R, G and B add up to 0.9999 of a grey level, and no difference is near a threshold of 30.5.
    assert torch.equal(
        event_synthesis(luma, threshold=30.5, backend=backend), event_synthesis(grey, threshold=30.5, backend=backend)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_of_three_columns(backend: str) -> None:
    frames = torch.randint(0, 256, (2, 4, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert event_synthesis(frames, backend=backend).shape == (4, 5)
    maps = event_synthesis(frames, layout="luma", backend=backend)
    assert maps.shape == (2, 5, 3)
    padded = torch.nn.functional.pad(frames, (0, 1))
    assert torch.equal(maps, event_synthesis(padded, backend="reference")[..., :3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("polarity", ["merged", "split"])
def test_normalisations(backend: str, polarity: str) -> None:
    frames = frames_of((3, 6, 8, 9, 3))
    frames[1] = frames[1, :1]  # a static segment
    options: dict[str, Any] = {"threshold": 70, "clamp": 4, "polarity": polarity, "backend": backend}
    counts = event_synthesis(frames, normalize="none", **options).float()
    assert torch.equal(event_synthesis(frames, normalize="clamp", **options), counts / 4)
    peaks = counts.flatten(1).amax(1).clamp(min=1).view(-1, *[1] * (counts.dim() - 1))
    assert torch.equal(event_synthesis(frames, normalize="segment", **options), counts / peaks)
    assert torch.equal(event_synthesis(frames, normalize="batch", **options), counts / counts.max())
    static = event_synthesis(frames[1], normalize="batch", **options)
    assert torch.equal(static, torch.zeros_like(static))


@needs_native
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_native_equals_reference_bit_for_bit(isa: str, dtype: torch.dtype) -> None:
    with instruction_set(isa) as runs:
        if not runs:
            pytest.skip(f"no {isa} here")
        for shape in (*SHAPES, *EMPTY):
            frames = frames_of(shape, dtype)
            for normalize in NORMALIZE:
                for polarity in ("merged", "split"):
                    for carry in (None, carry_of(frames)):
                        for threshold in (0, 40.5):
                            options: dict[str, Any] = {
                                "threshold": threshold,
                                "normalize": normalize,
                                "polarity": polarity,
                                "carry": carry,
                                "clamp": 3 if shape[0] < 300 else 255,
                            }
                            actual = event_synthesis(frames, backend="native", **options)
                            expected = reference.event_synthesis(frames, **options)
                            assert actual.dtype == expected.dtype
                            assert torch.equal(actual, expected), (shape, options.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", EMPTY)
def test_nothing_to_count_gives_zeros(backend: str, shape: tuple[int, ...]) -> None:
    maps = event_synthesis(torch.zeros(shape, dtype=torch.uint8), polarity="split", backend=backend)
    rgb = len(shape) >= 4 and shape[-1] == 3
    *batch, _, height, width = shape[:-1] if rgb else shape
    assert maps.shape == (*batch, 2, height, width)
    assert torch.equal(maps, torch.zeros_like(maps))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_frame_has_no_differences_but_the_carried_one(backend: str) -> None:
    frames = torch.full((2, 1, 3, 4, 3), 200, dtype=torch.uint8)
    assert event_synthesis(frames, backend=backend).count_nonzero() == 0
    maps = event_synthesis(frames, carry=torch.zeros_like(frames[:, 0]), normalize="none", backend=backend)
    assert torch.equal(maps, torch.ones_like(maps))


@pytest.mark.parametrize("backend", BACKENDS)
def test_carry_joins_a_stream(backend: str) -> None:
    stream = frames_of((13, 6, 7, 3))
    options: dict[str, Any] = {"normalize": "none", "clamp": 255, "threshold": 50, "backend": backend}
    whole = event_synthesis(stream, **options)
    parts = event_synthesis(stream[:5], **options) + event_synthesis(stream[5:], carry=stream[4], **options)
    assert torch.equal(parts, whole)


@needs_native
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_strided_frames(dtype: torch.dtype) -> None:
    video = frames_of((3, 12, 40, 90, 3), dtype)
    views = {
        "every second frame": video[:, ::2],
        "crop": video[:, :, 5:37, 11:80],
        "columns": video[..., ::2, :],
        "one channel": video[..., 1],
        "channels first": video.movedim(-1, 2).contiguous().movedim(2, -1),
        "frames first": video.transpose(0, 1).contiguous().transpose(0, 1),
        "mirrored": video.flip(3),
        "rows": video[:, :, ::3],
        "repeated": video[:, :, :1, :1].expand(-1, -1, 40, 90, -1),
    }
    for name, view in views.items():
        carry = view[:, 3]
        expected = reference.event_synthesis(view.contiguous(), carry=carry.contiguous())
        assert torch.equal(event_synthesis(view, carry=carry, backend="native"), expected), name
        assert torch.equal(event_synthesis(view, carry=carry, backend="reference"), expected), name


@needs_native
def test_strided_frames_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_of((2, 8, 40, 90, 3))
    views = [frames[:, ::2], frames[:, :, 5:37, 11:80], frames[:, :, ::3], frames[0, ..., 0].contiguous()]
    expected = [reference.event_synthesis(view) for view in views]
    monkeypatch.setattr(Tensor, "contiguous", lambda self: pytest.fail("copied"))
    for view, maps in zip(views, expected, strict=True):
        assert torch.equal(event_synthesis(view, backend="native"), maps)


@needs_native
def test_result_does_not_depend_on_threads_or_run() -> None:
    frames = frames_of((4, 6, 64, 130, 3))
    soft = frames.float()
    results = []
    for count in (1, 2, 2):
        with threads(count):
            leaf = soft.clone().requires_grad_()
            maps = event_synthesis(leaf, surrogate=5.0, normalize="segment", backend="native")
            maps.square().sum().backward()
            results.append((event_synthesis(frames, normalize="segment", backend="native"), maps, leaf.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_properties(backend: str, data: st.DataObject) -> None:
    sizes = st.integers(1, 70)
    shape = (
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 6)),
        data.draw(st.integers(1, 9)),
        data.draw(sizes),
        3,
    )
    threshold = data.draw(st.floats(0, 120))
    offset = data.draw(st.integers(0, 100))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    frames = torch.randint(0, 156, shape, generator=generator, dtype=torch.uint8)
    options: dict[str, Any] = {"threshold": threshold, "clamp": 255, "normalize": "none", "backend": backend}
    merged = event_synthesis(frames, **options)
    assert torch.equal(merged, reference.event_synthesis(frames, threshold=threshold, clamp=255, normalize="none"))
    assert torch.equal(event_synthesis(frames + offset, **options), merged)
    assert torch.equal(event_synthesis(frames.float(), **options), merged)
    split = event_synthesis(frames, polarity="split", **options)
    assert torch.equal(split.sum(-3), merged)
    backwards = event_synthesis(frames.flip(1), polarity="split", **options)
    assert torch.equal(backwards, split.flip(-3))
    assert bool((event_synthesis(frames, **{**options, "threshold": threshold + 1}) <= merged).all())


# ------------------------------------------------------------------------------------------------------- gradients


def soft_leaf(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return frames_of(shape, dtype, spread=40).requires_grad_()


def gradients(frames: Tensor, carry: Tensor | None, **options: Any) -> list[Tensor]:
    maps = event_synthesis(frames, carry=carry, **options)
    weight = torch.linspace(-1, 2, maps.numel(), dtype=maps.dtype).view(maps.shape)
    return list(torch.autograd.grad((maps * weight).sum(), [frames] if carry is None else [frames, carry]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_surrogate_gradient_is_the_derivative_of_the_soft_count(backend: str) -> None:
    frames = soft_leaf((2, 5, 4, 7, 3))
    delta = luma(frames, True).diff(dim=1)
    soft = soft_events(delta, 80_000, 3.0).sum(1) / 10
    weight = torch.linspace(-1, 2, soft.numel(), dtype=soft.dtype).view(soft.shape)
    (expected,) = torch.autograd.grad((soft * weight).sum(), frames)
    (actual,) = gradients(frames, None, threshold=8, surrogate=3.0, backend=backend)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)  # float64, a few roundings


def test_soft_count_passes_gradcheck() -> None:
    frames = soft_leaf((3, 2, 3, 3))

    def soft_count(x: Tensor) -> Tensor:
        return soft_events(luma(x, True).diff(dim=0), 80_000, 3.0).sum(0)

    assert torch.autograd.gradcheck(soft_count, (frames,))


@needs_native
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("polarity", ["merged", "split"])
def test_native_gradients_equal_the_reference(isa: str, dtype: torch.dtype, polarity: str) -> None:
    relative, absolute = surrogate_tolerance(dtype)
    with instruction_set(isa) as runs:
        if not runs:
            pytest.skip(f"no {isa} here")
        for shape in ((4, 7, 9, 3), (2, 6, 25, 90, 3), (5, 31, 7), (2, 1, 4, 4, 3), (2, 3, 0, 4, 3), (2, 0, 3, 4, 3)):
            frames = soft_leaf(shape, dtype)
            for carry in (None, carry_of(frames.detach()).requires_grad_()):
                for normalize in ("clamp", "segment", "batch"):
                    options: dict[str, Any] = {"normalize": normalize, "polarity": polarity, "surrogate": 3.0}
                    options |= {"threshold": 7, "clamp": 2}
                    actual = gradients(frames, carry, backend="native", **options)
                    expected = gradients(frames, carry, backend="reference", **options)
                    for a, b in zip(actual, expected, strict=True):
                        assert a.dtype == dtype
                        torch.testing.assert_close(a, b, rtol=relative, atol=absolute)


@needs_native
def test_gradients_of_strided_frames() -> None:
    video = soft_leaf((3, 6, 20, 30, 3))
    for view in (lambda v: v[:, ::2, 3:17, 4:29], lambda v: v.transpose(0, 1), lambda v: v[..., 1]):
        actual, expected = (
            torch.autograd.grad(event_synthesis(view(video), surrogate=2.0, backend=b).square().sum(), video)[0]
            for b in ("native", "reference")
        )
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_stops_where_the_count_was_clamped_away(backend: str) -> None:
    levels = torch.tensor([[0.0, 20, 0, 20, 0], [0, 20, 0, 0, 0], [0, 20, 0, 20, 20]], dtype=torch.float64)
    frames = levels.T.reshape(5, 1, 3).contiguous().requires_grad_()  # 4, 2 and 3 events
    maps = event_synthesis(frames, clamp=3, surrogate=5.0, normalize="clamp", backend=backend)
    (grad,) = torch.autograd.grad(maps.sum(), frames)
    assert grad[..., 0].count_nonzero() == 0
    assert grad[..., 1].count_nonzero() > 0
    assert grad[..., 2].count_nonzero() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_gradient_belongs_to_the_map_of_its_sign(backend: str) -> None:
    frames = torch.tensor([0.0, 9.0], dtype=torch.float64).view(2, 1, 1).requires_grad_()
    brighter, darker = event_synthesis(frames, surrogate=2.0, polarity="split", backend=backend).flatten()
    (up,) = torch.autograd.grad(brighter, frames, retain_graph=True)
    (down,) = torch.autograd.grad(darker, frames)
    slope = torch.sigmoid(torch.tensor((9.0 - 10) / 2, dtype=torch.float64))
    expected = (slope * (1 - slope) / 2 / 10).item()
    assert up.flatten().tolist() == pytest.approx([-expected, expected], rel=1e-12)
    assert down.count_nonzero() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_surrogate_the_gradient_is_zero(backend: str) -> None:
    frames = soft_leaf((3, 4, 5, 3), torch.float32)
    (grad,) = gradients(frames, None, backend=backend)
    assert torch.equal(grad, torch.zeros_like(frames))


@needs_native
def test_second_derivative_is_refused() -> None:
    frames = soft_leaf((3, 4, 5, 3))
    maps = event_synthesis(frames, surrogate=2.0, backend="native")
    (grad,) = torch.autograd.grad(maps.square().sum(), frames, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not available"):
        grad.sum().backward()


# ------------------------------------------------------------------------------------------------ torch integration


@needs_native
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7, 3), (0, 3, 5, 7, 3), (4, 5, 6)])
def test_opcheck(shape: tuple[int, ...], normalize: str) -> None:
    ops = torch.ops.ief_kernels
    frames = frames_of(shape, torch.float32)
    rgb = shape[-1] == 3
    for carry in (None, carry_of(frames)):
        for split in (False, True):
            opcheck(ops.event_synthesis_forward.default, (frames, carry, rgb, 100_000, 10, normalize, split, "native"))
            if normalize == "none":
                continue
            maps, scale = ops.event_synthesis_forward(frames, carry, rgb, 100_000, 10, normalize, split, "native")
            arguments = (torch.randn(maps.shape), frames, carry, scale, rgb, 100_000, 10, split, 5.0, "native")
            opcheck(ops.event_synthesis_backward.default, arguments)
    opcheck(ops.event_synthesis_forward.default, (frames_of(shape), None, rgb, 0, 1, normalize, False, "native"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_compiles_without_graph_breaks(backend: str, dtype: torch.dtype) -> None:
    def maps(frames: Tensor, carry: Tensor) -> Tensor:
        return event_synthesis(frames, carry=carry, surrogate=4.0, backend=backend) * 2

    frames = frames_of((2, 5, 6, 7, 3), dtype)
    carry = carry_of(frames)
    compiled = torch.compile(maps, fullgraph=True, backend="aot_eager")
    if not dtype.is_floating_point:
        assert torch.equal(compiled(frames, carry), maps(frames, carry))
        return
    leaves = [frames.requires_grad_(), carry.requires_grad_()]
    actual = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    expected = torch.autograd.grad(maps(*leaves).square().sum(), leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"frames": torch.zeros(2, 3, 4, 5, 3, dtype=torch.int64)}, TypeError, "uint8 or floating point"),
        ({"frames": torch.zeros(3, 4, dtype=torch.uint8)}, ValueError, r"\(\.\.\., S, H, W"),
        ({"threshold": -1}, ValueError, "threshold"),
        ({"threshold": float("nan")}, ValueError, "threshold"),
        ({"clamp": 0}, ValueError, "clamp"),
        ({"clamp": 256}, ValueError, "clamp"),
        ({"clamp": 2.5}, ValueError, "clamp"),
        ({"normalize": "max"}, ValueError, "clamp, segment, batch, none"),
        ({"polarity": "both"}, ValueError, "merged, split"),
        ({"surrogate": 0}, ValueError, "surrogate"),
        ({"surrogate": 1.0, "normalize": "none"}, ValueError, "uint8 counts"),
        ({"carry": torch.zeros(4, 5, 3, dtype=torch.uint8)}, ValueError, "one frame per segment"),
        ({"carry": torch.zeros(2, 4, 5, 3)}, ValueError, "carry must be like frames"),
        ({"layout": "nv12"}, ValueError, "auto, rgb, luma"),
        ({"frames": torch.zeros(3, 4, 5, dtype=torch.uint8), "layout": "rgb"}, ValueError, "S, H, W, 3"),
        ({"backend": "cuda"}, ValueError, "unknown backend"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], says: str) -> None:
    arguments: dict[str, Any] = {"frames": torch.zeros(2, 3, 4, 5, 3, dtype=torch.uint8), **change}
    with pytest.raises(error, match=says):
        event_synthesis(arguments.pop("frames"), **arguments)


def test_native_refuses_what_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailable, match="native"):
        event_synthesis(torch.empty(2, 3, 4, 5, 3, device="meta"), backend="native")
    monkeypatch.setattr(_native, "_module", None)
    monkeypatch.setattr(_native, "_reason", "not built")
    frames = frames_of((3, 4, 5, 3))
    with pytest.raises(BackendUnavailable, match="not built"):
        event_synthesis(frames, backend="native")
    assert torch.equal(event_synthesis(frames), reference.event_synthesis(frames))
