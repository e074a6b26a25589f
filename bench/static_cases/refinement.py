"""The kernels of refinement: bfloat16 and float32, sizes that are multiples of 16, and first tiles for other sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.static import StaticCase
from bench.static_cases import make_case
from ief_kernels._triton import Config
from ief_kernels.refinement.triton_launch import few_config
from ief_kernels.refinement.triton_products import ADD_PARTS, ODD_PRODUCT, PRODUCT, SUM_ROWS, WEIGHT_GRADIENT, kernels

_INTEGERS = ("rows", "width", "depth", "height", "share", "dim", "steps", "every", "team", "count", "size", "apart")


def _case(
    op: str,
    tuner: str,
    kernel: Any,
    types: dict[str, str | None],
    config: Config,
    *,
    wide: bool = True,
    odd: bool = False,
    **constants: Any,
) -> StaticCase:
    precision = constants.get("PRECISION")
    tensor_cores = precision is not None and (precision == "tf32" or "*bf16" in types.values())
    return make_case(
        op,
        tuner,
        kernel,
        {"scale": "fp32", **dict.fromkeys(_INTEGERS, "i32"), **types},
        config,
        constants,
        wants={"tensor_cores": tensor_cores, "vector_loads": wide and not odd},
        divisible=() if odd else ("width", "depth", "height", "dim", "size"),
    )


def cases() -> Iterator[StaticCase]:
    """Yield every kernel in every configuration."""
    for kind, size, precisions in (("*bf16", 2, ("ieee",)), ("*fp32", 4, ("ieee", "tf32"))):
        for precision in precisions:
            yield from _products(kind, size, precision)
            # Parts of a sum are float32. Where there is one part, it is the gradient, in its own dtype.
            for op, parts in (("refine_weights", "*fp32"), ("refine_weights_alone", kind))[: 2 if size == 2 else 1]:
                operands: dict[str, str | None] = {"a": kind, "b": kind, "parts": parts}
                for config in WEIGHT_GRADIENT[size]:
                    yield _case(
                        op,
                        "refine_weight_gradient",
                        kernels().weight_gradient,
                        operands,
                        config,
                        # Hopper's tf32 products want both inputs the other way round, so they are loaded a word at a
                        # time.
                        wide=precision != "tf32",
                        PRECISION=precision,
                    )
            yield from _few(kind, size, precision)
        sums: dict[str, str | None] = dict.fromkeys(("parts_b1", "parts_b2", "parts_w1", "parts_w2"), "*fp32")
        sums |= {"count_b": "i32", "count_w": "i32", **dict.fromkeys(("b1", "b2", "w1", "w2"), kind)}
        yield _case("refine_add_parts", "refine_add_parts", kernels().add_parts, sums, ADD_PARTS, ADD=False)


def _products(kind: str, size: int, precision: str) -> Iterator[StaticCase]:
    copy = kind if size == 2 else None
    absent: dict[str, str | None] = dict.fromkeys(("bias", "base", "gate", "out", "narrow", "sums"))
    epilogues: dict[str, tuple[bool, dict[str, str | None]]] = {
        "hidden": (True, {"bias": kind, "out": kind}),
        "state": (True, {"bias": kind, "base": "*fp32", "out": "*fp32", "narrow": copy}),
        "gate": (False, {"gate": kind, "out": kind, "sums": "*fp32"}),
        "grad": (False, {"base": "*fp32", "out": "*fp32", "narrow": copy, "sums": "*fp32"}),
    }
    for name, (transposed, pointers) in epilogues.items():
        tuner = "hidden" if name == "hidden" else "other"
        # Wider tiles for odd sizes may spill: they run only if they were measured to be faster.
        for config in (*PRODUCT[tuner][size], *ODD_PRODUCT[tuner][: 1 if size == 2 else 0]):
            yield _case(
                f"refine_{name}",
                f"refine_{tuner}",
                kernels().product,
                {"a": kind, "b": kind, **absent, **pointers},
                config,
                odd=config not in PRODUCT[tuner][size],
                SUM_ROWS=SUM_ROWS,
                B_ROWS=transposed,
                PRECISION=precision,
            )


def _few(kind: str, size: int, precision: str) -> Iterator[StaticCase]:
    types: dict[str, str | None] = dict.fromkeys(("z", "w1", "b1", "w2", "b2", "hidden", "saved", "out"), kind)
    types |= {"state": "*fp32", "narrow": kind if size == 2 else None, "counters": "*i32"}
    for rows in (16, 256) if size == 2 else (256,):
        config = few_config(rows, size)
        kernel = kernels().all_steps
        yield _case("refine_few", "refine_few", kernel, types, config, SHARED=False, PRECISION=precision)
