"""Every Triton kernel in every configuration it may run in, one module per operator, for `bench.static`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.static import StaticCase
from ief_kernels._triton import Config


def make_case(
    op: str,
    tuner: str,
    kernel: Any,
    types: Mapping[str, str | None],
    config: Config,
    constants: Mapping[str, Any],
    *,
    wants: Mapping[str, bool],
    divisible: Sequence[str],
    fp_fusion: bool = True,
) -> StaticCase:
    """Describe one kernel in one configuration.

    Args:
        op: what the kernel serves, for the table.
        tuner: name of the tuner that chooses its configuration, or any name if there is but one.
        kernel: the `@triton.jit` function.
        types: argument name → type such as "*fp32" or "i32"; None: an optional pointer that is absent. Names that are
            no arguments of the kernel are ignored.
        config: the launch configuration.
        constants: further `tl.constexpr` arguments.
        wants: "vector_loads" and "tensor_cores": what the machine code must contain.
        divisible: integer arguments that are multiples of 16.
        fp_fusion: whether the kernel is launched with fused multiply-add.
    """
    absent = {name: None for name, kind in types.items() if kind is None}
    values = {**absent, **constants, **config.meta}
    return StaticCase(
        op=op,
        tuner=tuner,
        kernel=kernel,
        signature={name: kind for name in kernel.arg_names if (kind := types.get(name)) and name not in values},
        constexprs={name: values[name] for name in kernel.arg_names if name in values},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        wants=dict(wants),
        divisible=tuple(name for name in divisible if name in kernel.arg_names),
        fp_fusion=fp_fusion,
    )
