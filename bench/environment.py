"""What a result depends on: the device's model, the number of cores, versions and the date; never a machine's name."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench import revisions
from ief_kernels import _native
from iefvad.utils.errors import UserError


def device(name: str) -> torch.device:
    """A device by its name. Raises UserError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available; measure with --device cpu")
    return torch.device(name)


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's model name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def driver() -> str | None:
    """The NVIDIA driver's version, or None where `nvidia-smi` is absent or fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    lines = asked.stdout.split()
    return lines[0] if asked.returncode == 0 and lines else None


def describe(device: torch.device) -> dict[str, Any]:
    """The `device`, `versions`, `commit`, `date` and other entries of a result file.

    `load` is the number of other runnable processes over the last minute: near 0 on a quiet machine.
    """
    about: dict[str, Any] = {"type": device.type, "cpu": cpu_model(), "cores": cores()}
    about["threads"] = torch.get_num_threads()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count}
    versions = {
        "iefvad": version("iefvad"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "driver": driver() if device.type == "cuda" else None,
    }
    return {
        "device": about,
        "versions": versions,
        "native": _native.describe(),
        "commit": revisions.label(revisions.ROOT),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def key(about: dict[str, Any]) -> str:
    """A file name stem of device and versions, such as ``amd-epyc-2-cores_torch-2.15.0``."""
    device, versions = about["device"], about["versions"]
    parts = [device["gpu"] if device["type"] == "cuda" else f"{device['cpu']} {device['cores']} cores"]
    parts.append(f"torch {versions['torch'].split('+')[0]}")
    if device["type"] == "cuda" and versions["triton"]:
        parts.append(f"triton {versions['triton']}")
    return "_".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in parts)


def name(about: dict[str, Any]) -> str:
    """Device and versions as one line for people."""
    device, versions = about["device"], about["versions"]
    machine = device.get("gpu") or f"{device['cpu']}, {device['cores']} cores, {device['threads']} threads"
    listed = ", ".join(f"{package} {number}" for package, number in versions.items() if number)
    commit = about.get("commit")
    return f"{machine}; {listed}" + (f"; commit {commit}" if commit else "")
