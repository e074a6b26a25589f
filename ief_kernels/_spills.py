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


RECORDED: dict[str, tuple[Spill, ...]] = {}
"""Rows by major and minor version of triton. A version that is absent has not been recorded."""


@functools.cache
def version() -> str:
    """Return the major and minor version of the triton that is installed, such as ``3.8``; empty without triton."""
    try:
        return ".".join(metadata.version("triton").split(".")[:2])
    except metadata.PackageNotFoundError:
        return ""


def spilling(tuner: str, major: int, configs: tuple[str, ...]) -> frozenset[str]:
    """Return those of a tuner's configurations that are recorded as spilling.

    Args:
        tuner: its name.
        major: major compute capability of the GPU, such as 9.
        configs: names of the configurations, as `Config.name` writes them.
    """
    rows = [row.config for row in RECORDED.get(version(), ()) if row.tuner == tuner and row.arch // 10 == major]
    return frozenset(name for name in configs if any(f",{row}".endswith(f",{name}") for row in rows))
