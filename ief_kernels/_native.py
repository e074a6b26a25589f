"""The C++ extension ``ief_kernels._C``: whether it can be used, and the module itself.

`_cuda_extension` has the same functions for the CUDA extension.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def _import() -> tuple[ModuleType | None, str]:
    try:
        # torch is imported first: the extension then shares torch's OpenMP threads instead of starting its own.
        return importlib.import_module("ief_kernels._C"), ""
    except ModuleNotFoundError:
        return None, "the C++ extension is not built; install a C++ compiler and run `pip install -e .` again"
    except ImportError as error:
        return None, f"the C++ extension does not load: {error}"


_module, _reason = _import()


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
