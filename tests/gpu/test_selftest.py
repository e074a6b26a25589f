"""Every operator, dtype, configuration and way against float64: what `bench/gpu.sh` runs as its first step."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.timeout(300)
def test_no_fault_on_this_gpu(cuda: torch.device) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ief_kernels.selftest", "--device", "cuda"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
