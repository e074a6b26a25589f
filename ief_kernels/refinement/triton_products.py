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
MEASURED = 1024  # rows from which configurations are measured against each other
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
        ),
        4: (_config(64, 64, 32, 4, 3), _config(128, 64, 32, 8, 3), _config(64, 128, 32, 8, 3)),
    },
    "other": {
        2: (
            _config(64, 64, 64, 4, 4),
            _config(128, 128, 64, 8, 3),
            _config(64, 256, 64, 8, 3),
        ),
        4: (_config(64, 64, 32, 4, 3), _config(128, 64, 32, 8, 3), _config(64, 128, 32, 8, 3)),
    },
}
WEIGHT_GRADIENT = {
    2: (_config(64, 64, 64, 4, 3), _config(128, 128, 64, 8, 3)),
    4: (_config(64, 64, 16, 4, 3), _config(128, 64, 32, 8, 3), _config(64, 128, 16, 8, 3)),
}
# Widths that are no multiple of 16 give narrow loads. These hold more registers, and four warps spill.
ODD_PRODUCT = {name: (_config(64, 64, 64, 8, 4), *sizes[2][1:]) for name, sizes in PRODUCT.items()}
_products = {
    (name, size): Tuner(f"refine_{name}", configs) for name, sizes in PRODUCT.items() for size, configs in sizes.items()
}
_odd_products = {name: Tuner(f"refine_{name}", configs) for name, configs in ODD_PRODUCT.items()}
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
    """Compute a·bᵀ (`transposed`) or a·b, with the epilogue that the given tensors ask for; see the kernel.

    With neither `base` nor `gate`, a and out may be stacks, (steps, rows, ·), and b and bias too, of as many or of one.
    """
    (rows, depth), width = a.shape[-2:], out.shape[-1]
    if out.numel() == 0:
        return
    steps = len(a) if a.dim() == 3 else 1
    dot_precision = precision(a.dtype)

    def run(config: Config) -> None:
        tiles = -(-rows // config.meta["BLOCK_M"]) * -(-width // config.meta["BLOCK_N"])
        kernels().product[(tiles, steps)](
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
            apart=int(b.dim() == 3 and len(b) > 1),
            scale=scale,
            SUM_ROWS=SUM_ROWS,
            B_ROWS=transposed,
            PRECISION=dot_precision,
            **config.options(),
        )

    # The products of one kind and size share their choice: each has its own kernel, and would compile all of them.
    key = (str(a.dtype), dot_precision, width, depth)
    name = "hidden" if base is None and gate is None else "other"
    odd = a.element_size() == 2 and (width % 16 or depth % 16)
    tuner = _odd_products[name] if odd else _products[name, a.element_size()]

    def compared(config: Config) -> list[Tensor]:
        # Where in its rows the parts of a column sum lie depends on the tile.
        return [tensor for tensor in (out, narrow, None if sums is None else sums.sum(0)) if tensor is not None]

    tuner.launch(a, key, run, rows >= MEASURED, rows=rows, outputs=[out, narrow, sums], compared=compared)


def parts(rows: int, height: int, width: int) -> tuple[int, int]:
    """Return the number of parts of a weight gradient, and of tokens in each.

    Both depend on the shape alone, so that sums repeat bit for bit.
    """
    tiles = -(-height // 128) * -(-width // 128)
    count = max(1, min(-(-rows // _SHARE), -(-_PROGRAMS // max(tiles, 1)), 16))
    share = math.ceil(rows / count / 64) * 64
    return -(-rows // share), share


def weight_gradient(a: Tensor, b: Tensor, out: Tensor, scale: float) -> None:
    """Compute scale·aᵀ·b per step: a (steps, rows, height), b (steps, rows, width).

    `out` (steps, parts, height, width) gets the parts, in its dtype; see `parts`.
    """
    (steps, rows, height), width = a.shape, b.shape[2]
    if out.numel() == 0:
        return
    count, share = parts(rows, height, width)
    dot_precision = precision(a.dtype)

    def run(config: Config) -> None:
        tiles = -(-height // config.meta["BLOCK_M"]) * -(-width // config.meta["BLOCK_N"])
        kernels().weight_gradient[(tiles, count, steps)](
            a=a,
            b=b,
            parts=out,
            rows=rows,
            height=height,
            width=width,
            share=share,
            count=count,
            scale=scale,
            PRECISION=dot_precision,
            **config.options(),
        )

    key = (str(a.dtype), dot_precision, str(out.dtype), height, width)
    _weight_gradients[a.element_size()].launch(a, key, run, rows >= MEASURED, rows=rows, outputs=[out])


def add_parts(
    biases: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float,
    add: bool,
) -> None:
    """Compute out = scale·(sum of the parts), or add that to `out`, in a fixed order; all in one launch.

    Args:
        biases: parts of the gradients of b1 and b2, (steps, count, H) and (steps, count, D) float32.
        weights: parts of the gradients of w1 and w2, (steps, count, ·) float32; None leaves these two alone.
        out: gradients of w1, b1, w2 and b2, (steps, ·), or (1, ·): then the sum over the steps too.
        scale: factor of the sums.
        add: whether `out` holds values that the sums are added to.
    """
    grad_w1, grad_b1, grad_w2, grad_b2 = out
    (steps, width), dim = grad_b1.shape, grad_b2.shape[1]
    parts_w1, parts_w2 = weights or (None, None)
    largest = max(width, dim) if weights is None else max(width * dim, width, dim)
    grid = (-(-largest // ADD_PARTS.meta["BLOCK"]), steps, 2 if weights is None else 4)

    def count(parts: Tensor | None) -> int:
        return 0 if parts is None else parts.shape[:2].numel() // steps

    with device_guard(grad_b1):
        kernels().add_parts[grid](
            parts_b1=biases[0],
            parts_b2=biases[1],
            parts_w1=parts_w1,
            parts_w2=parts_w2,
            b1=grad_b1,
            b2=grad_b2,
            w1=grad_w1,
            w2=grad_w2,
            count_b=count(biases[0]),
            count_w=count(parts_w1),
            width=width,
            dim=dim,
            size=width * dim,
            scale=scale,
            ADD=add,
            **ADD_PARTS.options(),
        )
