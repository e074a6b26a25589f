"""A value that is not finite comes out wherever it matters (`docs/specification.md#not-finite`).

The same checks run on Triton in `interpreter/test_not_finite.py`.
"""

from __future__ import annotations

import pytest

from tests.helpers.kernel_checks import BACKENDS
from tests.helpers.not_finite import check_fusion, check_low_rank_fusion, check_refine, check_scan


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("nu", [None, 3.0])
def test_scan(backend: str, carried: bool, nu: float | None) -> None:
    check_scan(backend, carried=carried, nu=nu)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fusion_and_its_terms(backend: str) -> None:
    check_fusion(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_rank_fusion(backend: str) -> None:
    check_low_rank_fusion(backend)


def test_refinement() -> None:
    check_refine("reference")
