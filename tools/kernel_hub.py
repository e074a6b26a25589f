"""Lay `ief_kernels` out for the Kernel Hub: the `kernels` library then loads it without an installation.

    python tools/kernel_hub.py build/kernel-hub

    from pathlib import Path
    from kernels import get_local_kernel
    ief_kernels = get_local_kernel(Path("build/kernel-hub"))

The folder has the form of a kernel repository on the hub:

    build/torch-universal/                         Python and Triton alone: any system, any torch
    build/torchMAJORMINOR-cxx11-BACKEND-...-linux/ the same with the extensions that are built here, for this torch

The C++ extension knows nothing of torch, but it is for one version of Python; other versions run the variant as if it
were the universal one. Each variant has its own metadata.json. Publishing (`kernels upload`, `hf upload`) is up to you.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ief_kernels"
UNIVERSAL = "torch-universal"
VERSION = 1
"""Version of the interface, as the hub counts them: it grows where a public function changes."""


def native_variant() -> str | None:
    """Return the variant for this torch and this system, or None where the library knows none."""
    import torch

    if sys.platform != "linux" or torch.version.hip is not None:
        return None
    major, minor = torch.__version__.split(".")[:2]
    abi = "cxx11" if torch.compiled_with_cxx11_abi() else "cxx98"
    backend = "cpu" if torch.version.cuda is None else f"cu{torch.version.cuda.replace('.', '')}"
    return f"torch{major}{minor}-{abi}-{backend}-{platform.machine()}-linux"


def lay_out(folder: Path) -> list[str]:
    """Write the variants; an older layout of the same folder is replaced.

    Args:
        folder: The repository. Its `build` folder is made anew.

    Returns:
        Names of the variants: the universal one, and where extensions are built here the native one.
    """
    extensions = sorted(PACKAGE.glob("_C.*.so")) + sorted(PACKAGE.glob("_cuda.*.so"))
    native = native_variant() if extensions else None
    shutil.rmtree(folder / "build", ignore_errors=True)
    names = [UNIVERSAL, *([native] if native else [])]
    for name in names:
        variant = folder / "build" / name
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "left_out.txt")
        shutil.copytree(PACKAGE, variant, ignore=ignored)
        if name == native:
            for path in extensions:
                shutil.copy(path, variant)
        # Older versions of the library import the folder of the kernel's name inside the variant.
        inner = variant / "ief_kernels"
        inner.mkdir()
        (inner / "__init__.py").write_text(_FORWARD, encoding="utf-8")
        backend = "cpu" if name == UNIVERSAL else re.sub(r"cu\d+", "cuda", name.split("-")[2])
        metadata = {
            "name": "ief-kernels",
            "id": f"_ief_kernels_{backend}_{_fingerprint(variant)}",
            "version": VERSION,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return names


_FORWARD = '''"""The package one folder up, for versions of `kernels` that import this one."""

import importlib.util
import sys
from pathlib import Path

_name = f"{__name__}_outer"
_spec = importlib.util.spec_from_file_location(_name, Path(__file__).parents[1] / "__init__.py")
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_name] = _module
_spec.loader.exec_module(_module)
globals().update({name: getattr(_module, name) for name in _module.__all__ if name != "__version__"})
'''


def _fingerprint(folder: Path) -> str:
    """Seven hexadecimal digits that tell one content from another: two versions can be loaded side by side."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:7]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder that is named and print its variants."""
    parser = argparse.ArgumentParser(description="Lay ief_kernels out for the Kernel Hub.")
    parser.add_argument("folder", type=Path, help="folder to write")
    folder = parser.parse_args(argv).folder
    for name in lay_out(folder):
        print(folder / "build" / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
