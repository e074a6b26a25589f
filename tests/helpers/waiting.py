"""Finds what waits for the device, without a device.

A GPU works behind the program: a call returns as soon as its work is queued. The program waits wherever it needs a
number from the device, and wherever it copies memory without saying that it need not wait. Tensors on torch's "meta"
device stand for those on a GPU here: they have shapes and no contents. (`FakeTensorMode` with CUDA tensors would be
nearer, but its backward pass asks the CUDA driver for a device.)
"""

from __future__ import annotations

import contextlib
import importlib
import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # before anything is replaced: it keeps what it finds in torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ief_kernels import _triton, dispatch

GPU = torch.device("meta")
OPERATORS = {"refine": "refinement"}  # folders that are not named like their operator
OWN = ("/iefvad/", "/ief_kernels/", "/tests/", "/bench/")
INPUTS = "matrix_cases.py"  # makes its tensors where it calls the operators


class Waits(TorchDispatchMode):
    """Records what would wait for the device, and goes on.

    Registered operators run their own host code here, not their fake implementations, if `launches` is set.

    Attributes:
        found: Sentences, each with the innermost lines of the project that led there.
    """

    def __init__(self, launches: bool) -> None:
        super().__init__()
        self.launches = launches
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_gpu = [tensor for tensor in tensors if tensor.device == GPU]
        if func.namespace == "ief_kernels" and self.launches:
            op, _, which = name.rpartition("_")
            module = importlib.import_module(f"ief_kernels.{OPERATORS.get(op, op)}.autograd")
            with self:
                return getattr(module, f"_{which}")(*args, **kwargs)
        if name == "_local_scalar_dense" and on_gpu:
            self.add("a value is read (item, tolist, bool, int or float)")
            return torch.ones((), dtype=on_gpu[0].dtype).item()
        if name in ("_to_copy", "copy_"):
            source = args[name == "copy_"]
            target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if source.device == GPU != target:
                self.add("a tensor is copied to the CPU")
                return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            if target == GPU != source.device and waits:
                self.add("a tensor is copied from the CPU without non_blocking=True")
        elif on_gpu and func.namespace == "aten" and any(t.device != GPU and t.dim() for t in tensors):
            self.add(f"{name} takes a tensor from the CPU")
        return func(*args, **kwargs)

    def add(self, what: str) -> None:
        """Record one thing that waits."""
        frames = [frame for frame in traceback.extract_stack() if any(part in frame.filename for part in OWN)]
        frames = [frame for frame in frames if frame.filename != __file__]
        if not frames[-1].filename.endswith(INPUTS):
            lines = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.line}" for frame in frames[-3:]]
            self.found.append(f"{what}: " + " < ".join(reversed(lines)))


class _Values(TorchFunctionMode):
    """Records tensors that are made from Python's numbers on the device: these are copied, and the copy waits."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func is torch.Tensor.new_tensor:
            device = device or args[0].device
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor):
            data = args[1] if func is torch.Tensor.new_tensor else args[0]
            if device is not None and torch.device(device) == GPU and not isinstance(data, torch.Tensor):
                self.waits.add("numbers are copied from Python to the device")
        return func(*args, **kwargs)


@contextlib.contextmanager
def waiting(monkeypatch: pytest.MonkeyPatch, *, launches: bool = False) -> Iterator[Waits]:
    """The package takes tensors on `GPU` for those on a GPU of compute capability 9.0; what waits is recorded.

    Args:
        monkeypatch: pytest's.
        launches: Run the operators' host code down to the launches, which do nothing. Needs triton.
    """
    properties = SimpleNamespace(name="none", major=9, minor=0, multi_processor_count=132)
    autocast, context = torch.is_autocast_enabled, torch.autocast
    with monkeypatch.context() as patch:
        if launches:
            patch.setattr(importlib.import_module("triton.runtime.jit").JITFunction, "run", lambda *a, **k: None)
        patch.setattr(torch, "is_autocast_enabled", lambda device="cuda": device != GPU.type and autocast(device))
        patch.setattr(
            torch,
            "autocast",
            lambda kind, **rest: contextlib.nullcontext() if kind == GPU.type else context(kind, **rest),
        )
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
        # The fused optimiser runs on a GPU; its fake implementation takes any device.
        optimizer = importlib.import_module("torch.optim.optimizer")
        supported = optimizer._get_fused_kernels_supported_devices
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported(), GPU.type])
        patch.setattr(_triton, "_FOUND", True)
        patch.setattr(_triton, "_COMPILER_REASON", "")
        patch.setattr(_triton, "INTERPRET", False)
        for checks in dispatch._checks.values():
            check = checks.get("triton")
            if check is None:  # an operator without Triton kernels
                continue
            patch.setitem(checks, "triton", lambda _, *rest, check=check: check(torch.device("cuda", 0), *rest))
        waits = Waits(launches)
        with waits, _Values(waits):
            yield waits
