"""`ief_kernels` as a kernel of the Kernel Hub: loaded from a folder and under another name, beside the package."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ief_kernels

ROOT = Path(__file__).resolve().parents[1]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_hub", ROOT / "tools" / "kernel_hub.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    script().lay_out(folder)
    return folder


def imported(variant: Path) -> ModuleType:
    """Import a variant as the `kernels` library does: by its path, under the name of its id."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(kernel: ModuleType, backend: str) -> None:
    assert kernel.__name__ != "ief_kernels" and kernel.kalman_scan is not ief_kernels.kalman_scan
    assert f"auto takes {backend}" in kernel.explain("kalman_scan").splitlines()[0]
    x, var = torch.randn(2, 9, 4, requires_grad=True), torch.rand(2, 9, 4)
    found, wanted = kernel.kalman_scan(x, var), ief_kernels.kalman_scan(x, var, backend="reference")
    # float32: a chain of 9 steps of some roundings each
    torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-5, atol=1e-6)
    [grad] = torch.autograd.grad(found.mean.sum(), x)
    assert grad.isfinite().all()
    compiled = torch.compile(kernel.kalman_scan, fullgraph=True, backend="eager")(x, var)
    torch.testing.assert_close(compiled.mean, wanted.mean, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:the C:RuntimeWarning")
def test_the_universal_variant_is_python_alone_and_computes(layout: Path) -> None:
    variant = layout / "build" / "torch-universal"
    assert not [path for path in variant.rglob("*") if path.suffix in (".so", ".pyd", ".pyc")]
    absolute = re.compile(r"^\s*(?:from ief_kernels\b|import ief_kernels\b)", re.MULTILINE)
    for path in variant.rglob("*.py"):
        assert not absolute.search(re.sub(r'"""(?s:.*?)"""', "", path.read_text(encoding="utf-8"))), path
    check(imported(variant), "reference")


def test_the_native_variant_brings_its_extension(layout: Path) -> None:
    variants = [path for path in (layout / "build").iterdir() if path.name != "torch-universal"]
    if not variants:
        pytest.skip("no extension is built here, or the library knows no variant for this system")
    [variant] = variants
    assert re.fullmatch(r"torch\d+-cxx(11|98)-(cpu|cu\d+)-\w+-linux", variant.name)
    check(imported(variant), "native")


def test_the_kernels_library_loads_it(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("kernels", reason="the library is not installed: pip install kernels")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    native = any(path.name != "torch-universal" for path in (layout / "build").iterdir())
    kernel = kernels.get_local_kernel(layout, backend="cpu")
    # A build of torch with CUDA gets the native variant where its backend is asked for, which needs a GPU.
    assert kernel.kalman_scan is not ief_kernels.kalman_scan
    expected = "native" if native and torch.version.cuda is None else "reference"
    assert f"auto takes {expected}" in kernel.explain("kalman_scan").splitlines()[0]


def test_older_versions_of_the_library_find_the_inner_folder(layout: Path) -> None:
    inner = layout / "build" / "torch-universal" / "ief_kernels" / "__init__.py"
    spec = importlib.util.spec_from_file_location("_ief_inner", inner)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_ief_inner"] = module
    spec.loader.exec_module(module)
    assert set(ief_kernels.__all__) - {"__version__"} <= set(dir(module))
