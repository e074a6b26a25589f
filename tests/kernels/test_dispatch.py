from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ief_kernels
from ief_kernels import BackendUnavailable, _cuda_extension, _native, _triton, dispatch, doctor, explain
from tests.helpers.kernel_checks import needs_native

CPU = torch.device("cpu")
OPERATORS = ("event_synthesis", "fusion_and_terms", "fusion_terms", "kalman_scan", "precision_fusion", "refine")


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An operator whose triton backend wants CUDA and whose native backend wants float32 and few rows."""
    monkeypatch.setattr(dispatch, "_checks", {})
    dispatch.register_backend("op", "triton", lambda device, dtype, facts: None if device.type == "cuda" else "no CUDA")
    dispatch.register_backend(
        "op",
        "native",
        lambda device, dtype, facts: (
            f"does not take {dtype}"
            if dtype != torch.float32
            else ("too many rows" if facts.get("rows", 0) > 9 else None)
        ),
    )
    yield "op"


def test_auto_takes_the_first_that_serves(op: str) -> None:
    assert dispatch.choose(op, "auto", torch.device("cuda"), torch.float32).backend == "triton"
    assert dispatch.choose(op, "auto", CPU, torch.float32) == ("native", "triton: no CUDA; ")
    assert dispatch.choose(op, "auto", CPU, torch.float64).backend == "reference"
    assert dispatch.choose(op, "auto", CPU, torch.float32, rows=10).backend == "reference"


def test_a_named_backend_serves_or_says_why_not(op: str) -> None:
    assert dispatch.choose(op, "native", CPU, torch.float32).backend == "native"
    with pytest.raises(BackendUnavailable, match="backend 'triton' cannot serve op: no CUDA"):
        dispatch.choose(op, "triton", CPU, torch.float32)
    with pytest.raises(BackendUnavailable, match="too many rows"):
        dispatch.choose(op, "native", CPU, torch.float32, rows=10)
    with pytest.raises(ValueError, match="use 'auto' or one of triton, native, reference"):
        dispatch.choose(op, "fast", CPU, torch.float32)
    with pytest.raises(ValueError, match="unknown operator 'other'"):
        dispatch.choose("other", "auto", CPU, torch.float32)
    with pytest.raises(ValueError, match="unknown backend"):
        dispatch.register_backend(op, "fast", lambda device, dtype, facts: None)


def test_explain_tells_the_choice_and_every_reason(op: str) -> None:
    first, *rest = explain(op, torch.zeros(2, dtype=torch.float64)).splitlines()
    assert first == "op on cpu, torch.float64: auto takes reference"
    assert [line.split()[:2] for line in rest] == [["triton", "no"], ["native", "no"], ["reference", "yes"]]
    assert "no CUDA" in rest[0]
    assert "does not take torch.float64" in rest[1]
    assert "auto takes triton" in explain(op, "cuda:1", torch.float16)
    assert "auto takes reference" in explain(op, rows=10)
    with pytest.raises(TypeError, match="not int"):
        explain(op, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_known(name: str) -> None:
    assert callable(getattr(ief_kernels, name))
    assert callable(getattr(ief_kernels.reference, name))
    assert name in explain(name)
    assert f"{name} on cpu" in explain()


def test_public_names_exist() -> None:
    for name in ief_kernels.__all__:
        assert hasattr(ief_kernels, name), name


@needs_native
def test_instruction_set_can_be_lowered_by_environment() -> None:
    code = "from ief_kernels import _native; print(_native.extension().isa())"
    result = subprocess.run(
        [sys.executable, "-c", code], env={"IEF_KERNELS_ISA": "scalar"}, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "scalar"
    with pytest.raises(ValueError, match="unknown instruction set"):
        _native.extension().set_isa("sse9")


@pytest.mark.parametrize("extension", [_native, _cuda_extension], ids=["C++", "CUDA"])
def test_both_extensions_answer_alike(extension: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = extension.why_not()
    assert extension.available() == (reason is None)
    assert (
        extension.describe().startswith("C++" if extension is _native else "CUDA C++") or extension.describe() == reason
    )
    monkeypatch.setattr(extension, "_reason", "it is not built")
    monkeypatch.setattr(extension, "_module", None, raising=False)
    if extension is _cuda_extension:
        monkeypatch.setattr(extension, "extension", extension.extension.__wrapped__)
    assert not extension.available() and extension.why_not() == extension.describe() == "it is not built"
    with pytest.raises(RuntimeError, match="not built"):
        extension.extension()


OPERATOR_FOLDERS = ("event_synthesis", "kalman_scan", "precision_fusion", "refinement")


@pytest.mark.parametrize("folder", OPERATOR_FOLDERS)
def test_each_file_registers_what_is_its_own(folder: str) -> None:
    """autograd.py registers the operator with torch, each backend's file that backend; nothing else registers."""
    found = {}
    for path in (Path(ief_kernels.__file__).parent / folder).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        backends = set(re.findall(r'register_backend\(\s*[^,]+,\s*"(\w+)"', text))
        found[path.name] = (len(re.findall(r"^register_operator\(", text, re.MULTILINE)), backends)
        assert "torch.library" not in text
    expected = {"autograd.py": (2, set()), "native.py": (0, {"native"}), "triton_launch.py": (0, {"triton"})}
    assert found == {name: expected.get(name, (0, set())) for name in found}


