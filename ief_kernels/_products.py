"""Float32 matrix products on the CPU by whichever of torch's two libraries has the wider instructions for it.

torch takes MKL for float32. MKL keeps its AVX-512 code to Intel's processors. On others with AVX-512, oneDNN is about
twice as fast (210 against 96 GFLOP/s on one Zen 5 core); torch brings it along for bfloat16. The choice depends on the
processor, the dtype and the size alone, so that results are the same bits from run to run.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1 << 23
"""Number of multiply-adds below which the choice does not pay for its overhead."""


@functools.cache
def _vendor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


@functools.cache
def _product() -> Any:
    """Return oneDNN's a·bᵀ + bias, or None where MKL is at least as fast or torch does not offer it."""
    if _vendor() in ("", "GenuineIntel") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        # What torch.compile calls for a Linear; it is not documented, so what it gives is looked at once.
        product = torch.ops.mkldnn._linear_pointwise
        a, b = (torch.arange(12, dtype=torch.float32).view(4, 3).t() for _ in range(2))
        right = torch.equal(product(a, b, torch.ones(3), "none", [], ""), torch.mm(a, b.t()) + 1)
    except (AttributeError, RuntimeError):
        return None
    return product if right else None


def served(a: Tensor, b: Tensor) -> bool:
    """Return whether the product of a (M, K) and b (K, N) goes to oneDNN."""
    return (
        a.numel() * b.shape[1] >= SMALLEST  # the first condition, as small products are those where its time counts
        and a.dtype == b.dtype == torch.float32
        and a.is_cpu
        and b.is_cpu
        and _product() is not None
    )


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Compute a·b + bias, followed by relu if asked for.

    Args:
        a: (M, K).
        b: (K, N), of a's dtype.
        bias: (N,), of a's dtype, or None.
        relu: whether negative results become zero.

    Returns:
        (M, N), of a's dtype.
    """
    if served(a, b):
        found: Tensor = _product()(a, b.t(), bias, "relu" if relu else "none", [], "")
        return found
    found = torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)
    return found.relu_() if relu else found
