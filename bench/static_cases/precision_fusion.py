"""The kernels of fusion and its terms: D = 768, and what changes with a longer row or a scale per dimension."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.static import StaticCase
from bench.static_cases import make_case
from ief_kernels._triton import Config
from ief_kernels.precision_fusion.triton_launch import (
    FACTORS,
    FIELDS,
    FLAT_COLUMNS,
    LONGEST_ROW,
    NAMES,
    backward_tuner,
    forward_tuner,
    row_sums_config,
)

_SCALARS = {"eps": "fp32", "inv_rows": "fp32", "inv_dim": "fp32", "lengths": "*i64", "counter": "*i32"}
_COUNTS = ("rows", "dim", "size", "steps", "tiles", "programs", "batch", "c_img_d", "c_evt_d")
_STRIDES = ("stride_mi", "stride_li", "stride_me", "stride_le")
_FLOATS = ("c_img", "c_evt", "partial", "sums", "terms", "grad_terms", "grad_c_img", "grad_c_evt")
_NUMBERS = {"c_img": "fp32", "c_evt": "fp32", "c_img_d": None, "c_evt_d": None}
_TERMS = ("partial", "terms", "counter")
_READS_ROWS = ("fusion_forward", "fusion_backward", "fusion_row_sums")


def _loads_vectors(dtype: str, config: Config) -> bool:
    """Whether a thread has 16 bytes of a row; configurations with fewer have more warps in exchange."""
    elements = config.meta["ROWS"] * config.meta["COLUMNS"] // (32 * config.num_warps)
    return elements * (4 if dtype == "fp32" else 2) >= 16


def _case(
    op: str,
    kernel: Any,
    dtype: str,
    config: Config,
    absent: tuple[str, ...],
    *,
    numbers: bool = False,
    **constants: int,
) -> StaticCase:
    gradients = [f"grad_{name}" for name in (*NAMES, *FIELDS)]
    types: dict[str, str | None] = dict.fromkeys((*NAMES, *FIELDS, *gradients), f"*{dtype}")
    types |= dict.fromkeys((*_COUNTS, *_STRIDES), "i32") | dict.fromkeys(_FLOATS, "*fp32") | _SCALARS
    types |= _NUMBERS if numbers else {}
    name = kernel.__name__
    if constants.get("PER_DIM"):
        constants |= {"c_img_d": 1, "c_evt_d": 1}  # as triton specialises them
        types |= dict.fromkeys(("grad_c_img", "grad_c_evt") if name == "fusion_backward" else ())
    return make_case(
        op,
        name,
        kernel,
        types | dict.fromkeys(absent),
        config,
        constants,
        wants={"vector_loads": name in _READS_ROWS and _loads_vectors(dtype, config)},
        divisible=("dim", "size", *_STRIDES),
    )


def cases() -> Iterator[StaticCase]:
    """Yield every kernel in every configuration."""
    from ief_kernels.precision_fusion import triton_kernels as kernels

    for dtype, size in (("fp32", 4), ("bf16", 2)):
        flat = {"PER_DIM": False, "FLAT": True, "EVEN": True, "WIDE": False}
        for config in forward_tuner(FLAT_COLUMNS, True, size).configs:
            alone = ("lengths", *_TERMS)
            yield _case("precision_fusion", kernels.fusion_forward, dtype, config, alone, numbers=True, **flat)
        for config in backward_tuner(FLAT_COLUMNS, size).configs:
            absent = ("lengths", "grad_terms", "sums")
            yield _case("precision_fusion", kernels.fusion_backward, dtype, config, absent, **flat)
        lines = {"PER_DIM": True, "FLAT": False, "WIDE": False}
        for per_dim in (False, True):
            lines = {**lines, "PER_DIM": per_dim}
            for config in forward_tuner(768, False, size).configs:
                even = 768 % config.meta["COLUMNS"] == 0
                yield _case("fusion_and_terms", kernels.fusion_forward, dtype, config, (), EVEN=even, **lines)
            for columns in (1024,) if per_dim else (1024, LONGEST_ROW):
                for config in backward_tuner(columns, size).configs:
                    yield _case(
                        "fusion_and_terms", kernels.fusion_backward, dtype, config, ("sums",), EVEN=False, **lines
                    )
        for config in backward_tuner(1024, size).configs:
            yield _case("long rows", kernels.fusion_backward, dtype, config, (), EVEN=False, **lines)
        yield _case("long rows", kernels.fusion_row_sums, dtype, row_sums_config(size), (), WIDE=False)
        config = forward_tuner(768, False, size).configs[0]
        yield _case("fusion_terms", kernels.fusion_forward, dtype, config, FIELDS, EVEN=True, **lines)
    yield _case("fusion_factors", kernels.fusion_factors, "fp32", FACTORS, ())
