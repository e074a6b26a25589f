"""A value that is not finite comes out of Triton's kernels wherever it matters (`docs/specification.md#not-finite`)."""

from __future__ import annotations

import pytest

from ief_kernels.kalman_scan.paths import forced_path
from tests.helpers.not_finite import check_fusion, check_refine, check_scan

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.mark.parametrize("path", ["sequential", "chunks"])
@pytest.mark.parametrize("carried", [False, True])
def test_scan(path: str, carried: bool) -> None:
    with forced_path(path, 4):
        check_scan("triton", carried=carried, nu=None)


@pytest.mark.parametrize("carried", [False, True])
def test_robust_scan(carried: bool) -> None:
    check_scan("triton", carried=carried, nu=3.0)


def test_fusion_and_its_terms() -> None:
    check_fusion("triton")


def test_refinement() -> None:
    check_refine("triton")
