"""What the tuners compare: all of what a kernel writes, and the same in every configuration."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from ief_kernels import _measure, _problems, _triton

PROBLEMS = {
    "event_synthesis": (1, 4, 7),
    "fusion_and_terms": (0, 2, 3, 4, 5),
    "precision_fusion": (2, 3),
    "kalman_scan": (0, 1, 5),
    "refine": (2, 3),
}


@pytest.mark.parametrize(
    ("operator", "number"), [(operator, number) for operator, some in PROBLEMS.items() for number in some]
)
def test_right_configurations_agree(operator: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: Counter[str] = Counter()

    def index(tuner: Any, tensor: Any, key: Any, run: Any, worth: bool, rows: int, outputs: Any, compare: Any) -> int:
        assert rows > 0
        task = _measure.Task(
            tuner.name, tuner.configs, run, outputs, compare or (lambda config: outputs), tensor.device, "interpreter"
        )
        assert list(_measure._wrong(task, range(len(tuner.configs)))) == []
        run(tuner.configs[0])
        # Whatever is compared was overwritten with NaN before, so all of it has been written.
        for result in task.compared(tuner.configs[0]):
            assert not result.is_floating_point() or result.isfinite().all()
            compared[tuner.name] += result.numel()
        return 0

    monkeypatch.setattr(_triton.Tuner, "_index", index)
    problem = _problems.problems(operator, torch.float32, small=True)[number]()
    leaves = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in problem.inputs.items()
    }
    with problem.around():
        outputs = problem.call(leaves, "triton")
        sum(output.sum() for output in outputs.values() if output.requires_grad).backward()  # type: ignore[union-attr]
    assert compared and all(compared.values())
