"""The C++ extension ``ief_kernels._C``: whether it can be used, and the module itself.

`_cuda_extension` has the same functions for the CUDA extension.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import torch

REMEDY = "install a C++ compiler and run `pip install -e .` again"
COST = "on the CPU the operators run as plain PyTorch, which takes longer: 1.2 to 1.4 times as long per training step"
"""What a missing extension costs; measured as `docs/install.md` says."""


def _left_out() -> str:
    """Why the build left the extension out, as setup.py recorded it."""
    try:
        reason = (Path(__file__).parent / "left_out.txt").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        return ""
    return f" ({reason})" if reason else ""


def _import() -> tuple[ModuleType | None, str]:
    try:
        # torch is imported first: the extension then shares torch's OpenMP threads instead of starting its own.
        return importlib.import_module("._C", __package__), ""
    except ModuleNotFoundError:
        return None, f"the C++ extension is not built{_left_out()}; {REMEDY}"
    except ImportError as error:
        return None, f"the C++ extension does not load: {error}"


_module, _reason = _import()
_told = False


def tell_once() -> None:
    """Warn, once per process, that calls on the CPU miss their kernels."""
    global _told
    if _module is None and not _told:
        _told = True
        warnings.warn(f"{_reason}. Until then {COST}.", RuntimeWarning, stacklevel=4)


def why_not() -> str | None:
    """Return the reason why the extension cannot be used, or None if it can."""
    return None if _module is not None else _reason


def available() -> bool:
    """Return whether the extension can be used."""
    return why_not() is None


def extension() -> ModuleType:
    """Return the extension module.

    Raises:
        RuntimeError: the extension cannot be used; the message is that of `why_not`.
    """
    if _module is None:
        raise RuntimeError(_reason)
    return _module


def describe() -> str:
    """Return one phrase on the build, such as ``C++, avx512, 2 thread(s)``, or why it cannot be used."""
    if _module is None:
        return _reason
    return f"C++, {_module.isa()}, {torch.get_num_threads() if _module.openmp() else 1} thread(s)"
