"""Which backend serves a call.

An operator's file for a backend (``native.py``, ``triton_launch.py``) registers that backend with a check. The check
returns None if the backend serves a call with these facts, or else the reason why it does not. ``"auto"`` takes the
first backend that serves, in the order of ``BACKENDS``. A backend asked for by name serves, or the call raises
``BackendUnavailable``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from . import _native
from ._tensors import promoted_dtype

BACKENDS = ("triton", "native", "reference")

Facts = dict[str, Any]
Check = Callable[[torch.device, torch.dtype, Facts], "str | None"]


class BackendUnavailable(RuntimeError):
    """Raised where the backend asked for cannot serve a call; the message says why."""


class Choice(NamedTuple):
    """The backend that serves a call, and the reason for the choice."""

    backend: str
    reason: str


Describe = Callable[[Facts], str]

_checks: dict[str, dict[str, Check]] = {}
_details: dict[tuple[str, str], Describe] = {}


def register_backend(op: str, name: str, check: Check, describe: Describe | None = None) -> None:
    """Make backend ``name`` known for operator ``op``.

    Args:
        op: name of the public function.
        name: one of ``BACKENDS``. ``"reference"`` serves every call unless a check is registered for it too.
        check: ``check(device, dtype, facts)`` returns None if the backend serves, else the reason as a sentence part.
            `torch.compile` traces it, so it must be plain Python on its arguments.
        describe: ``describe(facts)`` says for ``explain`` how the backend would serve, such as on which path. Its
            facts include the ``device``.

    Raises:
        ValueError: there is no backend of that name.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; backends are {', '.join(BACKENDS)}")
    _checks.setdefault(op, {})[name] = check
    if describe is not None:
        _details[op, name] = describe


def operators() -> list[str]:
    """Return the names of all operators."""
    return sorted(_checks)


def native_check(op_dtypes: tuple[torch.dtype, ...]) -> Check:
    """Return the usual check of a C++ kernel: extension built, tensors on the CPU, dtype among ``op_dtypes``."""

    def check(device: torch.device, dtype: torch.dtype, facts: Facts) -> str | None:
        missing = _native.why_not()
        if missing is not None:
            return missing
        if device.type != "cpu":
            return f"its kernel runs on the CPU, and the tensors are on {device.type}"
        if dtype not in op_dtypes:
            return f"its kernel does not take {dtype}"
        return None

    return check


def _why_not(op: str, name: str, device: torch.device, dtype: torch.dtype, facts: Facts) -> str | None:
    check = _checks[op].get(name)
    if check is not None:
        return check(device, dtype, facts)
    return None if name == "reference" else f"{op} has no {name} kernel"


def require(op: str, backend: str, device: torch.device, dtype: torch.dtype, facts: Facts) -> None:
    """Check that a backend serves a call; arguments as in `choose`.

    Raises:
        BackendUnavailable: it does not.
    """
    reason = _why_not(op, backend, device, dtype, facts)
    if reason is not None:
        raise BackendUnavailable(f"backend {backend!r} cannot serve {op}: {reason}")


def choose(op: str, backend: str, device: torch.device, dtype: torch.dtype, **facts: Any) -> Choice:
    """Choose the backend that serves a call.

    Args:
        op: name of the public function.
        backend: ``"auto"`` or one of ``BACKENDS``.
        device: device of the call's tensors.
        dtype: promoted dtype of the call's tensors (`_tensors.promoted_dtype`).
        **facts: whatever else the operator's checks ask for.

    Returns:
        The backend and the reason for it.

    Raises:
        BackendUnavailable: the backend asked for does not serve this call.
        ValueError: there is no backend or operator of that name.
    """
    choice = _choose(op, backend, device, dtype, facts)
    missing = backend == "auto" and choice.backend == "reference" and device.type == "cpu" and "native" in _checks[op]
    if missing and not torch.compiler.is_compiling():
        _native.tell_once()
    return choice


def _choose(op: str, backend: str, device: torch.device, dtype: torch.dtype, facts: Facts) -> Choice:
    """As `choose`, without the warning about a missing extension."""
    if op not in _checks:
        raise ValueError(f"unknown operator {op!r}; operators are {', '.join(sorted(_checks))}")
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; use 'auto' or one of {', '.join(BACKENDS)}")
        require(op, backend, device, dtype, facts)
        return Choice(backend, "asked for by name")
    refused = ""
    for name in BACKENDS:
        reason = _why_not(op, name, device, dtype, facts)
        if reason is None:
            return Choice(name, refused or "the first choice")
        refused += f"{name}: {reason}; "
    raise BackendUnavailable(f"no backend can serve {op}: {refused}")


def explain(op: str | None = None, *about: torch.Tensor | torch.device | torch.dtype | str, **facts: Any) -> str:
    """Say for every backend whether it would serve a call, why not, and which one ``"auto"`` takes.

    Args:
        op: name of a public function; None explains all of them.
        *about: tensors, a device and a dtype in any order, such as the tensors of a call that carry data. The first
            device counts, and a dtype that is given, else the promoted one of the tensors. The default is the CPU and
            float32.
        **facts: whatever else the operator's checks ask for. ``shape`` is the first tensor's unless given.

    Returns:
        A text with one line for the choice and one line per backend.

    Raises:
        TypeError: an argument is neither a tensor, a device nor a dtype.
        ValueError: there is no operator of that name.

    Example:
        >>> print(explain("kalman_scan", torch.zeros(1, 8, 4)))  # doctest: +SKIP
        kalman_scan on cpu, torch.float32: auto takes native
    """
    if op is None:
        return "\n".join(explain(name, *about, **facts) for name in operators())
    device, dtype = _device_and_dtype(about)
    facts = {"shape": next((tuple(item.shape) for item in about if isinstance(item, torch.Tensor)), None)} | facts
    choice = _choose(op, "auto", device, dtype, facts)
    lines = [f"{op} on {device}, {dtype}: auto takes {choice.backend}"]
    for name in BACKENDS:
        reason = _why_not(op, name, device, dtype, facts)
        detail = {"native": _native.describe(), "reference": "eager PyTorch"}.get(name, "kernel")
        if reason is None and (op, name) in _details:
            detail = _details[op, name]({**facts, "device": device})
        lines.append(f"  {name:<10} {'yes' if reason is None else 'no':<4} {detail if reason is None else reason}")
    return "\n".join(lines)


def _device_and_dtype(about: tuple[Any, ...]) -> tuple[torch.device, torch.dtype]:
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    tensors = [item for item in about if isinstance(item, torch.Tensor)]
    for item in about:
        if isinstance(item, torch.Tensor):
            device = device or item.device
        elif isinstance(item, torch.dtype):
            dtype = dtype or item
        elif isinstance(item, torch.device | str):
            device = device or torch.device(item)
        else:
            raise TypeError(f"explain takes tensors, devices and dtypes, not {type(item).__name__}")
    if dtype is None:
        dtype = promoted_dtype(*tensors) if tensors else torch.float32
    return device or torch.device("cpu"), dtype
