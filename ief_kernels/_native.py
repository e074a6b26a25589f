"""The C++ extension ``ief_kernels._C``: whether it is there, and what it was built for."""

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


def load() -> ModuleType | None:
    """The extension module, or None where it was not built or does not load."""
    return _module


def why_not() -> str:
    """The reason why ``load()`` gives None; empty if it does not."""
    return _reason


def available() -> bool:
    return _module is not None


def extension() -> ModuleType:
    """The extension module for callers that have already been told that it is there."""
    if _module is None:
        raise RuntimeError(_reason)
    return _module


def threads() -> int:
    """How many threads a kernel may use: as many as torch."""
    return torch.get_num_threads()


def describe() -> str:
    """One phrase on the build, such as ``C++, avx512, 2 threads``."""
    if _module is None:
        return _reason
    return f"C++, {_module.isa()}, {threads() if _module.openmp() else 1} thread(s)"
