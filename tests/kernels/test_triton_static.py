"""Machine code of the Triton kernels, compiled for GPUs that need not be there."""

from __future__ import annotations

import importlib.util

import pytest

from bench import static

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("op", static.operators())
def test_first_configurations_on_the_other_architectures(op: str) -> None:
    others = [arch for arch in static.ARCHS if arch != 90]
    results = static.measure([op], others, ["fp32", "bf16", "u8"], every_config=False)
    assert {result.arch for result in results} == set(others)
    assert [fault for result in results for fault in result.faults()] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("op", static.operators())
def test_every_bfloat16_configuration_on_sm_90(op: str) -> None:
    # All architectures and dtypes: `python -m bench --static`, which takes minutes.
    results = static.measure([op], [90], ["bf16", "u8"])
    assert results
    assert [fault for result in results for fault in result.faults()] == []


def test_faults_are_named() -> None:
    good = {
        "op": "op",
        "kernel": "kernel",
        "config": "BLOCK=1",
        "dtype": "fp32",
        "arch": 80,
        "wants": {"vector_loads": True, "tensor_cores": True},
        "registers": 32,
        "stack": 0,
        "spills": 0,
        "shared": 166912,
        "instructions": 100,
        "loads": 4,
        "wide_loads": 4,
        "stores": 1,
        "wide_stores": 1,
        "tensor_core": 8,
        "seconds": 0.1,
    }
    assert static.StaticResult(**good).faults() == []  # type: ignore[arg-type]
    for bad in ({"spills": 1}, {"stack": 8}, {"shared": 166913}, {"wide_loads": 0}, {"tensor_core": 0}):
        (fault,) = static.StaticResult(**{**good, **bad}).faults()  # type: ignore[arg-type]
        assert "kernel fp32 sm_80 BLOCK=1" in fault
    assert static.StaticResult(**{**good, "shared": 232448, "arch": 90}).faults() == []  # type: ignore[arg-type]
