"""How many kernels a first training step compiles, and that other sizes compile none; counted without a GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bench.fake_gpu import child

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# What the network calls in a step of bfloat16 training: fusion and its terms, the filter, refinement under autocast.
CODE = """
import json, sys
from bench.fake_gpu import FakeGPU
from bench.gpu_plan import measure_everything

gpu = FakeGPU(90)
measure_everything(gpu)

import torch
from ief_kernels import KalmanScan, PrecisionFusion, Refinement, warmup

fuse, filter, refine = PrecisionFusion(), KalmanScan(768, "learned"), Refinement(768)

def step(batch, steps):
    data = [torch.zeros(batch, steps, 768, dtype=torch.bfloat16, requires_grad=True) for _ in range(4)]
    lengths = torch.full((batch,), steps)
    with gpu.watch() as seen:
        fused, terms = fuse.with_terms(*data, lengths)
        sequence = filter(fused.mean, fused.var, lengths).mean
        with torch.autocast("cpu", torch.bfloat16):
            refined = refine(sequence.reshape(-1, 768))
        (refined.sum() + fused.var.sum() + sum(terms)).backward()
    return sorted(compiled.kernel for compiled in seen.compilations)

if sys.argv[1] == "warm":
    for name in warmup.OPERATORS:
        warmup.call(name, warmup.Shapes(batch=32), torch.device("cpu"))
found = [step(32, 256)]
if sys.argv[1] == "cold":
    found += [step(*sizes) for sizes in ((32, 255), (32, 100), (31, 256), (3000, 1), (128, 256))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


def compiled(start: str, cache: Path) -> list[list[str]]:
    done = child(["-c", CODE, start], cache=cache, timeout=240)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_first_step_compiles_little_and_other_sizes_nothing(cache: Path) -> None:
    first, *others = compiled("cold", cache)
    # All configurations of all kernels; it was 51.
    assert 0 < len(first) <= 25, first
    # Another T or batch. Refinement has another way for few tokens, and one long clip is filtered in chunks.
    assert others == [[]] * 5


@pytest.mark.slow
def test_a_warm_up_leaves_nothing_to_a_first_step(cache: Path) -> None:
    assert compiled("warm", cache) == [[]]
