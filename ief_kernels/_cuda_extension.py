"""The CUDA extension ``ief_kernels._cuda``: whether it can be used, on which GPUs, and the module itself.

`_native` has the same functions for the C++ extension. Loading the extension needs no GPU and no driver.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType

import torch


def _load() -> tuple[tuple[int, ...], str]:
    """Return the GPUs the extension is built for, as compute capability times ten, and why it cannot be used."""
    if importlib.util.find_spec("._cuda", __package__) is None:
        return (), "the CUDA extension is not built; install nvcc and run `pip install -e .` again"
    if torch.version.hip is not None:
        return (), "the CUDA extension does not run on this torch, which is built for ROCm"
    try:
        names = importlib.import_module("._cuda", __package__).architectures.split()
    except ImportError as error:
        return (), f"the CUDA extension does not load: {error}"
    return tuple(int(name.removeprefix("sm_")) for name in names), ""


_architectures, _reason = _load()


def missing_image(major: int, minor: int) -> str | None:
    """Return why the extension has no code for GPUs of this compute capability, or None if it has.

    Machine code serves GPUs of its major capability whose minor one is at least its own. PTX is there for the newest
    architecture alone, and serves that and later ones.
    """
    capability = 10 * major + minor
    newest = max(_architectures)
    if capability >= newest or any(at // 10 == major and at <= capability for at in _architectures):
        return None
    built = ", ".join(f"sm_{at}" for at in _architectures)
    return f"the CUDA extension is built for {built}, and has no code for this GPU (sm_{capability})"


def why_not(device: torch.device | None = None) -> str | None:
    """Return the reason why the extension cannot be used, or None if it can.

    Args:
        device: a GPU; None asks whether the extension can be used at all.
    """
    if _reason or device is None:
        return _reason or None
    properties = torch.cuda.get_device_properties(device)  # a constant to torch.compile, unlike get_device_capability
    return missing_image(properties.major, properties.minor)


def available() -> bool:
    """Return whether the extension can be used."""
    return why_not() is None


@functools.cache
def extension() -> ModuleType:
    """Return the extension module.

    Raises:
        RuntimeError: the extension cannot be used; the message is that of `why_not`.
    """
    if _reason:
        raise RuntimeError(_reason)
    return importlib.import_module("._cuda", __package__)


def describe() -> str:
    """Return one phrase on the build, such as ``CUDA C++, sm_80 sm_90``, or why it cannot be used."""
    return _reason or f"CUDA C++, {extension().architectures}"
