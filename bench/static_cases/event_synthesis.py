"""The kernels of event synthesis: a map at once, or counts and peaks; of bytes and of floating-point frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.static import StaticCase
from bench.static_cases import make_case
from ief_kernels._triton import Config
from ief_kernels.event_synthesis.triton_launch import DIVIDE, FLOATS, NARROW, WIDE, WIDE_GREY, kernels

_PLACES = ("start", "segment_stride", "frame_stride", "row_stride", "carry_start", "carry_stride", "carry_row_stride")
_INTEGERS = (*_PLACES, "peak_stride", "scale_stride", "frames", "pixels", "width", "clamp", "count", "size")


class _Way(NamedTuple):
    """How counts are written: types of maps, of the inverse divisor and of peaks; with a carried frame, split."""

    maps: str
    inverse: str | None
    peaks: str | None
    carried: bool
    split: bool


_WAYS = (_Way("*fp32", "fp32", None, False, False), _Way("*u8", None, "*i32", True, True))


def _case(
    tuner: str, kernel: Any, types: dict[str, str | None], config: Config, *, wide: bool = False, **constants: bool
) -> StaticCase:
    return make_case(
        f"event_{kernel.__name__}",
        tuner,
        kernel,
        dict.fromkeys(_INTEGERS, "i32") | types,
        config,
        constants,
        wants={"vector_loads": wide},
        divisible=("pixels", "width", "size"),
        fp_fusion=False,
    )


def cases() -> Iterator[StaticCase]:
    """Yield every kernel in every configuration."""
    for way in _WAYS:
        counted: dict[str, str | None] = {"maps": way.maps, "peaks": way.peaks}
        counted |= {"inverse": way.inverse, "inverse_rest": way.inverse}
        for rgb in (True, False):
            yield from _bytes(way, rgb, counted)
            for element in ("*fp32", "*bf16"):
                frames: dict[str, str | None] = {"frames": element, "carry": element if way.carried else None}
                frames |= {"threshold": "fp32", "tau": "fp32", "grad": "*fp32", "scale": "*fp32"}
                frames |= {"grad_frames": element, "grad_carry": frames["carry"]}
                for config in FLOATS:
                    flags = {"RGB": rgb, "SPLIT": way.split}
                    yield _case("event_floats", kernels().count_floats, {**frames, **counted}, config, **flags)
                    yield _case("event_backward", kernels().pull_back, frames, config, **flags)
    types: dict[str, str | None] = {"counts": "*u8", "peaks": "*i32", "maps": "*fp32"}
    yield _case("event_divide", kernels().divide, types, DIVIDE)


def _bytes(way: _Way, rgb: bool, counted: dict[str, str | None]) -> Iterator[StaticCase]:
    types = {"words": "*i32", "carry": "*i32" if way.carried else None, "threshold": "i32", **counted}
    at_once = ("event_wide", WIDE) if rgb else ("event_wide_grey", WIDE_GREY)
    narrow = ("event_narrow", NARROW)
    for wide, shifted, pitched, (tuner, configs) in (
        (True, False, False, at_once),
        (False, False, False, narrow),
        (False, True, False, narrow),
        (True, False, True, at_once),
        (False, True, True, narrow),
    ):
        for config in configs:
            yield _case(
                tuner,
                kernels().count_bytes,
                types,
                config,
                wide=wide,
                RGB=rgb,
                SPLIT=way.split,
                WIDE=wide,
                SHIFTED=shifted,
                PITCHED=pitched,
            )
