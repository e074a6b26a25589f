"""The GPU that runs nothing: what it records of compilations and launches."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

from bench.fake_gpu import FakeGPU, child

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CODE = """
import json, sys
import torch
import triton
import triton.language as tl
from bench.fake_gpu import FakeGPU

gpu = FakeGPU(86)
import ief_kernels
from ief_kernels import dispatch


@triton.jit
def much_shared(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(y + at, tl.dot(tl.load(x + at), tl.trans(tl.load(x + at))))


@triton.jit
def many_registers(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    values = tl.load(x + at)
    tl.store(y + at, values * tl.sum(values))


found = {}
x, var = torch.rand(2, 40, 64, requires_grad=True), torch.rand(2, 40, 64)
for name in ("first", "again"):
    with gpu.watch() as seen:
        ief_kernels.kalman_scan(x, var).mean.sum().backward()
    found[name] = {
        "launches": [launch.kernel for launch in seen.launches],
        "compilations": [(c.kernel, c.dtype, c.config, c.usage().spills) for c in seen.compilations],
    }
with gpu.watch() as seen:
    try:
        much_shared[(1,)](torch.zeros(1 << 16), torch.zeros(1 << 16), SIZE=256, num_warps=8)
    except triton.runtime.errors.OutOfResources as error:
        found["shared"] = [str(error), seen.compilations[0].shared]
    many_registers[(1,)](torch.zeros(1 << 14), torch.zeros(1 << 14), SIZE=1 << 14, num_warps=1)
    found["spills"] = seen.compilations[-1].usage().spills
found["explain"] = dispatch.explain("kalman_scan", torch.float64)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = tmp_path_factory.mktemp("fake") / "script.py"  # triton reads the source of a kernel from its file
    script.write_text(CODE, encoding="utf-8")
    run = child([str(script)], timeout=120)
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_launches_and_compilations_are_recorded(found: dict[str, Any]) -> None:
    first = found["first"]
    assert first["launches"] == ["forward_sweep", "backward_sweep"]
    assert [kernel for kernel, *_ in first["compilations"]] == first["launches"]
    for _, dtype, config, spills in first["compilations"]:
        assert dtype == "fp32" and "BLOCK=" in config and config.endswith("warps=1,stages=1") and spills == 0


def test_a_second_call_launches_but_compiles_nothing(found: dict[str, Any]) -> None:
    assert found["again"]["launches"] == found["first"]["launches"] and found["again"]["compilations"] == []


def test_a_kernel_without_room_in_shared_memory_is_refused(found: dict[str, Any]) -> None:
    message, shared = found["shared"]
    assert "out of resource" in message and "101376" in message and shared > 101376


def test_spills_are_counted(found: dict[str, Any]) -> None:
    assert found["spills"] > 100


def test_the_checks_of_the_operators_stay(found: dict[str, Any]) -> None:
    assert "triton     no   its kernel does not take torch.float64" in found["explain"]


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="unset it"):
        FakeGPU(90)
