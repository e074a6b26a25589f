"""Small helpers on shapes, dtypes, devices, lengths and memory that the operators share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ELEMENTS_PER_THREAD = 1 << 15
"""Number of elements that a thread gets at least, as in torch's own loops.

With fewer, a parallel loop costs about what it saves where the other threads are awake, 35 µs more where they sleep,
and far more on a busy machine.
"""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that arithmetic runs in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def promoted_dtype(*tensors: Tensor, states: tuple[Tensor, ...] = ()) -> torch.dtype:
    """Return the dtype of a call's outputs, which also chooses its backend: the promoted dtype of the tensors.

    This is the one rule of all operators and backends (``docs/specification.md#types-and-devices``).

    Args:
        *tensors: those that carry data. Parameters such as ν and q do not belong here: they are converted to the dtype
            of the arithmetic and never widen an output.
        states: carried states. They count only where they are float64. The state of half-precision sequences is
            float32, and carrying it on must not widen the outputs.
    """
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    for state in states:
        if state.dtype == torch.float64:
            dtype = torch.float64
    return dtype


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a dtype; where it has that already, at no cost (a call of `to` is never free)."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def address(tensor: Tensor | None) -> int:
    """Return where the tensor's memory begins, or 0 for None, as the C++ kernels take it."""
    return 0 if tensor is None else tensor.data_ptr()


def useful_threads(available: int, elements: int) -> int:
    """Return the number of threads for a kernel over so many elements: one per `ELEMENTS_PER_THREAD`."""
    return max(1, min(available, elements // ELEMENTS_PER_THREAD))


def require_float(**tensors: Tensor) -> None:
    """Check that all tensors are float16, bfloat16, float32 or float64.

    Raises:
        TypeError: one is not; the message names the first such tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def require_same_shape(**tensors: Tensor) -> None:
    """Check that all tensors have the shape of the first.

    Raises:
        ValueError: one differs; the message names the first such tensor.
    """
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != first.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but {first_name} has {tuple(first.shape)}")


def require_same_device(
    tensors: Mapping[str, Tensor | None],
    *,
    lengths: Tensor | None = None,
    parameters: Mapping[str, object] | None = None,
) -> None:
    """Check that all tensors of a call are on the device of the first, before a kernel takes their addresses.

    Args:
        tensors: by their names, the first of them first; None where an argument is absent.
        lengths: may also be on the CPU.
        parameters: numbers, tensors or None by their names. A tensor without dimensions may also be on the CPU; it is
            moved.

    Raises:
        ValueError: one is elsewhere; the message names the first such tensor and both devices.
    """
    (first_name, first), *_ = tensors.items()
    assert first is not None
    device = first.device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but {first_name} is on {device}; move it there")
    if lengths is not None and lengths.device != device and lengths.device.type != "cpu":
        raise ValueError(
            f"lengths is on {lengths.device}, but {first_name} is on {device}; move it there or to the CPU"
        )
    for name, value in (parameters or {}).items():
        if (
            isinstance(value, Tensor)
            and value.device != device
            and not (value.dim() == 0 and value.device.type == "cpu")
        ):
            raise ValueError(f"{name} is on {value.device}, but {first_name} is on {device}; move it there")


def require_lengths(lengths: Tensor | None, batch: int) -> None:
    """Check that `lengths` is None or an integer tensor of shape (batch,).

    The values are not read, because that would wait for the device. A value below 0 counts as 0, one above T as T.

    Raises:
        TypeError: `lengths` is not an integer tensor.
        ValueError: its shape is not (batch,).
    """
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths must be an integer tensor, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be an integer tensor, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), got {tuple(lengths.shape)}")


def valid_mask(lengths: Tensor, steps: int, device: torch.device) -> Tensor:
    """Return a (B, T) bool tensor that is true where t < lengths[b]."""
    return torch.arange(steps, device=device) < lengths.to(device, torch.int64, non_blocking=True)[:, None]


def refuse_double_backward(op: str) -> NoReturn:
    """Raise the RuntimeError for a second derivative, which no fused operator has."""
    raise RuntimeError(
        f"{op}: double backward is not available; pass backend='reference' where second derivatives are needed"
    )
