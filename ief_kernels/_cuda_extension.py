"""The CUDA extension ``ief_kernels._cuda``: whether it was built, and the module itself once a call needs it."""

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
    """The reason why the extension cannot be used; None if it can."""
    return _reason or None


@functools.cache
def extension() -> ModuleType:
    """The extension module, loaded at the first call; raises ImportError where it was not built."""
    return importlib.import_module("ief_kernels._cuda")
