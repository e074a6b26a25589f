"""Where and when something was made: date, versions, commit and hardware; never a machine's name."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import torch


def made_here(device: torch.device, seconds: float | None = None) -> dict[str, str]:
    """Describe this process: what a reader of its results wants to know.

    Args:
        device: The device that computed.
        seconds: How long it took.

    Returns:
        Texts by title, in the order in which they are shown.
    """
    found = {
        "date": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "version": _version(),
        "commit": commit(),
        "torch": torch.__version__,
        "processor": f"{cpu_model()}, {os.cpu_count()} CPUs",
        "GPU": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": str(torch.get_num_threads()),
        "duration": None if seconds is None else f"{seconds:.0f} s",
    }
    return {title: text for title, text in found.items() if text}


def cpu_model() -> str:
    """Return the processor's model name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the git commit of the package: of the checkout it lies in, or the one that it was installed from."""
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and (root / "pyproject.toml").exists():
        head, changes = _git(root, "rev-parse", "--short=12", "HEAD"), _git(root, "status", "--porcelain", "-uno")
        return head and head + (" with changes" if changes else "")
    try:
        text = Distribution.from_name("iefvad").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    return json.loads(text).get("vcs_info", {}).get("commit_id", "")[:12] or None if text else None


def _version() -> str:
    from importlib.metadata import version

    try:
        return version("iefvad")
    except PackageNotFoundError:
        return "0+unknown"


def _git(root: Path, *command: str) -> str | None:
    try:
        asked = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None
