"""Devices: from the name that `--device` takes to a `torch.device`, and the device of shapes alone."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any

import torch

from iefvad.utils.errors import UserError


def meta_device() -> AbstractContextManager[Any]:
    """Return a context in which new tensors have shapes and dtypes, and neither memory nor values."""
    if torch.__version__ < "2.7":
        # Here torch imports its compiler at the first use, and that import computes with tensors.
        importlib.import_module("torch._dynamo")
    return torch.device("meta")


def resolve_device(name: str, *, cpu_only: bool = False) -> torch.device:
    """Return the PyTorch device of a name.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the GPU if there is one, otherwise the CPU.
        cpu_only: Let `auto` be the CPU, for work that gains nothing from a GPU.

    Raises:
        UserError: the name is not a device, or this machine does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and not cpu_only else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is not a device: use auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is not supported: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        if count == 0:
            raise UserError(
                f"--device {name}: PyTorch finds no GPU here. Use --device cpu, or install a CUDA build of PyTorch."
            )
        raise UserError(f"--device {name} does not exist: PyTorch finds {count} GPU(s), numbered from 0.")
    return device
