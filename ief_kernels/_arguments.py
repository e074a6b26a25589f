"""Checks of arguments that are numbers, or tensors in the place of numbers.

The ranges are those of ``docs/specification.md#types-and-devices``. Numbers are always checked. Values in tensors are
read only where that waits for nothing: on the CPU, in plain eager code. ``debug=True`` reads them on every device.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import torch
from torch import Tensor

from ._autograd import unwatched

_INFINITY = float("inf")
DEBUG = os.environ.get("IEF_KERNELS_DEBUG", "0").strip().lower() not in ("", "0", "false", "no", "off")
"""Whether every call reads the values of its parameters, as with ``debug=True``."""


def _float(name: str, value: Any, wanted: str) -> float:
    """Return what stands for a number as a float.

    Raises:
        ValueError: it is none, or too large for a float.
    """
    kind = type(value)
    if kind is int and abs(value) < 1 << 1023:
        return float(value)
    if isinstance(value, Tensor):
        number = (
            value.dim() == 0 and value.device.type == "cpu" and value.dtype != torch.bool and not value.is_complex()
        )
        kind_name = f"a tensor of shape {tuple(value.shape)} on {value.device}, {value.dtype}"
    else:
        boolean = kind.__name__ in ("bool", "bool_")  # numpy's too, by the names of its versions
        number = not boolean and (hasattr(kind, "__float__") or hasattr(kind, "__index__"))
        kind_name = repr(value)
    if number:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} must be {wanted}, got {kind.__name__} beyond the range of a float") from None
        except (TypeError, ValueError):
            pass
    raise ValueError(f"{name} must be {wanted}, got {kind_name}")


def not_negative(name: str, value: Any) -> float:
    """Return a finite number ≥ 0 as a float.

    Raises:
        ValueError: it is not such a number; the message names it.
    """
    if type(value) is not float:
        value = _float(name, value, "a finite number, 0 or more")
    if 0 <= value < _INFINITY:
        return float(value)
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    raise ValueError(f"{name} must be a finite number, 0 or more, got {value}")


def positive(name: str, value: Any, *, infinite: bool = False) -> float:
    """Return a number > 0 as a float; it must be finite unless `infinite` is set.

    Raises:
        ValueError: it is not such a number; the message names it.
    """
    if type(value) is not float:
        value = _float(name, value, "a positive number")
    if 0 < value < _INFINITY or (infinite and value == _INFINITY):
        return float(value)
    raise ValueError(f"{name} must be positive{'' if infinite else ' and finite'}, got {value}")


def finite(name: str, value: Any) -> float:
    """Return a finite number as a float.

    Raises:
        ValueError: it is not such a number; the message names it.
    """
    if type(value) is not float:
        value = _float(name, value, "a finite number")
    if -_INFINITY < value < _INFINITY:
        return float(value)
    raise ValueError(f"{name} must be a finite number, got {value}")


def integer(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """Return an integer within [low, high].

    Raises:
        ValueError: it is not such a number; the message names it.
    """
    if type(value) is not int:
        whole = isinstance(value, float) and value.is_integer()
        try:
            if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
                raise TypeError
            value = int(value) if whole else operator.index(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}") from None
    if value < low:
        why = f"must not be negative, got {value}" if low == 0 else f"must be at least {low}, got {value}"
        raise ValueError(f"{name} {why}")
    if value > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")
    return int(value)


def _readable(tensor: Tensor, debug: bool) -> bool:
    return (tensor.device.type == "cpu" or debug or DEBUG) and tensor.device.type != "meta" and unwatched((tensor,))


def _tensor(name: str, value: Tensor, debug: bool, *, zero: bool, infinite: bool, everything: bool) -> None:
    """Check dtype and values of a parameter.

    A tensor without dimensions stands for a number and is checked like one. The values of others are often learned: NaN
    and +∞ there follow ``docs/specification.md#not-finite``, and only a wrong sign is refused.

    Args:
        name: of the argument.
        value: the parameter.
        debug: read it on every device.
        zero: whether 0 is allowed.
        infinite: whether +∞ is.
        everything: whether tensors with dimensions are read too. The C++ kernels read them themselves.
    """
    if value.dtype == torch.bool or value.is_complex():
        raise ValueError(f"{name} must be a real number, got a tensor of {value.dtype}")
    if value.dim() == 0:
        if _readable(value, debug):
            number = value.item()
            if zero:
                not_negative(name, number)
            else:
                positive(name, number, infinite=infinite)
    elif (everything or debug or DEBUG) and value.numel() and _readable(value, debug):
        low = value.detach().amin().item() if not value.isnan().any() else value.detach().nan_to_num(1.0).amin().item()
        if low < 0 or (low == 0 and not zero):
            why = "must not be negative" if zero else "must be positive"
            raise ValueError(f"{name} {why}, got a tensor that contains {low}")


def process_noise(value: Any, *, debug: bool = False, everything: bool = True) -> Any:
    """Return q, a float or a tensor, after its check; see `_tensor`.

    Raises:
        ValueError: it is negative, or a number that is not finite.
    """
    if isinstance(value, Tensor):
        _tensor("process_noise", value, debug, zero=True, infinite=False, everything=everything)
        return value
    return not_negative("process_noise", value)


def degrees_of_freedom(name: str, value: Any, *, debug: bool = False, everything: bool = True) -> Any:
    """Return ν, None, a float or a tensor, after its check; see `_tensor`. ∞ means the Gaussian model.

    Raises:
        ValueError: it is not positive.
    """
    if value is None or (type(value) is float and value > 0):
        return value
    if isinstance(value, Tensor):
        if value.dim() == 0 and value.is_cpu and value.is_floating_point() and unwatched((value,)) and value.item() > 0:
            return value  # a learned ν costs a call little
        _tensor(name, value, debug, zero=False, infinite=True, everything=everything)
        return value
    return positive(name, value, infinite=True)