def test_absent_extension_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, package: str | None = None) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(_native.importlib, "import_module", absent)
    module, reason = _native._import()
    assert module is None
    assert "install a C++ compiler" in reason
    monkeypatch.setattr(_native, "_module", module)
    monkeypatch.setattr(_native, "_reason", reason)
    assert not _native.available()
    assert "install a C++ compiler" in explain("event_synthesis", torch.uint8)
    with pytest.raises(RuntimeError, match="not built"):
        _native.extension()


# Where no kernel can run: no GPU is needed to ask.

GPU = torch.device("cuda", 0)
FLOAT_OPERATORS = tuple(name for name in OPERATORS if name != "event_synthesis")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretends that GPU has this compute capability; Triton is installed, and so is gcc."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(_triton, "_majors", {})
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major, minor=minor)
        )

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(_triton, "INTERPRET", False)
    monkeypatch.setattr(_triton, "_FOUND", True)
    monkeypatch.setattr(_triton, "_COMPILER_REASON", "")
    return pretend


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that the CUDA extension is built for three architectures."""
    monkeypatch.setattr(_cuda_extension, "_reason", "")
    monkeypatch.setattr(_cuda_extension, "_architectures", (80, 90, 100))
    monkeypatch.setattr(_cuda_extension, "describe", lambda: "CUDA C++, sm_80 sm_90 sm_100")


@pytest.mark.parametrize(
    ("major", "minor", "serves"),
    [
        (7, 0, False),
        (7, 5, False),
        *((*at, True) for at in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))),
    ],
)
def test_cuda_serves_gpus_it_has_code_for(
    major: int, minor: int, serves: bool, gpu: Callable[[int, int], None], built: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(major, minor)
    monkeypatch.setattr(_triton, "_FOUND", False)
    choice = dispatch.choose("event_synthesis", "auto", GPU, torch.uint8)
    assert choice.backend == ("native" if serves else "reference")
    reason = f"built for sm_80, sm_90, sm_100, and has no code for this GPU (sm_{major}{minor})"
    assert (reason in explain("event_synthesis", GPU, torch.uint8)) == (not serves)
    if not serves:
        with pytest.raises(BackendUnavailable, match="has no code for this GPU"):
            dispatch.choose("event_synthesis", "native", GPU, torch.uint8)


def test_cuda_of_a_gap_is_not_served_by_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    """PTX is kept for the newest architecture alone, so that a GPU between two of them may have no code."""
    monkeypatch.setattr(_cuda_extension, "_architectures", (86, 100))
    assert [_cuda_extension.missing_image(*at) is None for at in ((8, 0), (8, 6), (9, 0), (10, 0))] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("name", FLOAT_OPERATORS)
def test_triton_serves_gpus_it_can_run_on(name: str, gpu: Callable[[int, int], None]) -> None:
    gpu(9, 0)
    assert dispatch.choose(name, "auto", GPU, torch.float32).backend == "triton"
    gpu(7, 5)
    assert dispatch.choose(name, "auto", GPU, torch.float32).backend != "triton"
    assert "compute capability 8.0" in explain(name, GPU)


@pytest.mark.parametrize("name", FLOAT_OPERATORS)
def test_triton_needs_a_c_compiler(name: str, gpu: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(9, 0)
    present: set[str] = set()
    monkeypatch.setattr(shutil, "which", lambda command: f"/usr/bin/{command}" if command in present else None)

    def reason(cc: str | None, *found: str) -> str | None:
        present.clear()
        present.update(found)
        monkeypatch.delenv("CC", raising=False) if cc is None else monkeypatch.setenv("CC", cc)
        monkeypatch.setattr(_triton, "_COMPILER_REASON", _triton._missing_compiler())
        if dispatch.choose(name, "auto", GPU, torch.float32).backend == "triton":
            return None
        with pytest.raises(BackendUnavailable, match="C compiler"):
            dispatch.choose(name, "triton", GPU, torch.float32)
        return explain(name, GPU)

    assert "triton finds no C compiler" in (reason(None) or "")
    assert "that CC names (ccache gcc) is not found" in (reason("ccache gcc", "ccache", "gcc") or "")
    assert reason(None, "gcc") is None and reason(None, "clang") is None and reason("icx", "icx") is None


@pytest.mark.parametrize("name", FLOAT_OPERATORS)
def test_triton_is_not_taken_on_rocm(
    name: str, gpu: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(9, 4)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert dispatch.choose(name, "auto", GPU, torch.float32).backend != "triton"
    assert "has not been tried on ROCm" in explain(name, GPU)


# The doctor.


def test_doctor_prints_what_a_report_needs() -> None:
    done = subprocess.run([sys.executable, "-m", "ief_kernels.doctor"], capture_output=True, text=True, check=True)
    for said in (f"torch          {torch.__version__}", "triton ", "NVIDIA driver", "C++ ", "ief_kernels._C ", "GPUs:"):
        assert said in done.stdout
    assert _native.why_not() or f"C++, {_native.extension().isa()}" in done.stdout
    for name in OPERATORS:
        assert f"  {name} on cpu, " in done.stdout
    assert "failed:" not in done.stdout and not done.stderr


def test_doctor_says_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    assert any("spin as long as OpenMP does by default" in line for line in doctor.report())
    monkeypatch.setenv("GOMP_SPINCOUNT", "1500")
    assert "  waiting threads         GOMP_SPINCOUNT=1500" in list(doctor.report())


def test_doctor_outlives_a_broken_section(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> list[torch.device]:
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(doctor, "_gpus", broken)
    monkeypatch.setenv("IEF_KERNELS_TUNE", "0")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "GPUs:\n  failed: RuntimeError: the driver is gone\noperators:" in printed
    assert "IEF_KERNELS_TUNE=0" in printed and "no-such-compiler (from CXX): does not run" in printed
