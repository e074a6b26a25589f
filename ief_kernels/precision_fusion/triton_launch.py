"""Launches the Triton kernels of fusion and loss terms (triton_kernels.py).

Inputs whose leading dimensions have one common stride and whose last dimension is contiguous are read in place, others
from a contiguous copy. Incoming gradients are made contiguous. `lengths` belong on the tensors' device; from elsewhere
they are copied, which CUDA-graph capture does not allow. Factors that are numbers become arguments of the kernels.

The forward pass is one launch, and so is the backward pass. Two cases take one launch more: gradients of factors per
dimension, and terms of rows that are too long for registers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .._counters import counter
from .._triton import Config, Tuner, device_guard, triton_check
from ..dispatch import register_backend
from .reference import SMALLEST_EPS

for _op in ("precision_fusion", "fusion_terms", "fusion_and_terms"):
    register_backend(_op, "triton", triton_check())

FLAT_COLUMNS = 1024
LONGEST_ROW = 2048  # columns whose row sums the backward pass takes from registers; longer rows spill
WORTH_TUNING = 1 << 22  # elements; a smaller call takes about as long in every configuration
PROGRAMS = 8  # per multiprocessor, about as many as run at once, where partial sums are to be few
NAMES = ("mu_img", "logvar_img", "mu_evt", "logvar_evt")
FIELDS = ("mean", "var", "w_img", "w_evt")
# Of the kernel that adds the gradients of factors per dimension.
FACTORS = Config({"ROWS": 64, "COLUMNS": 32})


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def config_of(elements: int, columns: int, per_thread: int) -> Config:
    """Return a tile of so many elements (at least one row), with warps for `per_thread` elements per thread."""
    rows = max(elements // columns, 1)
    warps = max(rows * columns // (32 * per_thread), 1)
    return Config({"ROWS": rows, "COLUMNS": columns}, warps)


def _unique(configs: list[Config]) -> list[Config]:
    return [config for i, config in enumerate(configs) if config not in configs[:i]]


# Number of elements per thread: a 16-byte load of half precision brings 8, one of float32 brings 4. With the loss terms
# so many take 104 to 177 registers, and a multiprocessor holds 8 to 16 warps then. Fewer elements per thread have
# shorter loads and two to four times the warps.
@functools.cache
def forward_tuner(dim: int, flat: bool, itemsize: int) -> Tuner:
    """Return the forward kernel's tuner.

    Rows are walked through in tiles, so narrow tiles of several rows compete with wide tiles of one row.
    """
    each = 16 // itemsize
    if flat:
        return Tuner("fusion_forward", [config_of(n, FLAT_COLUMNS, each) for n in (1024, 2048)])
    wide, narrow = (min(_power_of_two(dim), limit) for limit in (1024, 256))
    if dim % wide:  # part of a wide tile would be idle, a quarter of it for D = 768
        wide = narrow
    shapes = [(1024, narrow, each), (1024, wide, each)]
    if itemsize == 4:  # in half precision it was slower on an H200, 200 us against 145
        shapes.append((512, narrow, each // 2))
    return Tuner("fusion_forward", _unique([config_of(*shape) for shape in shapes]))


@functools.cache
def backward_tuner(columns: int, itemsize: int) -> Tuner:
    """Return the backward kernel's tuner."""
    each = 16 // itemsize
    shapes = [(1024, each), (2048, each)]
    if itemsize == 2:  # in float32 it was slower on an H200, 332 us against 286
        shapes.append((1024, each // 2))
    return Tuner("fusion_backward", _unique([config_of(n, columns, threads) for n, threads in shapes]))


def row_sums_config(itemsize: int) -> Config:
    """Return the configuration of `fusion_row_sums` for elements of `itemsize` bytes."""
    return config_of(1024, 1024, 16 // itemsize)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


class _Call:
    """What the kernels take: inputs as (rows, dim), c as (1,) or (dim,) float32, and how the tensors are cut."""

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        c: tuple[Tensor | float, Tensor | float],
        lengths: Tensor | None,
        eps: float,
        terms: bool,
    ):
        self.first = first = tensors[0]
        self.device, self.dtype = first.device, first.dtype
        self.dim, self.size = first.shape[-1], first.numel()
        self.rows = self.size // self.dim if self.dim else 0
        self.steps = first.shape[1] if lengths is not None else 1
        self.batch = first.shape[0] if lengths is not None else 1
        self.eps = max(eps, SMALLEST_EPS)
        self.c = c
        self.c_d = [
            (scale.stride(0) if scale.numel() != 1 else 0) if isinstance(scale, Tensor) else None for scale in c
        ]
        self.per_dim = any(isinstance(scale, Tensor) and scale.numel() != 1 for scale in c)
        self.lengths = None if lengths is None else lengths.to(self.device, non_blocking=True).contiguous()
        self.flat = (
            not terms and lengths is None and not self.per_dim and all(tensor.is_contiguous() for tensor in tensors)
        )
        if self.flat:
            self.inputs = list(tensors)
            self.rows, self.dim = -(-self.size // FLAT_COLUMNS), FLAT_COLUMNS
            self.apart = [FLAT_COLUMNS] * 4
        elif self.size:
            lines = [tensor if tensor.is_contiguous() else self._lines(tensor) for tensor in tensors]
            self.inputs = lines
            self.apart = [self.dim if line.is_contiguous() else line.stride(0) for line in lines]
        self.worth = self.size >= WORTH_TUNING

    def _lines(self, tensor: Tensor) -> Tensor:
        """(rows, dim) with contiguous lines."""
        lines = tensor.reshape(self.rows, self.dim)
        return lines if lines.stride(1) == 1 else lines.contiguous()

    def tensors(self) -> dict[str, Any]:
        """The inputs by the names of the kernels' arguments."""
        return {**dict(zip(NAMES, self.inputs, strict=True)), **self.factors()}

    def factors(self) -> dict[str, Any]:
        """Both c, and elements from one to the next of those that are tensors."""
        return {"c_img": self.c[0], "c_evt": self.c[1], "c_img_d": self.c_d[0], "c_evt_d": self.c_d[1]}

    def strides(self) -> dict[str, int]:
        """Elements from row to row of each input."""
        return dict(zip(("stride_mi", "stride_li", "stride_me", "stride_le"), self.apart, strict=True))

    def sizes(self) -> dict[str, int]:
        return {"rows": self.rows, "dim": self.dim, "size": self.size, "steps": self.steps, "batch": self.batch}

    def cut(self, config: Config) -> tuple[int, dict[str, Any]]:
        """Number of tiles, and the keyword arguments of a launch."""
        tiles = -(-self.rows // config.meta["ROWS"])
        shape = {"WIDE": self.rows + config.meta["ROWS"] >= 1 << 31, "EVEN": self.dim % config.meta["COLUMNS"] == 0}
        return tiles, {"PER_DIM": self.per_dim, "FLAT": self.flat, **shape, **config.options()}

    def programs(self, config: Config, few: bool) -> int:
        """Number of programs along the rows: one per tile, or `few`, which take the same number of tiles each."""
        tiles = -(-self.rows // config.meta["ROWS"])
        return -(-tiles // -(-tiles // (PROGRAMS * _multiprocessors(self.device)))) if few else tiles

    def floats(self, *shape: int) -> Tensor:
        return self.first.new_empty(shape, dtype=torch.float32)


def forward(
    tensors: tuple[Tensor, ...],
    c: tuple[Tensor | float, Tensor | float],
    lengths: Tensor | None,
    eps: float,
    fuse: bool,
    with_terms: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return mean, var, w_img and w_evt (empty without `fuse`), and the four terms (empty without `with_terms`)."""
    from . import triton_kernels as kernels

    call = _Call(tensors, c, lengths, eps, with_terms)
    shape = tensors[0].shape if fuse else (0,)
    mean, var, w_img, w_evt = [tensors[0].new_empty(shape) for _ in range(4)]
    terms = call.floats(4 if with_terms else 0)
    if not call.size:
        return mean, var, w_img, w_evt, terms.zero_()
    fields = dict(zip(FIELDS, (mean, var, w_img, w_evt) if fuse else (None,) * 4, strict=True))
    tuner = forward_tuner(call.dim, call.flat, call.dtype.itemsize)
    room = call.floats(4 * max(call.programs(config, True) for config in tuner.configs)) if with_terms else None

    def run(config: Config) -> None:
        tiles, keywords = call.cut(config)
        kernels.fusion_forward[(call.programs(config, with_terms),)](
            **call.tensors(),
            lengths=call.lengths,
            **fields,
            partial=room,
            terms=terms if with_terms else None,
            counter=counter(call.device) if with_terms else None,
            **call.sizes(),
            tiles=tiles,
            **call.strides(),
            eps=call.eps,
            inv_rows=1 / call.rows,
            inv_dim=1 / call.dim,
            **keywords,
        )

    key = (call.dtype, call.dim, call.per_dim, call.flat, fuse, with_terms, lengths is None)
    outputs = [*fields.values(), terms if with_terms else None]
    tuner.launch(mean, key, run, call.worth, rows=call.rows, outputs=outputs)
    return mean, var, w_img, w_evt, terms


def backward(
    grads: tuple[Tensor | None, ...],
    tensors: tuple[Tensor, ...],
    c: tuple[Tensor | float, Tensor | float],
    lengths: Tensor | None,
    eps: float,
    with_c: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the four tensors and of both c (empty without `with_c`).

    Args:
        grads: incoming gradients of mean, var, w_img, w_evt and terms; None where absent.
        tensors: mu_img, logvar_img, mu_evt and logvar_evt.
        c: ν/(ν+1) of image and event, a float32 tensor (1,) or (D,), or a number, each.
        lengths: (B,), or None.
        eps: added to each variance.
        with_c: whether the gradients of c are wanted.
    """
    from . import triton_kernels as kernels

    call = _Call(tensors, c, lengths, eps, grads[4] is not None)
    counts = [scale.numel() if isinstance(scale, Tensor) else 1 for scale in c]
    outgoing = [tensors[0].new_empty(tensors[0].shape) for _ in range(4)]
    if not call.size:
        empty = [call.floats(count if with_c else 0).zero_() for count in counts]
        return (*outgoing, *empty)  # type: ignore[return-value]
    incoming = [None if grad is None else grad.contiguous() for grad in grads]
    grad_terms = None if incoming[4] is None else incoming[4].float()
    chunked = grad_terms is None or call.dim > LONGEST_ROW
    columns = min(_power_of_two(call.dim), 1024) if chunked else _power_of_two(call.dim)
    chunks = -(-call.dim // columns)
    sums = _row_sums(call) if grad_terms is not None and chunks > 1 else None
    tuner = backward_tuner(columns, call.dtype.itemsize)
    # Every program stores a partial sum of the gradient of c, and reads all lengths for the terms' gradient.
    few = with_c or (grad_terms is not None and lengths is not None)
    width = call.dim if call.per_dim else chunks
    room = call.floats(2 * max(call.programs(config, few) for config in tuner.configs) * width) if with_c else None
    scales = [call.floats(width if call.per_dim else 1) if with_c else None for _ in range(2)]
    upstream = {f"grad_{name}": grad for name, grad in zip(FIELDS, incoming, strict=False)}
    downstream = {f"grad_{name}": grad for name, grad in zip(NAMES, outgoing, strict=True)}

    def run(config: Config) -> None:
        tiles, keywords = call.cut(config)
        kernels.fusion_backward[(call.programs(config, few), chunks)](
            **upstream,
            grad_terms=grad_terms,
            sums=sums,
            **call.tensors(),
            lengths=call.lengths,
            **downstream,
            grad_c_img=None if call.per_dim else scales[0],
            grad_c_evt=None if call.per_dim else scales[1],
            partial=room,
            counter=counter(call.device) if with_c and not call.per_dim else None,
            **call.sizes(),
            tiles=tiles,
            **call.strides(),
            eps=call.eps,
            **keywords,
        )

    given = tuple(grad is None for grad in grads)
    key = (call.dtype, call.dim, call.per_dim, call.flat, with_c, lengths is None, given)

    def compared(config: Config) -> list[Tensor]:
        shown = [*outgoing]
        if grad_terms is not None:
            shown[::2] = _without_ties(call, outgoing[0], outgoing[2])
        if room is not None and call.per_dim:
            programs = call.programs(config, few)
            shown.append(room[: 2 * programs * width].view(2, programs, width).sum(1))
        elif room is not None:
            shown.append(torch.cat([scale for scale in scales if scale is not None]))
        return shown

    written = [*outgoing, room, *scales] if not call.per_dim else [*outgoing, room]
    config = tuner.launch(outgoing[0], key, run, call.worth, rows=call.rows, outputs=written, compared=compared)
    if room is not None and call.per_dim:
        with device_guard(room):
            kernels.fusion_factors[(-(-call.dim // FACTORS.meta["COLUMNS"]),)](
                partial=room,
                **call.factors(),
                grad_c_img=scales[0],
                grad_c_evt=scales[1],
                programs=call.programs(config, few),
                dim=call.dim,
                **FACTORS.options(),
            )
    found = [
        call.floats(0) if total is None else total.sum(0, keepdim=True) if count < total.numel() else total
        for total, count in zip(scales, counts, strict=True)
    ]
    return (*outgoing, *found)  # type: ignore[return-value]


def _without_ties(call: _Call, *gradients: Tensor) -> list[Tensor]:
    """Gradients of mu_img and mu_evt without the rows whose two norms are equal up to rounding.

    There the gradient of |‖mu_i‖ − ‖mu_e‖| has either sign, and the order of a sum decides which.
    """
    lines = (line.reshape(call.rows, call.dim) for line in call.inputs[::2])
    first, second = (torch.linalg.vector_norm(line, dim=1, dtype=torch.float32) for line in lines)
    apart = ~((first - second).abs() <= 1e-5 * first)
    return [gradient.reshape(call.rows, call.dim)[apart] for gradient in gradients]


def _row_sums(call: _Call) -> Tensor:
    from . import triton_kernels as kernels

    sums = call.floats(call.rows, 3)
    config = row_sums_config(call.dtype.itemsize)
    with device_guard(sums):
        kernels.fusion_row_sums[(call.rows,)](
            mu_img=call.inputs[0],
            mu_evt=call.inputs[2],
            lengths=call.lengths,
            sums=sums,
            rows=call.rows,
            dim=call.dim,
            steps=call.steps,
            stride_mi=call.apart[0],
            stride_me=call.apart[2],
            WIDE=call.cut(config)[1]["WIDE"],
            **config.options(),
        )
    return sums
