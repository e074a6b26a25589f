"""Configurations of the Triton kernels that spill registers, by version of triton.

A kernel spills where the compiler finds too few registers and keeps values in slow memory instead. Whether it does
depends on the version of triton (and of the ptxas that it brings along), not on the machine. ``python -m bench static
--record`` compiles every configuration and prints the rows for this table. `_triton.Tuner` leaves out what is listed
here for the version in use; a test fails where a recorded version spills in a configuration that is not listed.
"""

from __future__ import annotations

import functools
from importlib import metadata
from typing import NamedTuple


class Spill(NamedTuple):
    """One kernel in one configuration that spills.

    Attributes:
        tuner: name of the `Tuner` that would choose among the configurations, or of the kernel that has but one.
        op: what the kernel serves, as in the static benchmark's cases.
        kernel: name of the `@triton.jit` function.
        dtype: element type, such as "fp32".
        arch: compute capability times ten, such as 90.
        config: constexprs, then the launch configuration as `Config.name` writes it.
        instructions: number of instructions on thread-local memory.
    """

    tuner: str
    op: str
    kernel: str
    dtype: str
    arch: int
    config: str
    instructions: int


# fmt: off
RECORDED: dict[str, tuple[Spill, ...]] = {
    "3.2": (
        Spill("fusion_backward", "fusion_and_terms", "fusion_backward", "fp32", 80,
              "c_img_d=1,c_evt_d=1,PER_DIM=1,FLAT=0,EVEN=0,WIDE=0,ROWS=2,COLUMNS=1024,warps=16,stages=1", 2),
        Spill("event_backward", "event_pull_back", "pull_back", "fp32", 80,
              "RGB=0,SPLIT=0,LANES=256,warps=4,stages=1", 2),
        Spill("event_narrow", "event_count_bytes", "count_bytes", "i32", 80,
              "RGB=0,SPLIT=1,WIDE=0,SHIFTED=0,PITCHED=0,LANES=256,warps=4,stages=1", 6),
        Spill("event_narrow", "event_count_bytes", "count_bytes", "i32", 80,
              "RGB=0,SPLIT=1,WIDE=0,SHIFTED=0,PITCHED=0,LANES=128,warps=2,stages=1", 6),
        Spill("fusion_backward", "fusion_and_terms", "fusion_backward", "fp32", 90,
              "c_img_d=1,c_evt_d=1,PER_DIM=1,FLAT=0,EVEN=0,WIDE=0,ROWS=2,COLUMNS=1024,warps=16,stages=1", 13),
        Spill("refine_few", "refine_few", "all_steps", "fp32", 90,
              "SHARED=0,PRECISION=ieee,BLOCK_M=16,BLOCK_N=32,BLOCK_K=16,warps=4,stages=3", 6),
        Spill("refine_few", "refine_few", "all_steps", "fp32", 90,
              "SHARED=0,PRECISION=tf32,BLOCK_M=16,BLOCK_N=32,BLOCK_K=16,warps=4,stages=3", 6),
    ),
    "3.4": (
        Spill("refine_weight_gradient", "refine_weights", "weight_gradient", "fp32", 80,
              "PRECISION=ieee,BLOCK_M=64,BLOCK_N=64,BLOCK_K=16,GROUP=8,warps=4,stages=3", 3),
    ),
    "3.6": (
        Spill("event_wide", "event_count_bytes", "count_bytes", "fp32", 100,
              "RGB=1,SPLIT=0,WIDE=1,SHIFTED=0,PITCHED=0,LANES=64,warps=2,stages=1", 6),
        Spill("event_wide", "event_count_bytes", "count_bytes", "fp32", 100,
              "RGB=1,SPLIT=0,WIDE=1,SHIFTED=0,PITCHED=0,LANES=128,warps=4,stages=1", 6),
        Spill("event_wide", "event_count_bytes", "count_bytes", "fp32", 100,
              "RGB=1,SPLIT=0,WIDE=1,SHIFTED=0,PITCHED=0,LANES=256,warps=8,stages=1", 6),
        Spill("fusion_backward", "fusion_and_terms", "fusion_backward", "bf16", 90,
              "c_img_d=1,c_evt_d=1,PER_DIM=1,FLAT=0,EVEN=0,WIDE=0,ROWS=1,COLUMNS=1024,warps=4,stages=1", 2),
        Spill("fusion_backward", "fusion_and_terms", "fusion_backward", "bf16", 100,
              "c_img_d=1,c_evt_d=1,PER_DIM=1,FLAT=0,EVEN=0,WIDE=0,ROWS=1,COLUMNS=1024,warps=4,stages=1", 2),
        Spill("refine_hidden", "refine_hidden", "product", "bf16", 80,
              "SUM_ROWS=64,B_ROWS=1,PRECISION=ieee,BLOCK_M=128,BLOCK_N=256,BLOCK_K=64,GROUP=8,warps=8,stages=3", 27),
        Spill("refine_other", "refine_state", "product", "fp32", 90,
              "SUM_ROWS=64,B_ROWS=1,PRECISION=ieee,BLOCK_M=128,BLOCK_N=64,BLOCK_K=32,GROUP=8,warps=8,stages=3", 5),
    ),
    "3.8": (
        Spill("fusion_forward", "fusion_and_terms", "fusion_forward", "bf16", 100,
              "c_img_d=1,c_evt_d=1,PER_DIM=1,FLAT=0,EVEN=1,WIDE=0,ROWS=4,COLUMNS=256,warps=4,stages=1", 2),
        Spill("fusion_backward", "fusion_and_terms", "fusion_backward", "bf16", 100,
              "c_img_d=1,c_evt_d=1,PER_DIM=1,FLAT=0,EVEN=0,WIDE=0,ROWS=1,COLUMNS=1024,warps=4,stages=1", 4),
        Spill("refine_other", "refine_state", "product", "fp32", 80,
              "SUM_ROWS=64,B_ROWS=1,PRECISION=ieee,BLOCK_M=64,BLOCK_N=64,BLOCK_K=32,GROUP=8,warps=4,stages=3", 8),
        Spill("refine_weight_gradient", "refine_weights", "weight_gradient", "fp32", 80,
              "PRECISION=ieee,BLOCK_M=128,BLOCK_N=64,BLOCK_K=32,GROUP=8,warps=8,stages=3", 51),
        Spill("refine_weight_gradient", "refine_weights", "weight_gradient", "fp32", 100,
              "PRECISION=ieee,BLOCK_M=128,BLOCK_N=64,BLOCK_K=32,GROUP=8,warps=8,stages=3", 6),
        Spill("refine_few", "refine_few", "all_steps", "fp32", 90,
              "SHARED=0,PRECISION=ieee,BLOCK_M=16,BLOCK_N=32,BLOCK_K=16,warps=4,stages=3", 3),
    ),
}
# fmt: on
"""Rows by major and minor version of triton. A version that is absent has not been recorded."""


@functools.cache
def full_version() -> str:
    """Return the version of the triton that is installed, such as ``3.8.0``; empty without triton."""
    for package in ("triton", "pytorch-triton"):  # the second comes with nightly builds of torch
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return ""


@functools.cache
def version() -> str:
    """Return its major and minor version, such as ``3.8``; empty without triton."""
    return ".".join(full_version().split(".")[:2])


def spilling(tuner: str, major: int, configs: tuple[str, ...]) -> frozenset[str]:
    """Return those of a tuner's configurations that are recorded as spilling.

    Args:
        tuner: its name.
        major: major compute capability of the GPU, such as 9.
        configs: names of the configurations, as `Config.name` writes them.
    """
    rows = [row.config for row in RECORDED.get(version(), ()) if row.tuner == tuner and row.arch // 10 == major]
    return frozenset(name for name in configs if any(f",{row}".endswith(f",{name}") for row in rows))
