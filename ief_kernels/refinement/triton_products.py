"""Launches the Triton kernels that refinement is made of: products with an epilogue, weight gradients, sums of parts.

float32 products follow torch's precision setting: "ieee" multiplies without tensor cores, "tf32" with them.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType

import torch
from torch import Tensor

from .._triton import Config, Tuner, device_guard

SUM_ROWS = 64  # rows behind one part of a column sum
_MEASURED = 1024  # rows from which configurations are measured against each other
_SHARE = 2048  # tokens behind one part of a weight gradient, at least
_PROGRAMS = 264  # programs a weight gradient wants: two for each multiprocessor of an H100; its parts follow from it


@functools.cache
def kernels() -> ModuleType:
    """Return the module of the kernels; the first call imports triton."""
    from . import triton_kernels

    return triton_kernels


def _config(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, warps, stages)


# By epilogue and bytes of an element. BLOCK_M of `product` is a multiple of SUM_ROWS. The wide tiles of "hidden" would
# spill registers in the other epilogues, which read one matrix more.
PRODUCT = {
    "hidden": {
        2: (
            _config(64, 64, 64, 4, 4),
            _config(128, 128, 64, 8, 3),
            _config(128, 256, 64, 8, 3),
            _config(128, 128, 64, 4, 3),
            _config(64, 128, 64, 4, 4),
        ),
        4: (_config(64, 64, 32, 4, 3), _config(128, 64, 32, 8, 3), _config(64, 128, 32, 8, 3)),
    },
    "other": {
        2: (
            _config(64, 64, 64, 4, 4),
            _config(128, 128, 64, 8, 3),
            _config(64, 128, 64, 4, 4),
            _config(128, 64, 64, 4, 4),
            _config(64, 256, 64, 8, 3),
        ),
        4: (_config(64, 64, 32, 4, 3), _config(128, 64, 32, 8, 3), _config(64, 128, 32, 8, 3)),
    },
}
WEIGHT_GRADIENT = {
    2: (_config(64, 64, 64, 4, 3), _config(128, 128, 64, 8, 3), _config(64, 128, 64, 4, 3)),
    4: (_config(64, 64, 16, 4, 3), _config(128, 64, 32, 8, 3), _config(64, 128, 16, 8, 3)),
}
_products = {
    (name, size): Tuner(f"refine_{name}", configs) for name, sizes in PRODUCT.items() for size, configs in sizes.items()
}
_weight_gradients = {size: Tuner("refine_weight_gradient", configs) for size, configs in WEIGHT_GRADIENT.items()}
ADD_PARTS = Config({"BLOCK": 1024}, 4)


def precision(dtype: torch.dtype) -> str:
    """Return what float32 products may round their inputs to, as set for torch's own."""
    if dtype != torch.float32:
        return "ieee"
    matmul = torch.backends.cuda.matmul
    # Since torch 2.9 the new name is right however it was set; asking the old one then can raise.
    setting = getattr(matmul, "fp32precision", None)
    return "tf32" if (setting == "tf32" if setting is not None else matmul.allow_tf32) else "ieee"


def product(
    a: Tensor,
    b: Tensor,
    out: Tensor,
    *,
    transposed: bool,
    bias: Tensor | None = None,
    base: Tensor | None = None,
    gate: Tensor | None = None,
    narrow: Tensor | None = None,
    sums: Tensor | None = None,
    scale: float = 0.0,
) -> None:
    """Compute a·bᵀ (`transposed`) or a·b, with the epilogue that the given tensors ask for; see the kernel."""
    (rows, depth), width = a.shape, out.shape[1]
    if out.numel() == 0:
        return
    dot_precision = precision(a.dtype)

    def run(config: Config) -> None:
        tiles = -(-rows // config.meta["BLOCK_M"]) * -(-width // config.meta["BLOCK_N"])
        kernels().product[(tiles,)](
            a=a,
            b=b,
            bias=bias,
            base=base,
            gate=gate,
            out=out,
            narrow=narrow,
            sums=sums,
            rows=rows,
            width=width,
            depth=depth,
            scale=scale,
            SUM_ROWS=SUM_ROWS,
            B_ROWS=transposed,
            PRECISION=dot_precision,
            **config.options(),
        )

    epilogue = "state" if base is not None else "gate" if gate is not None else "hidden"
    key = (epilogue, transposed, str(a.dtype), dot_precision, str(out.dtype), width, depth)
    tuner = _products["hidden" if epilogue == "hidden" else "other", a.element_size()]
    tuner.launch(a, key, run, worth=rows >= _MEASURED)


def parts(rows: int, height: int, width: int) -> tuple[int, int]:
    """Return the number of parts of a weight gradient, and of tokens in each.

    Both depend on the shape alone, so that sums repeat bit for bit.
    """
    tiles = -(-height // 128) * -(-width // 128)
    count = max(1, min(-(-rows // _SHARE), -(-_PROGRAMS // max(tiles, 1)), 16))
    share = math.ceil(rows / count / 64) * 64
    return -(-rows // share), share


def weight_gradient(a: Tensor, b: Tensor, room: Tensor, out: Tensor, scale: float, add: bool) -> None:
    """Compute out = scale·aᵀ·b, or add that to `out`; `room` holds the parts."""
    (rows, height), width = a.shape, b.shape[1]
    if out.numel() == 0:
        return
    count, share = parts(rows, height, width)
    dot_precision = precision(a.dtype)

    def run(config: Config) -> None:
        tiles = -(-height // config.meta["BLOCK_M"]) * -(-width // config.meta["BLOCK_N"])
        kernels().weight_gradient[(tiles, count)](
            a=a,
            b=b,
            parts=room,
            rows=rows,
            height=height,
            width=width,
            share=share,
            PRECISION=dot_precision,
            **config.options(),
        )

    key = (str(a.dtype), dot_precision, height, width)
    _weight_gradients[a.element_size()].launch(a, key, run, worth=rows >= _MEASURED)
    add_parts(room, count, out, scale, add)


def add_parts(room: Tensor, count: int, out: Tensor, scale: float, add: bool) -> None:
    """Compute out = scale·(sum of `count` parts), or add that to `out`, in a fixed order."""
    size = out.numel()
    if size == 0:
        return
    grid = (-(-size // ADD_PARTS.meta["BLOCK"]),)
    with device_guard(out):
        kernels().add_parts[grid](
            parts=room, out=out, count=count, size=size, scale=scale, ADD=add, **ADD_PARTS.options()
        )
