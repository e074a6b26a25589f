"""The rule that chooses between the Triton kernels' two paths; no kernel runs here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ief_kernels.kalman_scan.paths import (
    FEW_LANES,
    LONG,
    LONGEST_CHUNK,
    SHORTEST_CHUNK,
    choose_path,
    chunk_length,
    describe,
    forced_path,
)


@pytest.mark.parametrize(
    ("shape", "robust", "eps", "name"),
    [
        ((1, 8192, 768), False, 1e-8, "chunks"),
        ((1, LONG, FEW_LANES), False, 1e-8, "chunks"),
        ((1, LONG, FEW_LANES + 1), False, 1e-8, "sequential"),
        ((1, LONG - 1, 1), False, 1e-8, "sequential"),
        ((128, 256, 768), False, 1e-8, "sequential"),
        ((1, 8192, 768), True, 1e-8, "sequential"),
        ((1, 8192, 768), False, 0.0, "sequential"),
    ],
)
def test_rule(shape: tuple[int, int, int], robust: bool, eps: float, name: str) -> None:
    path = choose_path(*shape, robust=robust, eps=eps)
    assert path.name == name and path.reason
    assert path.chunk == (shape[1] if name == "sequential" else chunk_length(shape[1]))
    assert f"kernel, {name}" in describe({"shape": shape, "nu": 4.0 if robust else None, "eps": eps})


def test_forced_where_possible() -> None:
    with forced_path("chunks", 5):
        assert choose_path(1, 9, 3, robust=False, eps=1e-8)[:2] == ("chunks", 5)
        assert choose_path(1, 9, 3, robust=True, eps=1e-8).name == "sequential"
        with forced_path("sequential"):
            assert choose_path(1, 10**6, 3, robust=False, eps=1e-8)[:2] == ("sequential", 10**6)
        assert choose_path(1, 9, 3, robust=False, eps=1e-8).name == "chunks"
    assert choose_path(1, 9, 3, robust=False, eps=1e-8).name == "sequential"
    with pytest.raises(ValueError, match="unknown path"), forced_path("parallel"):
        pass


def test_chunks_grow_with_the_root_of_the_length() -> None:
    assert [chunk_length(steps) for steps in (128, 512, 1024, 4095, 4096, 10**6)] == [16, 16, 32, 32, 64, 256]
    assert chunk_length(0) == SHORTEST_CHUNK and chunk_length(1 << 40) == LONGEST_CHUNK


def test_describe_without_a_shape() -> None:
    assert str(FEW_LANES) in describe({"shape": None})


def test_the_rule_needs_no_triton() -> None:
    launcher = "ief_kernels.kalman_scan.triton_kernels"
    code = f"import sys; import ief_kernels.kalman_scan.paths; sys.exit({launcher!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
