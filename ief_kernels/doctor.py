"""Print what a bug report needs: versions, compilers, extensions, threads, caches, and what serves what.

Run ``python -m ief_kernels.doctor``. It needs no GPU, changes nothing, and always exits with 0.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import torch

from . import _cuda_extension, _native, _triton
from .dispatch import explain, operators

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_PREFIXES = ("IEF_", "IEFVAD_", "TRITON_")
_VARIABLES = (
    "CC",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "CXXFLAGS",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "KMP_LIBRARY",
    "LD_PRELOAD",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_CUDA_ALLOC_CONF",
    "XDG_CACHE_HOME",
)
# What the usual call of an operator brings, where that is not float32.
_DTYPES = {"event_synthesis": torch.uint8}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _first_line(*command: str) -> str:
    """First line that a command prints, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else f"prints nothing (exit status {done.returncode})"


def _compiler(variable: str, names: tuple[str, ...]) -> str:
    """Version of the compiler that a variable names, else of the first of `names` that is found."""
    named = os.environ.get(variable)
    if named:
        return f"{named} (from {variable}): {_first_line(*shlex.split(named), '--version')}"
    found = next((path for path in map(shutil.which, names) if path), None)
    return "not found" if found is None else f"{found}: {_first_line(found, '--version')}"


def _versions() -> Iterator[str]:
    yield f"platform       {platform.platform()}, {platform.machine()}, {os.cpu_count()} CPU(s)"
    yield f"Python         {platform.python_version()}"
    yield f"iefvad         {_version('iefvad')}"
    yield f"torch          {torch.__version__}"
    triton = _version("triton")
    yield f"triton         {_version('pytorch-triton') if triton == 'not installed' else triton}"
    yield f"CUDA of torch  {torch.version.cuda or 'none'}"
    if torch.version.hip is not None:
        yield f"ROCm of torch  {torch.version.hip}"
    smi = shutil.which("nvidia-smi")
    driver = "nvidia-smi not found"
    if smi is not None:
        driver = _first_line(smi, "--query-gpu=driver_version", "--format=csv,noheader")
    yield f"NVIDIA driver  {driver}"


def _compilers() -> Iterator[str]:
    yield f"C    {_compiler('CC', ('gcc', 'clang'))}"
    yield f"C++  {_compiler('CXX', ('c++', 'g++', 'clang++'))}"
    nvcc = shutil.which("nvcc")
    yield f"nvcc {'not found' if nvcc is None else nvcc}"


def _extensions() -> Iterator[str]:
    yield f"ief_kernels._C     {_native.describe()}"
    yield f"ief_kernels._cuda  {_cuda_extension.describe()}"
    if not _native.available():
        yield f"without ief_kernels._C {_native.COST}"


def _threads() -> Iterator[str]:
    yield f"torch.get_num_threads() {torch.get_num_threads()}"
    if hasattr(os, "sched_getaffinity"):
        yield f"CPUs of this process    {len(os.sched_getaffinity(0))}"
    waiting = ", ".join(f"{name}={os.environ[name]}" for name in _WAITING if name in os.environ)
    yield f"waiting threads         {waiting or 'spin as long as OpenMP does by default; slow on a busy machine'}"


def _caches() -> Iterator[str]:
    folder = _triton.cache_folder()
    files = sorted(path.name for path in folder.glob("*.json")) if folder.is_dir() else []
    yield f"measured choices    {folder}: {', '.join(files) or 'empty'}"
    compiled = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    yield f"compiled by triton  {compiled}: {'present' if compiled.is_dir() else 'empty'}"


def _variables() -> Iterator[str]:
    for name in sorted(os.environ):
        if name in _VARIABLES or name.startswith(_PREFIXES):
            yield f"{name}={os.environ[name]}"


def _gpus() -> list[torch.device]:
    return [
        torch.device("cuda", index) for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]


def _devices() -> Iterator[str]:
    for device in _gpus():
        found = torch.cuda.get_device_properties(device)
        yield f"{device}: {found.name}, compute capability {found.major}.{found.minor}, {found.total_memory >> 20} MiB"


def _operators() -> Iterator[str]:
    for device in (torch.device("cpu"), *_gpus()):
        for op in operators():
            yield from explain(op, device, _DTYPES.get(op, torch.float32)).splitlines()


_SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "versions": _versions,
    "compilers": _compilers,
    "extensions": _extensions,
    "threads": _threads,
    "caches": _caches,
    "environment variables": _variables,
    "GPUs": _devices,
    "operators": _operators,
}


def report() -> Iterator[str]:
    """Yield the report's lines. A section that fails says so in a line, and the next one follows."""
    for title, section in _SECTIONS.items():
        yield f"{title}:"
        empty = True
        try:
            for line in section():
                empty = False
                yield f"  {line}"
        except Exception as error:  # whatever is broken on a machine, the rest of the report is wanted
            yield f"  failed: {type(error).__name__}: {error}"
        else:
            if empty:
                yield "  none"


def main() -> int:
    """Print the report; return the exit status, which is 0."""
    for line in report():
        print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
