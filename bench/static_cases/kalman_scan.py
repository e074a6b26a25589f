"""The scan's kernels: plain and robust, with and without an initial state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.static import StaticCase
from bench.static_cases import make_case
from ief_kernels._triton import Config
from ief_kernels.kalman_scan.paths import KEPT_EVERY
from ief_kernels.kalman_scan.triton_launch import CARRY, KERNELS, configs, kernels

_STATES = ("s_in", "p_in", "kept_s", "kept_p", "s_out", "p_out", "s0", "p0", "summary", "scratch")
_GRADIENTS = ("grad_s", "grad_p", "grad_s_leaving", "grad_p_leaving", "grad_s0", "grad_p0", "grad_q", "grad_influence")
_FLOATS = ("q", "influence", *_STATES, *_GRADIENTS)
_SIZES = ("batch", "chunks", "chunk", "steps", "dim", "x_b", "x_t", "var_b", "var_t", "q_d")
_ROWS = ("x_b", "x_t", "var_b", "var_t", "dim")  # multiples of 16 where D is
_BYTES = {"fp32": 4, "bf16": 2}
_SAVED = ("backward", "backward_summary")  # read mean and variance in float32


def _case(name: str, dtype: str, config: Config, **constants: Any) -> StaticCase:
    kernel = kernels()[name]
    types: dict[str, str | None] = dict.fromkeys(kernel.arg_names, f"*{dtype}")
    types |= dict.fromkeys(_FLOATS, "*fp32") | dict.fromkeys(_SIZES, "i32") | {"lengths": "*i64", "eps": "fp32"}
    if name in _SAVED:
        types |= {"mean": "*fp32", "variance": "*fp32"}
    lane_bytes = config.meta["BLOCK"] // (32 * config.num_warps) * _BYTES[dtype]
    return make_case(
        "kalman_scan",
        f"kalman_scan_{name}",
        kernel,
        types,
        config,
        constants,
        wants={"vector_loads": lane_bytes >= 16},
        divisible=_ROWS,
    )


def cases() -> Iterator[StaticCase]:
    """Yield every kernel in every configuration."""
    plain = {"influence": None}
    for dtype, size in _BYTES.items():
        narrow = {"kept_s": None, "kept_p": None} if size == 4 else {}
        loop = {"EVERY": 1 if size == 4 else KEPT_EVERY}
        full = {"scratch": None, "EVERY": 1}
        kept = full if size == 4 else loop
        stateless = {"s0": None, "p0": None, "grad_s0": None, "grad_p0": None, "grad_influence": None}
        for config in configs(size):
            for name in KERNELS:
                if name == "forward":
                    yield _case(name, dtype, config, HAS_STATE=False, **narrow, **plain, **loop)
                    yield _case(name, dtype, config, HAS_STATE=True, **narrow, **loop)
                elif name == "backward":
                    yield _case(name, dtype, config, **stateless, **plain, **kept)
                    yield _case(name, dtype, config, **kept)
                    if size == 2:
                        yield _case(name, dtype, config, **stateless, **plain, **full)
                elif name == "forward_summary":
                    yield _case(name, dtype, config, HAS_STATE=False)
                else:
                    yield _case(name, dtype, config)
    yield _case("forward_carry", "fp32", CARRY)
    yield _case("backward_carry", "fp32", CARRY)
