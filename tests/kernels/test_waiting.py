"""The Triton kernels' host code never waits for the GPU, forward and backward, wherever lengths are."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import ief_kernels
from bench.matrix_cases import DTYPES, Case, cases
from tests.helpers.waiting import GPU, waiting

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CALLS = [case for case in cases() if case.config is None]


@pytest.mark.parametrize("case", CALLS, ids=[f"{case.op}, {case.name}" for case in CALLS])
def test_no_operator_waits(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in dict.fromkeys((case.dtypes[0], case.dtypes[-1])):
        if dtype in ("fp16", "tf32"):
            dtype = "bf16" if "bf16" in case.dtypes else dtype
        with waiting(monkeypatch, launches=True) as waits, torch.device(GPU):
            total = case.forward(DTYPES[dtype])
            if total is not None:
                total.backward()
        assert waits.found == []


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_no_operator_waits_for_arguments_on_the_cpu(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, nu, noise = torch.tensor([3, 8]), torch.tensor(8.0), torch.tensor(0.01)
    tensors = [torch.empty(2, 8, 16, device=GPU, requires_grad=True) for _ in range(4)]
    with waiting(monkeypatch, launches=backend == "triton") as waits:
        ief_kernels.fusion_terms(*tensors, nu=nu, lengths=lengths, backend=backend).kl_img.backward()
        scan = ief_kernels.kalman_scan(*tensors[:2], nu=nu, process_noise=noise, lengths=lengths, backend=backend)
        scan.mean.sum().backward()
    assert waits.found == []
