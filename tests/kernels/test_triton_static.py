"""Machine code of the Triton kernels, compiled for GPUs that need not be there."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest

from bench import static
from ief_kernels._spills import RECORDED, Spill

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def check(results: list[static.StaticResult]) -> None:
    """Faults fail. Spills that a version of triton is known for only warn; so do those of a version not recorded."""
    for text in (text for result in results for text in result.warnings()):
        warnings.warn(text, stacklevel=2)
    assert [fault for result in results for fault in result.faults()] == []


def others() -> list[int]:
    # The rest of `static.ARCHS` is for `python -m bench --static` and for the matrix, which take minutes.
    return [arch for arch in (80, 100) if arch in static.archs()]


def of(op: str, results: list[static.StaticResult]) -> list[static.StaticResult]:
    kernels = {case.kernel.__name__ for case in static.cases(op)}
    return [result for result in results if result.kernel in kernels]


# All operators at once: a process that compiles takes seconds to start.
@pytest.fixture(scope="module")
def on_the_others() -> list[static.StaticResult]:
    """The first configuration of every kernel and dtype on the oldest architecture, and on one newer than sm_90."""
    return static.measure(None, others(), ["fp32", "bf16", "u8"], every_config=False)


@pytest.fixture(scope="module")
def on_hopper() -> list[static.StaticResult]:
    """Every bfloat16 configuration on sm_90."""
    return static.measure(None, [90], ["bf16", "u8"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("op", static.operators())
def test_first_configurations_on_the_other_architectures(op: str, on_the_others: list[static.StaticResult]) -> None:
    results = of(op, on_the_others)
    assert {result.arch for result in results} == set(others())
    check(results)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("op", static.operators())
def test_every_bfloat16_configuration_on_sm_90(op: str, on_hopper: list[static.StaticResult]) -> None:
    # All architectures and dtypes: `python -m bench --static`, which takes minutes.
    results = of(op, on_hopper)
    assert results
    check(results)


GOOD: dict[str, Any] = {
    "triton": "3.0",
    "op": "op",
    "tuner": "tuner",
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


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECORDED, "3.0", (Spill("tuner", "op", "kernel", "fp32", 90, "BLOCK=1", 6),))


def test_faults_are_named(recorded: None) -> None:
    assert static.StaticResult(**GOOD).faults() == []
    for bad in ({"spills": 1}, {"stack": 8}, {"shared": 166913}, {"wide_loads": 0}, {"tensor_core": 0}):
        (fault,) = static.StaticResult(**{**GOOD, **bad}).faults()
        assert "kernel fp32 sm_80 BLOCK=1" in fault
    assert static.StaticResult(**{**GOOD, "shared": 232448, "arch": 90}).faults() == []


def test_a_recorded_spill_warns_and_a_new_one_fails(recorded: None) -> None:
    spilling = {**GOOD, "arch": 90, "spills": 6, "stack": 16}
    known = static.StaticResult(**spilling)
    assert known.faults() == [] and "as recorded" in known.warnings()[0]
    assert known.spill() == RECORDED["3.0"][0]
    assert repr(known.spill()).count("BLOCK=1") == 1 and '"kernel", "fp32", 90' in static.record([known])
    for change in ({"spills": 7}, {"arch": 100}, {"config": "BLOCK=2"}, {"op": "other"}, {"dtype": "bf16"}):
        new = static.StaticResult(**{**spilling, **change})
        assert "not recorded for triton 3.0" in new.faults()[0] and new.warnings() == []
    unknown = static.StaticResult(**{**spilling, "triton": "2.9", "config": "BLOCK=2"})
    assert unknown.faults() == [] and "triton 2.9 has not been recorded" in unknown.warnings()[0]


def test_recorded_spills_are_those_of_kernels_that_exist() -> None:
    found = {
        (case.tuner, case.op, case.kernel.__name__, case.dtype, case.config)
        for op in static.operators()
        for case in static.cases(op)
    }
    for version, rows in RECORDED.items():
        for row in rows:
            assert (row.tuner, row.op, row.kernel, row.dtype, row.config) in found, version


# Integers by whose value triton may compile anew: those of the feature width, the image and the layout in memory.
SPECIALISED = {
    "kalman_scan": {"dim", "x_b", "x_t", "var_b", "var_t", "q_d"},
    "precision_fusion": {"dim", "size", "stride_mi", "stride_li", "stride_me", "stride_le", "c_img_d", "c_evt_d"},
    "event_synthesis": {"pixels", "width", "size"},
}


@pytest.mark.parametrize("op", SPECIALISED)
def test_another_number_of_rows_or_steps_compiles_nothing(op: str) -> None:
    specialised = {
        parameter.name
        for case in static.cases(op)
        for parameter in case.kernel.params
        if case.signature.get(parameter.name, "").startswith("i") and not parameter.do_not_specialize
    }
    assert specialised <= SPECIALISED[op]
