"""Checks of what is given to a registered operator (``torch.ops.ief_kernels.*``).

The public functions prepare the operands of their operators, so these never fail there. Anybody else may call an
operator too, and a kernel takes addresses: whatever does not fit is refused before. Nothing here reads a value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import dispatch

Operand = tuple[str, Tensor | None, Sequence[int], torch.dtype]
"""Name, the tensor or None where it is absent, and the shape and dtype that it must have."""


def require(device: torch.device, operands: Iterable[Operand]) -> None:
    """Check that every operand has its shape and dtype and is a usual tensor on the device.

    Raises:
        ValueError: one is otherwise; the message names it.
    """
    for name, tensor, shape, dtype in operands:
        if tensor is None:
            continue
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be a tensor of {dtype}, got {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device}, but is on {tensor.device}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got {tensor.layout}")


def require_first(name: str, tensor: Tensor, dtypes: Collection[torch.dtype], dims: range) -> None:
    """Check the tensor that decides shape, dtype and device of the others.

    Raises:
        ValueError: its dtype is not among `dtypes`, its number of dimensions not in `dims`, or it is not dense.
    """
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} must have one of the dtypes {', '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.dim() not in dims:
        most = "" if dims.stop > 64 else f" to {dims.stop - 1}"
        raise ValueError(f"{name} must have {dims.start}{most} dimensions, got shape {tuple(tensor.shape)}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got {tensor.layout}")


def require_lengths(lengths: Tensor | None, batch: int, device: torch.device) -> None:
    """Check that lengths are None or (batch,) integers on the device or the CPU. Kernels cut values to the range.

    Raises:
        ValueError: they are otherwise.
    """
    if lengths is None:
        return
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.device != device and lengths.device.type != "cpu":
        raise ValueError(f"lengths must be on {device} or the CPU, but is on {lengths.device}")
    require(lengths.device, [("lengths", lengths, (batch,), lengths.dtype)])


def require_backend(op: str, backend: str, kernels: Collection[str], tensor: Tensor, **facts: Any) -> None:
    """Check that the backend has a kernel for the operator and takes such tensors; on meta, that it has one.

    Raises:
        ValueError: there is no such kernel.
        BackendUnavailable: it does not take the tensors.
    """
    if backend not in kernels:
        raise ValueError(f"{op} has no kernel {backend!r}; kernels are {', '.join(kernels)}")
    if tensor.device.type != "meta":
        dispatch.require(op, backend, tensor.device, tensor.dtype, facts)


def require_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Check that a number is finite and within [low, high].

    Raises:
        ValueError: it is not.
    """
    if not low <= value <= high or value in (float("inf"), float("-inf")):
        raise ValueError(f"{name} must be finite and from {low} to {high}, got {value}")
