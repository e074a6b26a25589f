"""The CUDA extension ``ief_kernels._cuda``: whether it can be used, and the module itself.

It is loaded at the first call that needs it. `_native` has the same functions for the C++ extension.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch

if importlib.util.find_spec("ief_kernels._cuda") is None:
    _reason = "the CUDA extension is not built; install nvcc and run `pip install -e .` again"
elif torch.version.hip is not None:
    _reason = "the CUDA extension does not run on this torch, which is built for ROCm"
else:
    _reason = ""


def why_not() -> str | None:
    """Return the reason why the extension cannot be used, or None if it can."""
    return _reason or None


def available() -> bool:
    """Return whether the extension can be used."""
    return why_not() is None


@functools.cache
def extension() -> ModuleType:
    """Return the extension module; the first call loads it.

    Raises:
        RuntimeError: the extension cannot be used; the message is that of `why_not`.
    """
    if _reason:
        raise RuntimeError(_reason)
    return importlib.import_module("ief_kernels._cuda")


def describe() -> str:
    """Return one phrase on the build, such as ``CUDA C++, sm_80,sm_90``, or why it cannot be used."""
    return _reason or f"CUDA C++, {extension().architectures}"
