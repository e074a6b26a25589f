"""A loop over a number of the launch: what triton's interpreter before 3.8 cannot do with NumPy 2.4 and later."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def count(out, steps):
    """Store how often the loop runs."""
    total = 0
    for _ in range(steps):
        total += 1
    tl.store(out, total)


if __name__ == "__main__":
    found = torch.zeros(1, dtype=torch.int32)
    count[(1,)](found, 3)
    assert found.item() == 3
